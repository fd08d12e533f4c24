//! The whole device behind its registers, driven by hostile and by honest
//! drivers, over real files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};

use super::engine::Engine;
use super::job::{Call, Job, Progress};
use super::request::{Extent, Operation, Outcome};
use super::{Block, BlockSettings, DiskError, serve_now};
use crate::memory::GuestMemory;
use crate::slots::{FIRST_ADDRESS, Occupant, Slot, Slots};
use crate::virtio::Device;
use crate::virtio::driver::{Buffer, DriverQueue, QUEUE_BYTES, QUEUE_SIZE};
use crate::virtio::transport::Taken;

const SECTOR: usize = 512;
const SECTORS: u64 = 64;

/// Guest addresses of a request's header, data and status.
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x18_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Nothing was written there.
const UNTOUCHED: u8 = 0xee;

const FLUSH_FEATURE: u32 = 1 << 9;
const NEEDS_RESET: u32 = 64;

struct Guest {
    slot: Arc<Slot<Block>>,
    slots: Slots,
    memory: GuestMemory,
    queue: DriverQueue,
    image: File,
}

impl Guest {
    fn new(read_only: bool) -> Self {
        Self::over(image(), read_only)
    }

    fn over(image: File, read_only: bool) -> Self {
        let settings = BlockSettings {
            read_only,
            identity: "a disk".into(),
            vcpus: 1,
            ..BlockSettings::default()
        };
        let block = Block::new(image.try_clone().unwrap(), &settings).unwrap();
        let slot = Arc::new(Slot::new(block).unwrap());
        let mut slots = Slots::new().unwrap();
        slots.fill(slot.clone()).unwrap();
        let guest = Self {
            slot,
            slots,
            memory: GuestMemory::new(64 << 20).unwrap(),
            queue: DriverQueue::new(QUEUE_BYTES),
            image,
        };
        guest.bring_up(FLUSH_FEATURE);
        guest
    }

    fn bring_up(&self, features: u32) {
        let [table, available, used] = self
            .queue
            .addresses()
            .map(|address| u32::try_from(address).unwrap());
        for (register, value) in [
            (VIRTIO_MMIO_STATUS, 0),
            (VIRTIO_MMIO_STATUS, 1),
            (VIRTIO_MMIO_STATUS, 3),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0),
            (VIRTIO_MMIO_DRIVER_FEATURES, features),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (VIRTIO_MMIO_STATUS, 11),
            (VIRTIO_MMIO_QUEUE_SEL, 0),
            (VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into()),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
            (VIRTIO_MMIO_QUEUE_READY, 1),
            (VIRTIO_MMIO_STATUS, 15),
        ] {
            let value = value.to_le_bytes();
            self.slot.write(register.into(), &value, self.memory.ram());
        }
    }

    fn status_register(&self) -> u32 {
        let mut value = [0; 4];
        let address = FIRST_ADDRESS.0 + u64::from(VIRTIO_MMIO_STATUS);
        self.slots.read(address, &mut value);
        u32::from_le_bytes(value)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let ram = self.memory.ram();
        ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let ram = self.memory.ram();
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Offers a request: its header, what it writes, room for what it reads.
    fn offer(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(DATA, data);
        self.put(STATUS, &[UNTOUCHED]);
        let length = u32::try_from(data.len()).unwrap();
        let mut buffers = vec![readable(HEADER, 16)];
        if length > 0 {
            buffers.push(readable(DATA, length));
        }
        if room > 0 {
            buffers.push(writable(DATA, room));
        }
        buffers.push(writable(STATUS, 1));
        self.offer_buffers(&buffers);
    }

    fn offer_buffers(&mut self, buffers: &[Buffer]) {
        self.queue.offer(self.memory.ram(), buffers);
    }

    /// Lets the device work; its status byte and what the used ring says.
    fn answer(&mut self) -> (u8, u32) {
        serve_now(&self.slot, self.memory.ram());
        let (_, length) = self.queue.used(self.memory.ram()).expect("an answer");
        (self.get(STATUS, 1)[0], length)
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> u8 {
        self.offer(kind, sector, data, room);
        self.answer().0
    }

    fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        self.request(kind, 0, &range(sector, count, flags), 0)
    }

    fn content(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.image.seek(SeekFrom::Start(0)).unwrap();
        self.image.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

fn readable(address: u64, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: false,
    }
}

fn writable(address: u64, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: true,
    }
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Sector n is full of n.
fn image() -> File {
    let mut image = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        let byte = u8::try_from(sector).unwrap();
        image.write_all(&[byte; SECTOR]).unwrap();
    }
    image
}

