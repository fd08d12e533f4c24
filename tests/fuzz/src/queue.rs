//! The virtqueue walk: rings with any content, changed while in use.
//!
//! Input: a byte of choices, perhaps three ring addresses, then patches
//! (offset, length, bytes), after some of which the device works.

use std::ops::Range;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryBackend;
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::GuestRam;
use vmm::virtio::queue::{GuestSlice, copy_from, copy_to, part, total};
use vmm::virtio::{Chain, Queues, Ring};

use crate::input::Input;
use crate::memory::{CLEARED, with_ram};

const SIZE: u16 = 16;

/// Runs one input.
pub fn run(data: &[u8]) {
    with_ram(|ram| {
        let _ = work(&mut Input(data), ram);
    });
}

fn work(input: &mut Input<'_>, ram: &GuestRam) -> Option<()> {
    let choices = input.u8()?;
    let mut queue = Queue::new(SIZE).unwrap();
    let addresses = if choices & 1 == 0 {
        [0, 0x400, 0x800]
    } else {
        [input.u64()?, input.u64()?, input.u64()?]
    };
    let _ = queue.try_set_desc_table_address(GuestAddress(addresses[0]));
    let _ = queue.try_set_avail_ring_address(GuestAddress(addresses[1]));
    let _ = queue.try_set_used_ring_address(GuestAddress(addresses[2]));
    queue.set_event_idx(choices & 2 != 0);
    queue.set_ready(choices & 4 == 0);
    let host = host_range(ram);
    let mut rings = [Ring::from_driver(queue, ram)?];
    loop {
        let place = input.u16()?;
        let length = input.u8()?;
        let bytes = input.bytes(usize::from(length & 0x3f));
        let at = GuestAddress(u64::from(place) % (CLEARED as u64 - 64));
        ram.write_slice(bytes, at).unwrap();
        if length & 0x80 != 0 {
            let mut queues = Queues::new(&mut rings, ram);
            let served = queues.serve(0, |chain| serve(chain, &host));
            if served.is_err() {
                return None; // the device now waits for a reset
            }
        }
    }
}

/// Host addresses of guest RAM.
fn host_range(ram: &GuestRam) -> Range<usize> {
    let length = 64 << 20;
    let all = ram.get_slice(GuestAddress(0), length).unwrap();
    let start = all.ptr_guard().as_ptr().addr();
    start..start + length
}

/// A device that uses all of a chain, and asserts what it was promised.
fn serve(chain: &Chain<'_>, host: &Range<usize>) -> u32 {
    for slice in chain.readable().iter().chain(chain.writable()) {
        assert!(!slice.is_empty(), "an empty buffer was passed on");
        let start = slice.ptr_guard().as_ptr().addr();
        assert!(start >= host.start && start + slice.len() <= host.end);
    }
    assert!(chain.readable().len() + chain.writable().len() <= usize::from(SIZE));
    let mut bytes = [0; 256];
    let read = copy_from(chain.readable(), &mut bytes);
    assert_eq!(read, total(chain.readable()).min(bytes.len()));
    cut(chain.readable(), read);
    let written = copy_to(chain.writable(), &bytes);
    assert_eq!(written, total(chain.writable()).min(bytes.len()));
    u32::try_from(written).unwrap()
}

fn cut(slices: &[GuestSlice<'_>], skip: usize) {
    let rest = part(slices, skip, 100);
    assert_eq!(total(&rest), total(slices).saturating_sub(skip).min(100));
}
