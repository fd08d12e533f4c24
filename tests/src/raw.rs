//! A guest that speaks FUSE by itself, to the real directory device of the
//! VMM, behind which is the real broker in its jail.
//!
//! ```text
//!  RawGuest ──virtqueue──▶ Fs device, front, workers ──channels──▶ nerite-fs
//! ```
//!
//! No kernel stands between it and the device, so it can say what no kernel
//! would.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::broker::Policy;
use protocol::fuse::{EntryOut, InHeader, InitIn, Opcode, OutHeader, ROOT, ReadIn};
use shim::assets::Assets;
use shim::broker::{Broker, FsDevice, SharedTree};
use tokio::runtime::Runtime;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::fs::{self as device, FileWindow, Fs, FsFront, Server};
use vmm::memory::GuestMemory;
use vmm::slots::{Occupant, Slot};
use vmm::virtio::driver::{Buffer, DriverQueue, QUEUE_BYTES, QUEUE_SIZE};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the device's window.
pub const WINDOW: u64 = 16 << 20;

/// Bytes of the header of a request.
pub const IN_HEADER: usize = size_of::<InHeader>();

/// Where requests and answers lie in guest memory.
const ASKED: u64 = 1 << 20;
const ANSWERED: u64 = 16 << 20;
/// Ordinary room for an answer.
const ROOM: u32 = (1 << 20) + 4096;
/// How long any request may take, in emulation and under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running broker with the processes and threads around it.
#[derive(Debug)]
pub struct Shared {
    broker: Broker,
    /// What the broker's socket is registered with.
    runtime: Runtime,
}

impl Shared {
    /// Shares `trees` with guests of `memory` bytes each; one guest for each
    /// policy, as the VMM has one device for each.
    ///
    /// # Panics
    ///
    /// When there is no `nerite-fs` beside the tests, or it cannot start.
    #[must_use]
    pub fn start(trees: &[SharedTree], memory: u64) -> (Self, Vec<RawGuest>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let program = Assets::locate().unwrap().broker;
        let started = runtime.block_on(async { Broker::start(&program, trees, memory) });
        let (broker, devices) = started.unwrap();
        let shared = Self { broker, runtime };
        (shared, devices.fs.into_iter().map(RawGuest::new).collect())
    }

    /// Resident memory of the broker, in bytes.
    ///
    /// # Panics
    ///
    /// When it is gone.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.broker.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.expect("the broker has ended").trim();
        let kilobytes: u64 = kilobytes.trim_end_matches(" kB").parse().unwrap();
        kilobytes << 10
    }

    /// Open descriptors of the broker.
    ///
    /// # Panics
    ///
    /// When it is gone.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let list = format!("/proc/{}/fd", self.broker.id());
        fs::read_dir(list).unwrap().count()
    }
}

impl Drop for Shared {
    /// Leaves no zombie for other tests to find.
    fn drop(&mut self) {
        let id = i32::try_from(self.broker.id()).expect("a process id");
        // Fails when it is dead already.
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        self.runtime.block_on(self.broker.ended());
    }
}

/// The guest.
#[derive(Debug)]
pub struct RawGuest {
    /// For ever, as the workers' threads are, which end with the process.
    memory: &'static GuestMemory,
    slot: Arc<Slot<Fs>>,
    queues: [DriverQueue; 2],
    unique: u64,
}

impl RawGuest {
    fn new(shared: FsDevice) -> Self {
        let memory: &'static _ = Box::leak(Box::new(GuestMemory::new(64 << 20).unwrap()));
        let window = FileWindow::new(GuestAddress(1 << 32), WINDOW).unwrap();
        let fs = Fs::new(shared.policy).with_window(Arc::new(window));
        let slot = Arc::new(Slot::new(fs).unwrap());
        let server = |channel: OwnedFd| {
            slot.with_device(|fs| Server::new(fs, channel, shared.policy == Policy::Shared))
        };
        let mut servers: Vec<_> = shared.channels.into_iter().map(server).collect();
        let first = servers.pop().expect("a channel");
        slot.put_front(Box::new(FsFront::new(first)));
        for server in servers {
            device::start(Arc::clone(&slot), server, memory.ram().clone()).unwrap();
        }
        let mut guest = Self {
            memory,
            slot,
            queues: [DriverQueue::new(0), DriverQueue::new(QUEUE_BYTES)],
            unique: 0,
        };
        guest.start();
        guest
    }