#[test]
fn image_without_whole_sectors_is_no_disk() {
    let image = |bytes| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Block::new(file, &BlockSettings::default())
    };
    assert!(image(512).is_ok());
    for bytes in [0, 511, 513] {
        assert!(matches!(image(bytes), Err(DiskError::Size { .. })));
    }
    let null = File::open("/dev/null").unwrap();
    let refused = Block::new(null, &BlockSettings::default());
    assert!(matches!(refused, Err(DiskError::Kind)));
}

#[test]
fn configuration_tells_size_and_limits() {
    let settings = BlockSettings {
        vcpus: 64,
        ..BlockSettings::default()
    };
    let block = Block::new(image(), &settings).unwrap();
    let config = block.config();
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[24], 3, "blocks of 4 KiB");
    assert_eq!(config[34..36], 4_u16.to_le_bytes());
    assert_eq!(block.queue_sizes().len(), 4);
}

#[test]
fn data_move_both_ways() {
    let mut guest = Guest::new(false);
    guest.offer(IN, 5, &[], 1024);
    assert_eq!(guest.answer(), (OK, 1025));
    let read = guest.get(DATA, 1024);
    assert_eq!((read[0], read[511], read[512]), (5, 5, 6));
    guest.offer(OUT, 1, &[0xaa; 1024], 0);
    assert_eq!(guest.answer(), (OK, 1));
    let content = guest.content();
    assert_eq!(content[511..513], [0, 0xaa]);
    assert_eq!(content[1535..1537], [0xaa, 3]);
    assert_eq!(guest.request(FLUSH, 0, &[], 0), OK);
}

#[test]
fn requests_in_pieces_are_whole() {
    let mut guest = Guest::new(false);
    guest.offer(IN, 0, &[], 0); // writes the header
    let _ = guest.answer();
    guest.put(STATUS, &[UNTOUCHED]);
    // Header in two pieces, data and status in one.
    guest.offer_buffers(&[
        readable(HEADER, 7),
        readable(HEADER + 7, 9),
        writable(DATA, 100),
        writable(DATA + 100, 413),
    ]);
    let (_, length) = guest.answer();
    assert_eq!(length, 513);
    assert_eq!(guest.get(DATA + 512, 1), [OK]);
}

#[test]
fn what_lies_beyond_the_end_is_refused() {
    let mut guest = Guest::new(false);
    let sector = [0; SECTOR];
    let before = guest.content();
    assert_eq!(guest.request(IN, SECTORS - 1, &[], 512), OK);
    for first in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(guest.request(IN, first, &[], 1024), IO_ERROR, "{first}");
        assert_eq!(guest.request(OUT, first, &[0; 1024], 0), IO_ERROR);
        assert_eq!(guest.range(DISCARD, first, 2, 0), IO_ERROR);
        assert_eq!(guest.range(WRITE_ZEROES, first, 2, 0), IO_ERROR);
    }
    assert_eq!(guest.request(OUT, SECTORS, &sector, 0), IO_ERROR);
    assert_eq!(guest.range(DISCARD, 0, u32::MAX, 0), IO_ERROR);
    assert_eq!(guest.content(), before);
}

