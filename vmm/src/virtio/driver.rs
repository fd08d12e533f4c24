//! A queue from the driver's side, for the devices' unit tests and for the
//! fuzz targets. Not in any program: feature `test-utils`.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Bytes that a queue takes, all three rings.
pub const QUEUE_BYTES: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Its guest-physical address.
    pub address: u64,
    /// Its bytes.
    pub length: u32,
    /// For the device to write, not to read.
    pub writable: bool,
}

/// One queue of [`QUEUE_SIZE`] descriptors. Chains take descriptors in turn,
/// so a slow device sees them overwritten: a hostile driver does that as well.
#[derive(Debug)]
pub struct DriverQueue {
    base: u64,
    next: u16,
    available: u16,
    seen: u16,
}

impl DriverQueue {
    /// A queue whose rings lie at `base`, in zeroed RAM.
    #[must_use]
    pub fn new(base: u64) -> Self {
        Self {
            base,
            next: 0,
            available: 0,
            seen: 0,
        }
    }

    /// Guest-physical addresses of descriptor table, available and used ring.
    #[must_use]
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + AVAIL, self.base + USED]
    }

    /// The descriptor that the next chain begins with.
    #[must_use]
    pub fn next_head(&self) -> u16 {
        self.next
    }

    /// Offers a chain.
    ///
    /// # Panics
    ///
    /// When the rings lie outside `ram`.
    pub fn offer(&mut self, ram: &GuestRam, buffers: &[Buffer]) {
        let [table, ring, _] = self.addresses();
        let head = self.next;
        for (position, buffer) in buffers.iter().enumerate() {
            let at = table + u64::from(self.next) * 16;
            self.next = (self.next + 1) % QUEUE_SIZE;
            let last = position + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(buffer.writable) << 1;
            ram.write_obj(buffer.address, GuestAddress(at)).unwrap();
            ram.write_obj(buffer.length, GuestAddress(at + 8)).unwrap();
            ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
            ram.write_obj(self.next, GuestAddress(at + 14)).unwrap();
        }
        let entry = ring + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        ram.write_obj(head, GuestAddress(entry)).unwrap();
        self.available = self.available.wrapping_add(1);
        ram.write_obj(self.available, GuestAddress(ring + 2))
            .unwrap();
    }

    /// The next chain that the device has returned: its head and how many
    /// bytes it says to have written.
    ///
    /// # Panics
    ///
    /// When the rings lie outside `ram`.
    pub fn used(&mut self, ram: &GuestRam) -> Option<(u32, u32)> {
        let [.., ring] = self.addresses();
        let index: u16 = ram.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let entry = ring + 4 + u64::from(self.seen % QUEUE_SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        let head = ram.read_obj(GuestAddress(entry)).unwrap();
        let length = ram.read_obj(GuestAddress(entry + 4)).unwrap();
        Some((head, length))
    }
}
