//! What a hostile driver may try with the queues, as far as it takes no
//! broker. More: `tests/fuzz`, and `hostile` of the integration tests.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use protocol::broker::Policy;
use protocol::fuse::{BatchForgetIn, ForgetOne, InHeader, MAX_REQUEST, Opcode};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::device::{FORGETS, Fs};
use super::server::Server;
use super::window::FileWindow;
use crate::memory::{GuestMemory, GuestRam};
use crate::slots::{FIRST_ADDRESS, Occupant, Slot, Slots};
use crate::virtio::driver::{Buffer, DriverQueue, QUEUE_BYTES, QUEUE_SIZE};

const REQUEST: u64 = 0x4000;

/// A device with its driver, and the broker's end of its one channel.
struct Rig {
    memory: GuestMemory,
    slot: Slot<Fs>,
    server: Server,
    forgets: DriverQueue,
    broker: UnixDatagram,
}

impl Rig {
    fn new() -> Self {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let slot = Slot::new(Fs::new(Policy::Exclusive)).unwrap();
        let (broker, channel) = UnixDatagram::pair().unwrap();
        for end in [&broker, &channel] {
            end.set_nonblocking(true).unwrap();
        }
        let server = slot.with_device(|device| Server::new(device, channel.into(), false));
        let mut writes = vec![
            (VIRTIO_MMIO_STATUS, 3),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (VIRTIO_MMIO_STATUS, 11),
        ];
        for queue in 0..2 {
            let driver = DriverQueue::new(u64::from(queue) * QUEUE_BYTES);
            let addresses = driver.addresses();
            let [table, available, used] = addresses.map(|address| u32::try_from(address).unwrap());
            writes.extend([
                (VIRTIO_MMIO_QUEUE_SEL, queue),
                (VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into()),
                (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
                (VIRTIO_MMIO_QUEUE_USED_LOW, used),
                (VIRTIO_MMIO_QUEUE_READY, 1),
            ]);
        }
        writes.push((VIRTIO_MMIO_STATUS, 15));
        for (register, value) in writes {
            slot.write(register.into(), &u32::to_le_bytes(value), memory.ram());
        }
        Self {
            memory,
            slot,
            server,
            forgets: DriverQueue::new(FORGETS as u64 * QUEUE_BYTES),
            broker,
        }
    }

    /// Forgets that reach the broker when the guest forgets `count` nodes in
    /// one request with `bytes` bytes of them.
    fn told(&mut self, count: u32, bytes: u32) -> usize {
        let head = size_of::<InHeader>() + size_of::<BatchForgetIn>();
        let head = u32::try_from(head).unwrap();
        let header = InHeader {
            len: head + bytes,
            opcode: Opcode::BatchForget as u32,
            ..InHeader::default()
        };
        let batch = BatchForgetIn { count, dummy: 0 };
        let request = [header.as_bytes(), batch.as_bytes()].concat();
        let ram = self.memory.ram();
        ram.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        let buffers = [(REQUEST, head), (1 << 20, bytes)].map(|(address, length)| Buffer {
            address,
            length,
            writable: false,
        });
        self.forgets.offer(ram, &buffers);
        self.server.take_forgets(&self.slot, ram, false);
        self.server.pass_forgets_on();
        let mut told = 0;
        let mut room = vec![0; MAX_REQUEST];
        while let Ok(length) = self.broker.recv(&mut room) {
            told += (length - size_of::<InHeader>() - size_of::<BatchForgetIn>())
                / size_of::<ForgetOne>();
        }
        assert!(self.forgets.used(ram).is_some(), "the chain is given back");
        told
    }
}

fn shared_memory(slots: &Slots, id: u32, ram: &GuestRam) -> (u64, u64) {
    let address = |register: u32| FIRST_ADDRESS.0 + u64::from(register);
    slots.write(address(VIRTIO_MMIO_SHM_SEL), &id.to_le_bytes(), ram);
    let read = |register: u32| {
        let mut data = [0; 4];
        slots.read(address(register), &mut data);
        u64::from(u32::from_le_bytes(data))
    };
    let base = read(VIRTIO_MMIO_SHM_BASE_LOW) | read(VIRTIO_MMIO_SHM_BASE_HIGH) << 32;
    let bytes = read(VIRTIO_MMIO_SHM_LEN_LOW) | read(VIRTIO_MMIO_SHM_LEN_HIGH) << 32;
    (base, bytes)
}

#[test]
fn window_is_the_first_shared_memory_region() {
    let memory = GuestMemory::new(64 << 20).unwrap();
    let ram = memory.ram();
    let alone = |fs| {
        let mut slots = Slots::new().unwrap();
        slots.fill(Arc::new(Slot::new(fs).unwrap())).unwrap();
        slots
    };
    let without = alone(Fs::new(Policy::Shared));
    assert_eq!(shared_memory(&without, 0, ram), (u64::MAX, u64::MAX));
    let start = GuestAddress(5 << 30);
    let window = FileWindow::new(start, 6 << 30).unwrap();
    let fs = Fs::new(Policy::Shared).with_window(Arc::new(window));
    let slots = alone(fs);
    assert_eq!(shared_memory(&slots, 0, ram), (5 << 30, 6 << 30));
    for other in [1, 2, u32::MAX] {
        assert_eq!(shared_memory(&slots, other, ram), (u64::MAX, u64::MAX));
    }
}

#[test]
fn window_of_an_absurd_size_is_refused() {
    for bytes in [0, 1, 4096, (2 << 20) + 1, (8 << 30) + (2 << 20), u64::MAX] {
        let refused = FileWindow::new(GuestAddress(1 << 32), bytes).unwrap_err();
        assert!(refused.to_string().contains("up to 8 GiB"), "{refused}");
    }
}

#[test]
fn forgets_are_told_as_many_as_there_are() {
    let mut rig = Rig::new();
    assert_eq!(rig.told(3, 48), 3);
    assert_eq!(rig.told(3, 32), 2);
    assert_eq!(rig.told(0, 32), 0);
    assert_eq!(rig.told(u32::MAX, 160), 10);
}

#[test]
fn forgets_longer_than_a_request_are_none() {
    let mut rig = Rig::new();
    let longest = u32::try_from(MAX_REQUEST).unwrap() - 48;
    assert_eq!(rig.told(u32::MAX, longest), longest as usize / 16);
    // Guest memory is cheap to name many times over; what is noted is ours.
    assert_eq!(rig.told(u32::MAX, longest + 1), 0);
    assert_eq!(rig.told(u32::MAX, 2 << 20), 0);
}