#[test]
fn lengths_at_the_boundaries_are_refused() {
    let mut guest = Guest::new(false);
    for room in [0, 1, 511, 513] {
        assert_eq!(guest.request(IN, 0, &[], room), IO_ERROR, "{room}");
    }
    for length in [0, 1, 511, 513] {
        assert_eq!(guest.request(OUT, 0, &vec![1; length], 0), IO_ERROR);
    }
    for length in [0, 1, 15, 17, 32] {
        assert_eq!(guest.request(DISCARD, 0, &vec![0; length], 0), IO_ERROR);
    }
    let two = [range(0, 1, 0), range(2, 1, 0)].concat();
    assert_eq!(guest.request(DISCARD, 0, &two, 0), IO_ERROR);
    assert_eq!(guest.request(WRITE_ZEROES, 0, &two, 0), IO_ERROR);
    assert_eq!(guest.range(DISCARD, 0, 0, 0), IO_ERROR);
    for header in [0, 1, 15] {
        guest.put(STATUS, &[UNTOUCHED]);
        let mut buffers = vec![writable(STATUS, 1)];
        if header > 0 {
            buffers.insert(0, readable(HEADER, header));
        }
        guest.offer_buffers(&buffers);
        assert_eq!(guest.answer().0, IO_ERROR);
    }
}

#[test]
fn request_without_room_for_an_answer_gets_none() {
    let mut guest = Guest::new(false);
    guest.put(STATUS, &[UNTOUCHED]);
    guest.offer_buffers(&[readable(HEADER, 16)]);
    assert_eq!(guest.answer(), (UNTOUCHED, 0));
}

#[test]
fn status_outside_of_memory_breaks_the_device_until_its_reset() {
    let mut guest = Guest::new(false);
    guest.offer_buffers(&[readable(HEADER, 16), writable(1 << 40, 1)]);
    serve_now(&guest.slot, guest.memory.ram());
    assert!(guest.queue.used(guest.memory.ram()).is_none());
    assert_ne!(guest.status_register() & NEEDS_RESET, 0);
    guest.put(QUEUE_BYTES, &vec![0; usize::try_from(QUEUE_BYTES).unwrap()]);
    guest.queue = DriverQueue::new(QUEUE_BYTES);
    guest.bring_up(FLUSH_FEATURE);
    assert_eq!(guest.request(IN, 0, &[], 512), OK);
}

#[test]
fn read_only_disk_takes_no_changes() {
    let mut guest = Guest::new(true);
    let before = guest.content();
    assert_eq!(guest.request(OUT, 0, &[1; SECTOR], 0), IO_ERROR);
    assert_eq!(guest.range(DISCARD, 0, 8, 0), IO_ERROR);
    assert_eq!(guest.range(WRITE_ZEROES, 0, 8, 0), IO_ERROR);
    assert_eq!(guest.request(IN, 0, &[], 512), OK);
    assert_eq!(guest.request(FLUSH, 0, &[], 0), OK);
    assert_eq!(guest.content(), before);
}

#[test]
fn discard_gives_space_back_and_zeroes_are_zeroes() {
    let mut guest = Guest::new(false);
    let blocks = |guest: &Guest| guest.image.metadata().unwrap().blocks();
    let before = blocks(&guest);
    assert_eq!(guest.range(DISCARD, 8, 16, 0), OK);
    assert!(blocks(&guest) < before);
    assert_eq!(guest.range(WRITE_ZEROES, 1, 2, 0), OK);
    assert_eq!(guest.range(WRITE_ZEROES, 40, 8, 1), OK);
    let content = guest.content();
    assert_eq!(content.len(), SECTOR * 64);
    for (sector, bytes) in content.chunks(SECTOR).enumerate() {
        let zero = matches!(sector, 1 | 2 | 8..24 | 40..48);
        let byte = if zero {
            0
        } else {
            u8::try_from(sector).unwrap()
        };
        assert_eq!(bytes, [byte; SECTOR], "sector {sector}");
    }
    assert_eq!(guest.range(DISCARD, 0, 1, 1), UNSUPPORTED);
    assert_eq!(guest.range(WRITE_ZEROES, 0, 1, 2), UNSUPPORTED);
}

