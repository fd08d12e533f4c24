//! A driver that knows the protocol: it brings a device up as Linux does and
//! puts chains into its rings, so that the fuzzer's bytes reach what lies
//! behind them.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::GuestRam;

/// Descriptors of each queue.
pub(crate) const QUEUE_SIZE: u16 = 16;
const QUEUE_BYTES: u32 = 0x1000;
const AVAIL: u32 = 0x400;
const USED: u32 = 0x800;

/// What brings a device with `queues` queues up, as register writes in order.
pub(crate) fn start(queues: u32) -> Vec<(u32, u32)> {
    let mut writes = vec![
        (VIRTIO_MMIO_STATUS, 1),
        (VIRTIO_MMIO_STATUS, 3),
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_STATUS, 11),
    ];
    for queue in 0..queues {
        let base = queue * QUEUE_BYTES;
        writes.extend([
            (VIRTIO_MMIO_QUEUE_SEL, queue),
            (VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into()),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, base),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + AVAIL),
            (VIRTIO_MMIO_QUEUE_USED_LOW, base + USED),
            (VIRTIO_MMIO_QUEUE_READY, 1),
        ]);
    }
    writes.push((VIRTIO_MMIO_STATUS, 15));
    writes
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

/// One queue from the driver's side. Chains take descriptors in turn, so a
/// slow device sees them overwritten: a hostile driver does that as well.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    base: u64,
    next: u16,
    available: u16,
    seen: u16,
}

impl DriverQueue {
    pub(crate) fn new(index: u32) -> Self {
        Self {
            base: u64::from(index * QUEUE_BYTES),
            next: 0,
            available: 0,
            seen: 0,
        }
    }

    /// Offers a chain of at most two buffers; its head is the slot used.
    pub(crate) fn offer(&mut self, ram: &GuestRam, buffers: &[Buffer]) -> u16 {
        let head = self.next;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next;
            self.next = (self.next + 1) % QUEUE_SIZE;
            let last = position + 1 == buffers.len();
            let at = self.base + u64::from(index) * 16;
            let flags = u16::from(!last) | u16::from(buffer.writable) << 1;
            ram.write_obj(buffer.address, GuestAddress(at)).unwrap();
            ram.write_obj(buffer.length, GuestAddress(at + 8)).unwrap();
            ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
            ram.write_obj(self.next, GuestAddress(at + 14)).unwrap();
        }
        let ring = self.base + u64::from(AVAIL);
        let entry = ring + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        ram.write_obj(head, GuestAddress(entry)).unwrap();
        self.available = self.available.wrapping_add(1);
        ram.write_obj(self.available, GuestAddress(ring + 2))
            .unwrap();
        head
    }

    /// The next chain that the device has returned: its head and how many
    /// bytes it says to have written.
    pub(crate) fn used(&mut self, ram: &GuestRam) -> Option<(u32, u32)> {
        let ring = self.base + u64::from(USED);
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
