//! A driver for the devices' unit tests: real rings in real guest RAM, the
//! device called as the transport calls it.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Device, Queues, Ring};
use crate::memory::GuestMemory;

/// Descriptors of each queue; one request takes at most two.
const SIZE: u16 = 16;
/// Where the rings of the first queue lie; the next ones follow.
const RINGS: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where buffers lie: a stretch for each descriptor of each queue.
const BUFFERS: u64 = 1 << 20;
const BUFFER_BYTES: u64 = 64 << 10;

/// A chain that the device has returned.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Used {
    /// What the device says to have written.
    pub(crate) bytes: Vec<u8>,
}

/// One device with its driver.
#[derive(Debug)]
pub(crate) struct Rig<D> {
    pub(crate) device: D,
    memory: GuestMemory,
    rings: Vec<Ring>,
    offered: Vec<u16>,
    seen: Vec<u16>,
}

impl<D: Device> Rig<D> {
    /// `device`, running, its queues empty.
    pub(crate) fn new(device: D) -> Self {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let count = device.queue_sizes().len();
        let rings = (0..count).map(|index| {
            let base = base(index);
            let mut queue = Queue::new(SIZE).unwrap();
            queue
                .try_set_desc_table_address(GuestAddress(base))
                .unwrap();
            queue
                .try_set_avail_ring_address(GuestAddress(base + AVAIL))
                .unwrap();
            queue
                .try_set_used_ring_address(GuestAddress(base + USED))
                .unwrap();
            queue.set_ready(true);
            Ring::from_driver(queue, memory.ram()).unwrap()
        });
        let rings = rings.collect();
        Self {
            device,
            memory,
            rings,
            offered: vec![0; count],
            seen: vec![0; count],
        }
    }

    /// Puts a request into a queue: what the device reads, and how much room
    /// it has to write.
    pub(crate) fn offer(&mut self, queue: usize, readable: &[u8], writable: u32) {
        let ram = self.memory.ram();
        let turn = self.offered[queue];
        let head = turn % (SIZE / 2) * 2;
        let mut parts = Vec::new();
        if !readable.is_empty() {
            let at = buffer(queue, head);
            ram.write_slice(readable, at).unwrap();
            parts.push((at, u32::try_from(readable.len()).unwrap(), 0u16));
        }
        if writable > 0 {
            parts.push((buffer(queue, head + 1), writable, 2));
        }
        let last = parts.len() - 1;
        for (index, (at, length, flags)) in parts.into_iter().enumerate() {
            let number = head + u16::try_from(index).unwrap();
            let entry = base(queue) + u64::from(number) * 16;
            let flags = flags | u16::from(index < last);
            ram.write_obj(at.0, GuestAddress(entry)).unwrap();
            ram.write_obj(length, GuestAddress(entry + 8)).unwrap();
            ram.write_obj(flags, GuestAddress(entry + 12)).unwrap();
            ram.write_obj(number + 1, GuestAddress(entry + 14)).unwrap();
        }
        let available = base(queue) + AVAIL;
        let entry = available + 4 + u64::from(turn % SIZE) * 2;
        ram.write_obj(head, GuestAddress(entry)).unwrap();
        self.offered[queue] = turn + 1;
        ram.write_obj(turn + 1, GuestAddress(available + 2))
            .unwrap();
    }

    /// Lets the device work; true if the driver would get an interrupt.
    pub(crate) fn drain(&mut self) -> bool {
        let mut queues = Queues::new(&mut self.rings, self.memory.ram());
        self.device.drain(&mut queues).unwrap();
        queues.interrupt
    }

    /// The next request that has come back.
    pub(crate) fn used(&mut self, queue: usize) -> Option<Used> {
        let ram = self.memory.ram();
        let used = base(queue) + USED;
        let index: u16 = ram.read_obj(GuestAddress(used + 2)).unwrap();
        let seen = self.seen[queue];
        if index == seen {
            return None;
        }
        self.seen[queue] = seen + 1;
        let entry = used + 4 + u64::from(seen % SIZE) * 8;
        let head: u32 = ram.read_obj(GuestAddress(entry)).unwrap();
        let length: u32 = ram.read_obj(GuestAddress(entry + 4)).unwrap();
        let at = buffer(queue, u16::try_from(head).unwrap() + 1);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        ram.read_slice(&mut bytes, at).unwrap();
        Some(Used { bytes })
    }
}

fn base(queue: usize) -> u64 {
    RINGS * (u64::try_from(queue).unwrap() + 1)
}

fn buffer(queue: usize, descriptor: u16) -> GuestAddress {
    let number = u64::try_from(queue).unwrap() * u64::from(SIZE) + u64::from(descriptor);
    GuestAddress(BUFFERS + number * BUFFER_BYTES)
}
