//! A driver that knows the protocol: it brings a device up as Linux does, so
//! that the fuzzer's bytes reach what lies behind the registers.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vmm::virtio::driver::{DriverQueue, QUEUE_BYTES, QUEUE_SIZE};

/// Queue `index` of a device: the queues lie one behind the other.
pub(crate) fn queue(index: u32) -> DriverQueue {
    DriverQueue::new(u64::from(index) * QUEUE_BYTES)
}

/// What brings a device with `queues` queues up, as register writes in order.
pub(crate) fn start(queues: u32) -> Vec<(u32, u32)> {
    let mut writes = vec![
        (VIRTIO_MMIO_STATUS, 1),
        (VIRTIO_MMIO_STATUS, 3),
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_STATUS, 11),
    ];
    for index in 0..queues {
        let addresses = queue(index).addresses();
        let [table, available, used] = addresses.map(|address| u32::try_from(address).unwrap());
        writes.extend([
            (VIRTIO_MMIO_QUEUE_SEL, index),
            (VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into()),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
            (VIRTIO_MMIO_QUEUE_READY, 1),
        ]);
    }
    writes.push((VIRTIO_MMIO_STATUS, 15));
    writes
}
