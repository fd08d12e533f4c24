//! A device with its driver for unit tests: real rings in real guest RAM, the
//! device called as the transport calls it.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Buffer, DriverQueue, QUEUE_BYTES, QUEUE_SIZE};
use super::{Device, Queues, Ring};
use crate::memory::GuestMemory;

/// Where buffers lie: two stretches for each descriptor of each queue, one to
/// be read and one to be written.
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
    drivers: Vec<DriverQueue>,
}

impl<D: Device> Rig<D> {
    /// `device`, running, its queues empty.
    pub(crate) fn new(device: D) -> Self {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let drivers: Vec<_> = (1..)
            .zip(device.queue_sizes())
            .map(|(number, _)| DriverQueue::new(number * QUEUE_BYTES))
            .collect();
        let rings = drivers.iter().map(|driver| {
            let [table, available, used] = driver.addresses().map(GuestAddress);
            let mut queue = Queue::new(QUEUE_SIZE).unwrap();
            queue.try_set_desc_table_address(table).unwrap();
            queue.try_set_avail_ring_address(available).unwrap();
            queue.try_set_used_ring_address(used).unwrap();
            queue.set_ready(true);
            Ring::from_driver(queue, memory.ram()).unwrap()
        });
        Self {
            rings: rings.collect(),
            device,
            memory,
            drivers,
        }
    }

    /// Puts a request into a queue: what the device reads, and how much room
    /// it has to write.
    pub(crate) fn offer(&mut self, queue: usize, readable: &[u8], writable: u32) {
        let ram = self.memory.ram();
        let head = self.drivers[queue].next_head();
        let mut buffers = Vec::new();
        if !readable.is_empty() {
            let address = readable_at(queue, head);
            ram.write_slice(readable, GuestAddress(address)).unwrap();
            buffers.push(Buffer {
                address,
                length: u32::try_from(readable.len()).unwrap(),
                writable: false,
            });
        }
        if writable > 0 {
            buffers.push(Buffer {
                address: writable_at(queue, head),
                length: writable,
                writable: true,
            });
        }
        self.drivers[queue].offer(ram, &buffers);
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
        let (head, length) = self.drivers[queue].used(ram)?;
        let at = writable_at(queue, u16::try_from(head).unwrap());
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        Some(Used { bytes })
    }
}

fn readable_at(queue: usize, head: u16) -> u64 {
    let number = u64::try_from(queue).unwrap() * u64::from(QUEUE_SIZE) + u64::from(head);
    BUFFERS + number * 2 * BUFFER_BYTES
}

fn writable_at(queue: usize, head: u16) -> u64 {
    readable_at(queue, head) + BUFFER_BYTES
}
