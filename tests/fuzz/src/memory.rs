//! Guest RAM, mapped once for all runs; its beginning, where rings and
//! buffers lie, is zero at the start of each.

use vm_memory::{Bytes, GuestAddress};
use vmm::memory::{GuestMemory, GuestRam};

/// Bytes at the beginning of RAM that a run finds zeroed.
pub(crate) const CLEARED: usize = 256 << 10;

thread_local! {
    static MEMORY: GuestMemory = GuestMemory::new(64 << 20).unwrap();
}

/// Runs `body` with cleared RAM.
pub(crate) fn with_ram<T>(body: impl FnOnce(&GuestRam) -> T) -> T {
    MEMORY.with(|memory| {
        let ram = memory.ram();
        ram.write_slice(&[0; CLEARED], GuestAddress(0)).unwrap();
        body(ram)
    })
}
