//! The directory device: any requests from the guest, in any layout, with the
//! real broker behind it or with one that lies.
//!
//! Input: a byte of choices, a liar's script if one is chosen, then
//! operations, each a byte that says what and the bytes that it needs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ::broker::Device;
use protocol::broker::Policy;
use protocol::fuse::{InHeader, OutHeader};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS};
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::fs::{FileWindow, Fs, FsFront, Served, Server};
use vmm::memory::GuestRam;
use vmm::slots::{Occupant, Slot};
use vmm::virtio::driver::{Buffer, DriverQueue, QUEUE_SIZE};
use vmm::virtio::transport::Taken;

use crate::broker::policy;
use crate::driver;
use crate::input::Input;
use crate::liar::Script;
use crate::memory::{CLEARED, with_ram};
use crate::request::Request;
use crate::share::{self, Tree};

/// Positions of the queues.
const FORGETS: usize = 0;
const REQUESTS: usize = 1;

/// Guest addresses of requests and answers.
const ASKED: u64 = 0x4000;
const ANSWERED: u64 = 0x20000;
/// Room for an answer.
const ROOMS: [u32; 16] = [
    0, 8, 15, 16, 17, 23, 24, 25, 64, 80, 144, 1024, 4096, 4097, 65536, 0x20000,
];
/// Bytes of the window, if there is one.
const WINDOW: u64 = 8 << 20;
/// Bytes of guest RAM.
const RAM: u32 = 64 << 20;

/// Runs one input.
pub fn run(data: &[u8]) {
    with_ram(|ram| {
        let _ = play(&mut Input(data), ram);
    });
}

fn play(input: &mut Input<'_>, ram: &GuestRam) -> Option<()> {
    let choices = input.u8()?;
    let tree = Tree::new();
    let policy = policy(choices);
    let broker = if choices & 2 == 0 {
        Broker::honest(&tree, policy)
    } else {
        Broker::liar(&tree, input)?
    };
    let mut guest = Guest::new(&broker, policy, choices & 4 != 0, ram);
    let _ = guest.work(input);
    drop(guest);
    broker.end();
    tree.check();
    check_descriptors();
    Some(())
}

/// What is behind the channels.
struct Broker {
    device: Option<Arc<Device>>,
    /// The front's and the worker's.
    channels: [OwnedFd; 2],
    threads: [JoinHandle<()>; 2],
}

impl Broker {
    fn honest(tree: &Tree, policy: Policy) -> Self {
        let device = tree.device(policy);
        let (front, first) = share::serve_channel(&device);
        let (worker, second) = share::serve_channel(&device);
        Self {
            device: Some(device),
            channels: [front, worker],
            threads: [first, second],
        }
    }

    fn liar(tree: &Tree, input: &mut Input<'_>) -> Option<Self> {
        let (first_script, second_script) = (Script::parse(input)?, Script::parse(input)?);
        let (front, first) = first_script.serve(tree);
        let (worker, second) = second_script.serve(tree);
        Some(Self {
            device: None,
            channels: [front, worker],
            threads: [first, second],
        })
    }

    /// The channels' other ends are closed by now.
    fn end(self) {
        drop(self.channels);
        for thread in self.threads {
            thread.join().expect("the broker has panicked");
        }
    }
}

/// What was promised about a chain.
struct Promise {
    room: u32,
    /// The request's number, where its answer cannot be overwritten.
    unique: Option<u64>,
}

struct Guest<'a> {
    slot: Slot<Fs>,
    worker: Server,
    ram: &'a GuestRam,
    queues: [DriverQueue; 2],
    promises: HashMap<u32, Promise>,
    /// Requests so far, each of which may have opened a file.
    asked: usize,
    device: Option<&'a Device>,
    /// Errors of the answers so far.
    answers: Vec<i32>,
}