#[test]
fn identity_is_told_and_the_unknown_refused() {
    let mut guest = Guest::new(false);
    guest.offer(GET_ID, 0, &[], 20);
    assert_eq!(guest.answer(), (OK, 21));
    assert_eq!(guest.get(DATA, 8), *b"a disk\0\0");
    for kind in [2, 5, 16, u32::MAX] {
        assert_eq!(guest.request(kind, 0, &[], 512), UNSUPPORTED);
    }
}

#[test]
fn host_errors_are_io_errors_and_the_device_goes_on() {
    let mut guest = Guest::new(false);
    guest.image.set_len(10 * 512 + 100).unwrap();
    assert_eq!(guest.request(IN, 9, &[], 512), OK);
    // A part is there; nothing is there.
    assert_eq!(guest.request(IN, 10, &[], 512), IO_ERROR);
    assert_eq!(guest.request(IN, 20, &[], 512), IO_ERROR);
    assert_eq!(guest.request(IN, 0, &[], 512), OK);
    // A descriptor that cannot be written to.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let mut guest = Guest::over(File::open(file.path()).unwrap(), false);
    assert_eq!(guest.request(OUT, 0, &[1; SECTOR], 0), IO_ERROR);
    assert_eq!(guest.range(WRITE_ZEROES, 0, 1, 0), IO_ERROR);
    assert_eq!(guest.request(IN, 0, &[], 512), OK);
}

#[test]
fn without_flush_every_change_is_durable_by_itself() {
    let guest = Guest::new(false);
    let disk = guest.slot.with_device(|device| device.disk().clone());
    let extent = Extent {
        offset: 0,
        bytes: 512,
    };
    let write = || Job::new(Operation::Write(extent, Vec::new()), &disk).unwrap();
    assert!(matches!(write().call(), Call::Write { through: false, .. }));
    guest.bring_up(0);
    assert!(matches!(write().call(), Call::Write { through: true, .. }));
    let zeroes = Operation::WriteZeroes {
        extent,
        unmap: true,
    };
    let mut job = Job::new(zeroes, &disk).unwrap();
    assert_eq!(job.advance(0), Progress::Again);
    assert!(matches!(job.call(), Call::Synchronize));
    assert_eq!(job.advance(0), Progress::Done(Outcome::Ok));
}

#[test]
fn zeroes_are_written_where_the_host_cannot_make_them() {
    let guest = Guest::new(false);
    let disk = guest.slot.with_device(|device| device.disk().clone());
    let extent = Extent {
        offset: 4096,
        bytes: 3 << 20,
    };
    let zeroes = Operation::WriteZeroes {
        extent,
        unmap: false,
    };
    let mut job = Job::new(zeroes, &disk).unwrap();
    assert!(matches!(job.call(), Call::Allocate { .. }));
    assert_eq!(job.advance(-libc::EINVAL), Progress::Again);
    let mut written = 0;
    loop {
        let Call::Zeros { offset, bytes } = job.call() else {
            panic!("{:?}", job.call())
        };
        assert_eq!(offset, 4096 + written);
        // Short now and then.
        let done = bytes.min(700 << 10);
        written += done;
        assert_eq!(job.advance(-libc::EINTR), Progress::Again);
        if let Progress::Done(outcome) = job.advance(i32::try_from(done).unwrap()) {
            assert_eq!((outcome, written), (Outcome::Ok, 3 << 20));
            break;
        }
    }
    let mut job = Job::new(Operation::Discard(extent), &disk).unwrap();
    assert_eq!(
        job.advance(-libc::EOPNOTSUPP),
        Progress::Done(Outcome::Unsupported)
    );
}