    /// Brings the device up and greets the file server, which forgets
    /// whatever it knew.
    fn start(&mut self) {
        let mut writes = vec![
            (VIRTIO_MMIO_STATUS, 3),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (VIRTIO_MMIO_STATUS, 11),
        ];
        for (index, queue) in (0..).zip(&self.queues) {
            let [table, available, used] = queue
                .addresses()
                .map(|address| u32::try_from(address).unwrap());
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
        for (register, value) in writes {
            self.write(register, value);
        }
        self.greet();
    }

    /// INIT: whatever the file server knew of this guest, it forgets.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn greet(&mut self) {
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 65536,
            flags: u32::MAX,
            flags2: u32::MAX,
            ..InitIn::default()
        };
        self.ask(Opcode::Init, ROOT, init.as_bytes()).unwrap();
    }

    fn write(&self, register: u32, value: u32) {
        let bytes = value.to_le_bytes();
        self.slot.write(register.into(), &bytes, self.memory.ram());
    }

    /// Sends bytes as they are on queue `queue`, with `room` for an answer;
    /// answers what was written there.
    ///
    /// # Panics
    ///
    /// When the chain does not come back, or with more than there is room for.
    pub fn send(&mut self, queue: usize, bytes: &[u8], room: u32) -> Vec<u8> {
        let ram = self.memory.ram();
        ram.write_slice(bytes, GuestAddress(ASKED)).unwrap();
        let asked = Buffer {
            address: ASKED,
            length: u32::try_from(bytes.len()).unwrap(),
            writable: false,
        };
        let answered = Buffer {
            address: ANSWERED,
            length: room,
            writable: true,
        };
        let chain = [asked, answered];
        let chain = if room == 0 { &chain[..1] } else { &chain[..] };
        let head = u32::from(self.queues[queue].next_head());
        self.queues[queue].offer(ram, chain);
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
        let begin = Instant::now();
        let (returned, length) = loop {
            if let Some(used) = self.queues[queue].used(self.memory.ram()) {
                break used;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer to {bytes:x?}");
            std::thread::yield_now();
        };
        assert_eq!(returned, head);
        assert!(length <= room, "{length} bytes in room for {room}");
        let mut answer = vec![0; usize::try_from(length).unwrap()];
        let ram = self.memory.ram();
        ram.read_slice(&mut answer, GuestAddress(ANSWERED)).unwrap();
        answer
    }

    /// A request with a right header; answers the body or the error number.
    ///
    /// # Errors
    ///
    /// The file server's.
    ///
    /// # Panics
    ///
    /// When the answer has not the form of one.
    pub fn ask(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.ask_number(opcode as u32, node, body, ROOM)
    }

    /// As [`RawGuest::ask`] of any number, with `room` for the answer.
    ///
    /// # Errors
    ///
    /// The file server's; 0 when it had no room to say anything.
    ///
    /// # Panics
    ///
    /// When the answer has not the form of one.
    pub fn ask_number(
        &mut self,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let header = InHeader {
            len: u32::try_from(IN_HEADER + body.len()).unwrap(),
            opcode,
            unique: self.unique,
            nodeid: node,
            pid: 1,
            ..InHeader::default()
        };
        let answer = self.send(1, &[header.as_bytes(), body].concat(), room);
        if answer.is_empty() {
            return Err(0);
        }
        let (header, body) = OutHeader::read_from_prefix(&answer).expect("half a header");
        assert_eq!(usize::try_from(header.len), Ok(answer.len()));
        assert_eq!(header.unique, self.unique);
        assert!((-4095..=0).contains(&header.error), "{header:?}");
        match header.error {
            0 => Ok(body.to_vec()),
            error => Err(-error),
        }
    }

    /// A request without an answer, on the queue for those.
    pub fn tell(&mut self, opcode: Opcode, node: u64, body: &[u8]) {
        let header = InHeader {
            len: u32::try_from(IN_HEADER + body.len()).unwrap(),
            opcode: opcode as u32,
            nodeid: node,
            ..InHeader::default()
        };
        self.send(0, &[header.as_bytes(), body].concat(), 0);
    }

    /// Looks a name up; `Ok(None)` if there is nothing.
    ///
    /// # Errors
    ///
    /// The file server's.
    ///
    /// # Panics
    ///
    /// When the answer names no entry.
    pub fn look_up(&mut self, node: u64, name: &[u8]) -> Result<Option<u64>, i32> {
        let answer = self.ask(Opcode::Lookup, node, &[name, b"\0"].concat())?;
        let (entry, _) = EntryOut::read_from_prefix(&answer).expect("an entry");
        Ok((entry.nodeid != 0).then_some(entry.nodeid))
    }

    /// The root of share `number`.
    ///
    /// # Panics
    ///
    /// When there is no such share.
    pub fn share(&mut self, number: u32) -> u64 {
        let name = number.to_string();
        self.look_up(ROOT, name.as_bytes()).unwrap().unwrap()
    }

    /// Reads from a node's data.
    ///
    /// # Errors
    ///
    /// The file server's.
    pub fn read(&mut self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let read = ReadIn {
            offset,
            size,
            ..ReadIn::default()
        };
        self.ask(Opcode::Read, node, read.as_bytes())
    }

    /// Resets the device, then brings it up again.
    pub fn restart(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        let ram = self.memory.ram();
        for at in (0..2 * QUEUE_BYTES).step_by(8) {
            ram.write_obj(0_u64, GuestAddress(at)).unwrap();
        }
        self.queues = [DriverQueue::new(0), DriverQueue::new(QUEUE_BYTES)];
        self.start();
    }
}