impl<'a> Guest<'a> {
    /// A device that its driver has brought up.
    fn new(broker: &'a Broker, policy: Policy, windowed: bool, ram: &'a GuestRam) -> Self {
        let mut fs = Fs::new(policy);
        if windowed {
            let window = FileWindow::new(GuestAddress(1 << 32), WINDOW).unwrap();
            fs = fs.with_window(Arc::new(window));
        }
        let slot = Slot::new(fs).unwrap();
        let [front, worker] = &broker.channels;
        let server = |channel: &OwnedFd| {
            let channel = channel.try_clone().unwrap();
            slot.with_device(|device| Server::new(device, channel, policy == Policy::Shared))
        };
        let (front, worker) = (server(front), server(worker));
        slot.put_front(Box::new(FsFront::new(front)));
        let mut guest = Self {
            slot,
            worker,
            ram,
            queues: [driver::queue(0), driver::queue(1)],
            promises: HashMap::new(),
            asked: 0,
            device: broker.device.as_deref(),
            answers: Vec::new(),
        };
        guest.start();
        guest
    }

    fn start(&mut self) {
        self.queues = [driver::queue(0), driver::queue(1)];
        self.promises.clear();
        for (register, value) in driver::start(2) {
            self.write(register, value);
        }
    }

    fn write(&self, register: u32, value: u32) {
        let bytes = value.to_le_bytes();
        self.slot.write(register.into(), &bytes, self.ram);
    }

    fn work(&mut self, input: &mut Input<'_>) -> Option<()> {
        for unique in 1.. {
            let what = input.u8()?;
            match what & 0xf {
                0..=9 => {
                    let request = Request::mostly_right(input, unique)?;
                    self.ask(&request, input.u8()?, input.u8()?);
                }
                10 => {
                    let request = Request::mostly_right(input, unique)?;
                    self.forget(&request);
                }
                11 => {
                    let request = Request::raw(input)?;
                    self.ask(&request, input.u8()?, input.u8()?);
                }
                12 => self.wild(input, usize::from(what >> 4 & 1))?,
                13 => {
                    self.write(VIRTIO_MMIO_STATUS, 0);
                    let zeros = [0; CLEARED / 2];
                    self.ram.write_slice(&zeros, GuestAddress(0)).unwrap();
                    self.start();
                }
                _ => {}
            }
            self.turn();
        }
        Some(())
    }

    /// Offers a request, in the pieces that `layout` says.
    fn ask(&mut self, request: &Request, layout: u8, room: u8) {
        let unique = self.place(request);
        let mut buffers = pieces(ASKED, &request.bytes, layout & 3);
        let overlaps = layout & 4 != 0;
        let start = if overlaps { ASKED } else { ANSWERED };
        let room = ROOMS[usize::from(room & 0xf)];
        let first = if layout & 8 == 0 { room } else { room / 3 };
        let rest = room - first;
        for (address, length) in [(start, first), (start + u64::from(first), rest)] {
            if length > 0 {
                buffers.push(Buffer {
                    address,
                    length,
                    writable: true,
                });
            }
        }
        self.offer(REQUESTS, &buffers, unique.filter(|_| !overlaps));
    }

    fn forget(&mut self, request: &Request) {
        self.place(request);
        let buffers = pieces(ASKED, &request.bytes, 0);
        self.offer(FORGETS, &buffers, None);
    }

    /// Writes a request to where it is read; answers its number.
    fn place(&mut self, request: &Request) -> Option<u64> {
        let at = GuestAddress(ASKED);
        self.ram.write_slice(&request.bytes, at).unwrap();
        self.asked += 1;
        request.header().map(|header: InHeader| header.unique)
    }

    /// Buffers anywhere, of any length, over whatever lies there.
    fn wild(&mut self, input: &mut Input<'_>, queue: usize) -> Option<()> {
        let count = 1 + input.u8()? % 8;
        let mut buffers = Vec::new();
        for _ in 0..count {
            let (place, length) = (input.u16()?, input.u16()?);
            // Some as long as guest memory.
            let (address, length) = match length {
                0x8000..=0x80ff => (u64::from(place), RAM - u32::from(place)),
                _ => (u64::from(place) * 4, u32::from(length)),
            };
            buffers.push(Buffer {
                address,
                length,
                writable: place & 1 != 0,
            });
        }
        // Readable ones first, as every driver has them.
        buffers.sort_by_key(|buffer| buffer.writable);
        self.asked += 1;
        self.offer(queue, &buffers, None);
        Some(())
    }