#[test]
fn reset_waits_for_what_is_under_way() {
    let mut guest = Guest::new(false);
    guest.offer(IN, 0, &[], 512);
    let ram = guest.memory.ram().clone();
    let Taken::Chain(_, lease) = guest.slot.take(0, &ram, true) else {
        panic!("no request")
    };
    let (slot, memory) = (guest.slot.clone(), ram.clone());
    let (tell, told) = mpsc::channel();
    let driver = std::thread::spawn(move || {
        slot.write(VIRTIO_MMIO_STATUS.into(), &[0; 4], &memory);
        tell.send(()).unwrap();
    });
    let early = told.recv_timeout(Duration::from_millis(100));
    assert!(early.is_err(), "reset with a request under way");
    guest.slot.give_back_all(&mut vec![(lease, 513)], &ram);
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    driver.join().unwrap();
    // The memory is the driver's again: nothing was written to the ring.
    assert!(guest.queue.used(&ram).is_none());
}

#[test]
fn too_many_buffers_are_refused() {
    // More than a queue has descriptors: in a table of their own, which was
    // not negotiated either.
    const TABLE: u64 = 0x20_0000;
    let mut guest = Guest::new(false);
    let mut read = |buffers: u16| {
        guest.offer(IN, 0, &[], 512); // writes the header
        let _ = guest.answer();
        guest.put(STATUS, &[UNTOUCHED]);
        let mut table = Vec::new();
        for index in 0..buffers {
            let (address, length, flags) = match index {
                0 => (HEADER, 16, 1_u16),
                last if last + 1 == buffers => (STATUS, 1, 2),
                _ => (DATA, 512_u32, 3),
            };
            table.extend(address.to_le_bytes());
            table.extend(length.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend((index + 1).to_le_bytes());
        }
        guest.put(TABLE, &table);
        let head = guest.queue.next_head();
        let at = guest.queue.addresses()[0] + u64::from(head) * 16;
        guest.offer_buffers(&[readable(TABLE, u32::from(buffers) * 16)]);
        guest.put(at + 12, &4_u16.to_le_bytes());
        guest.answer().0
    };
    assert_eq!(read(2 + 60), OK);
    assert_eq!(read(2 + 127), IO_ERROR);
}

/// Real threads: write, read back, in several rounds with resets in between.
fn works(engine: Engine) {
    let mut guest = Guest::new(false);
    let ram = guest.memory.ram().clone();
    let failed = |error| panic!("the engine has failed: {error}");
    engine.start(guest.slot.clone(), ram, failed).unwrap();
    for round in 0..20_u64 {
        let sector = round % SECTORS;
        let data = [u8::try_from(round).unwrap(); SECTOR];
        for (kind, data, room) in [(OUT, &data[..], 0), (FLUSH, &[], 0), (IN, &[], 512)] {
            guest.offer(kind, sector, data, room);
            guest.slot.kick().write(1).unwrap();
            let start = Instant::now();
            while guest.queue.used(guest.memory.ram()).is_none() {
                assert!(start.elapsed() < Duration::from_secs(60), "no answer");
                std::thread::yield_now();
            }
            assert_eq!(guest.get(STATUS, 1), [OK]);
        }
        assert_eq!(guest.get(DATA, SECTOR), data);
        if round % 5 == 4 {
            guest.put(QUEUE_BYTES, &vec![0; usize::try_from(QUEUE_BYTES).unwrap()]);
            guest.queue = DriverQueue::new(QUEUE_BYTES);
            guest.bring_up(FLUSH_FEATURE);
        }
    }
    // The threads never end, and neither may what they use.
    std::mem::forget(guest);
}

#[test]
fn io_uring_serves_requests_over_resets() {
    let engine = Engine::new().unwrap();
    works(engine);
}

#[test]
fn threads_serve_requests_over_resets() {
    works(Engine::threads("test"));
}
