//! The registers of all slots as the guest reads them: memory, not exits.
//!
//! KVM maps these pages read-only to the guest, so that a read costs what any
//! read costs; a write is an exit as before, and whoever handles it brings
//! the page up to date before the guest goes on. Each device has its page, a
//! slot without one reads as a placeholder: a virtio device of kind 0.
//!
//! ```text
//!  guest ──read──▶ page ◀──put── transport (after each write), interrupt
//!        ──write─▶ exit ───────▶ transport
//! ```

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};

use crate::memory::mmap::Mapping;

/// Bytes of one slot's registers: a page, the unit in which KVM maps.
pub(crate) const PAGE: usize = 0x1000;

/// The pages of all slots.
#[derive(Debug)]
pub(crate) struct Registers {
    // Before the mapping that it points into.
    region: MmapRegion<()>,
    mapping: Mapping,
}

impl Registers {
    /// Pages for `slots` slots, all zeros.
    pub(crate) fn new(slots: usize) -> io::Result<Self> {
        let bytes = slots.saturating_mul(PAGE);
        let mapping = Mapping::anonymous(bytes)?;
        Ok(Self {
            region: mapping.region(0, bytes)?,
            mapping,
        })
    }

    /// Where the pages are in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.mapping.host_address()
    }

    /// How many bytes they are.
    pub(crate) fn bytes(&self) -> usize {
        self.region.size()
    }

    /// What a guest finds at `offset`; zeros beyond the end.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        // A read across the end is cut, as it would be for the guest.
        let _ = self.region.as_volatile_slice().read(data, offset);
    }

    /// The page of one slot.
    pub(crate) fn page(self: &Arc<Self>, slot: usize) -> Page {
        Page {
            registers: self.clone(),
            start: slot.saturating_mul(PAGE),
        }
    }
}

/// The page of one slot, for who keeps it up to date.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    registers: Arc<Registers>,
    start: usize,
}

impl Page {
    /// Sets the 32-bit register at `offset`; nothing where no register is.
    pub(crate) fn put(&self, offset: u64, value: u32) {
        let Some(at) = usize::try_from(offset)
            .ok()
            .filter(|offset| *offset < PAGE)
            .and_then(|offset| self.start.checked_add(offset))
        else {
            return;
        };
        // Fails only for an offset that is no multiple of 4.
        let _ =
            self.registers
                .region
                .as_volatile_slice()
                .store(value.to_le(), at, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_one_slots_and_no_others() {
        let registers = Arc::new(Registers::new(2).unwrap());
        let page = registers.page(1);
        page.put(0, 7);
        page.put(0xffc, 8);
        page.put(0x1000, 9);
        page.put(u64::MAX, 9);
        page.put(2, 9);
        let read = |offset| {
            let mut data = [0xa5; 4];
            registers.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(0x1000), read(0x1ffc)), (7, 8));
        assert_eq!((read(0), read(0xffc), read(0x1004)), (0, 0, 0));
        assert_eq!((read(0x2000), read(usize::MAX)), (0, 0));
    }
}