    fn offer(&mut self, queue: usize, buffers: &[Buffer], unique: Option<u64>) {
        if buffers.is_empty() {
            return;
        }
        let driver = &mut self.queues[queue];
        let head = u32::from(driver.next_head());
        driver.offer(self.ram, buffers);
        let room = buffers
            .iter()
            .filter(|buffer| buffer.writable)
            .fold(0_u32, |sum, buffer| sum.saturating_add(buffer.length));
        if queue == REQUESTS {
            self.promises.insert(head, Promise { room, unique });
        }
    }

    /// The kick, what workers do after it, and the driver's look at it.
    fn turn(&mut self) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        while let Taken::Chain(chain, lease) = self.slot.take(REQUESTS, self.ram, true) {
            let written = match self.worker.serve(&chain) {
                Served::Done(written) => written,
                Served::Waits => self.worker.give_up(&chain),
            };
            self.slot.give_back(lease, written, self.ram);
        }
        while let Some((head, length)) = self.queues[REQUESTS].used(self.ram) {
            self.check(head, length);
        }
        while self.queues[FORGETS].used(self.ram).is_some() {}
        if let Some(device) = self.device {
            share::check_census(device, self.asked);
        }
    }

    fn check(&mut self, head: u32, length: u32) {
        assert!(head < u32::from(QUEUE_SIZE));
        // A chain that has overwritten its own ring is offered many times.
        let Some(promise) = self.promises.get(&head) else {
            return;
        };
        assert!(length <= promise.room, "more than there is room for");
        // Only an honest broker's answers are as they should be.
        let (Some(unique), Some(_)) = (promise.unique, self.device) else {
            return;
        };
        if length == 0 {
            return;
        }
        let header: [u8; size_of::<OutHeader>()] =
            self.ram.read_obj(GuestAddress(ANSWERED)).unwrap();
        let header: OutHeader = zerocopy::transmute!(header);
        assert_eq!(header.len, length, "a lie in the answer's length");
        assert!((-4095..=0).contains(&header.error));
        // Without the outer form of a request it has no number.
        assert!(header.unique == unique || header.unique == 0);
        self.answers.push(-header.error);
    }
}

/// A request in one, two or more buffers.
fn pieces(start: u64, bytes: &[u8], cuts: u8) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut at = 0;
    for cut in 0..=usize::from(cuts) {
        let left = bytes.len() - at;
        // The last takes all; those before it end within header and names.
        let length = if cut == usize::from(cuts) {
            left
        } else {
            left.min(13 + 16 * cut)
        };
        if length > 0 {
            buffers.push(Buffer {
                address: start + at as u64,
                length: u32::try_from(length).unwrap(),
                writable: false,
            });
        }
        at += length;
    }
    buffers
}

/// Asserts that runs leave no descriptor open. Only in the fuzzer: there no
/// other test has some.
fn check_descriptors() {
    static FIRST: AtomicUsize = AtomicUsize::new(0);
    if cfg!(fuzzing) {
        let open = share::open_descriptors();
        let first = FIRST.load(Ordering::Relaxed);
        if first == 0 {
            FIRST.store(open, Ordering::Relaxed);
        } else {
            assert!(open <= first + 8, "{open} descriptors, once {first}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus is only worth something if well-formed input gets through.
    #[test]
    fn names_and_data_reach_the_guest() {
        with_ram(|ram| {
            let tree = Tree::new();
            let broker = Broker::honest(&tree, Policy::Exclusive);
            let mut guest = Guest::new(&broker, Policy::Exclusive, false, ram);
            // Share 0 of the root, `file` in it, 7 bytes of that.
            let mut read = vec![0, 13, 3, 0, 24];
            read.extend([0_u64, 0, 7].map(u64::to_le_bytes).concat());
            let seed = [
                [0, 0, 1, 0, 0, 0, 0, 10].as_slice(),
                &[0, 0, 2, 0, 0, 1, 1, 10],
                &read,
                &[2, 12],
            ];
            guest.work(&mut Input(&seed.concat()));
            assert_eq!(guest.answers, [0, 0, 0]);
            let mut data = [0; 7];
            let behind = GuestAddress(ANSWERED + 16);
            ram.read_slice(&mut data, behind).unwrap();
            assert_eq!(&data, b"content");
            drop(guest);
            broker.end();
            tree.check();
        });
    }
}
