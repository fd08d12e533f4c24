//! A worker: a thread that takes requests from the queue and serves them.
//!
//! All workers of a device wait for the same kick, one of them is woken. Who
//! takes a request while more are waiting wakes another before it begins, for
//! its own may block.
//!
//! Forgets have a queue of their own, and nobody waits for them. While the
//! device is busy it asks for no kicks there: the queue is looked at with each
//! request, and by a worker now and then until there is nothing more.
//!
//! A request that waits for a lock stays with its worker, which goes on with
//! others meanwhile.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Fs, REQUESTS};
use super::server::{Served, Server};
use super::waits::MOST;
use crate::memory::GuestRam;
use crate::slots::{Occupant, Slot};
use crate::virtio::Chain;
use crate::virtio::transport::{Lease, Taken};

/// The deepest call is a system call.
const STACK: usize = 128 << 10;

/// Milliseconds between two looks at what has been forgotten.
const NOW_AND_THEN: i32 = 20;

/// Milliseconds between the first two looks at a lock that somebody has; the
/// time doubles.
const SOON: i32 = 1;

/// And the longest: who waits for long can wait for this.
const LATE: i32 = 64;

/// Which of a worker's events.
const KICK: u64 = 0;
const BELL: u64 = 1;

/// Starts a worker.
///
/// # Errors
///
/// When no thread or no descriptor can be had.
pub fn start(slot: Arc<Slot<Fs>>, server: Server, ram: GuestRam) -> io::Result<()> {
    let poller = Epoll::new()?;
    // Exclusive: a kick wakes one of those that wait. By edge: whoever comes to
    // wait later is not woken for the same kick, and nobody has to read it.
    let interest = EventSet::IN | EventSet::EXCLUSIVE | EventSet::EDGE_TRIGGERED;
    let event = EpollEvent::new(interest, KICK);
    poller.ctl(ControlOperation::Add, slot.kick().as_raw_fd(), event)?;
    let bell = match server.locks() {
        Some(locks) => {
            let bell = locks.waits().join()?;
            let event = EpollEvent::new(EventSet::IN, BELL);
            poller.ctl(ControlOperation::Add, bell.as_raw_fd(), event)?;
            Some(bell)
        }
        None => None,
    };
    let worker = Worker {
        slot,
        server,
        ram,
        poller,
        bell,
    };
    thread::Builder::new()
        .name("fs".into())
        .stack_size(STACK)
        .spawn(move || worker.run())?;
    Ok(())
}

struct Worker {
    slot: Arc<Slot<Fs>>,
    server: Server,
    ram: GuestRam,
    poller: Epoll,
    /// Rung when a lock may be had.
    bell: Option<Arc<EventFd>>,
}

/// The requests that wait for locks, and when to try them again.
struct Waiting<'m> {
    requests: Vec<(Chain<'m>, Lease)>,
    delay: i32,
    tried: Instant,
}

impl Waiting<'_> {
    fn is_due(&self) -> bool {
        let delay = Duration::from_millis(u64::from(self.delay.unsigned_abs()));
        !self.requests.is_empty() && self.tried.elapsed() >= delay
    }
}

impl Worker {
    /// Ends when the event loop's process does.
    fn run(self) {
        let mut idle = true;
        let mut waiting = Waiting {
            requests: Vec::new(),
            delay: SOON,
            tried: Instant::now(),
        };
        loop {
            let mut patience = if idle { -1 } else { NOW_AND_THEN };
            if !waiting.requests.is_empty() {
                patience = waiting.delay;
            }
            let mut events = [EpollEvent::default(); 2];
            match self.poller.wait(patience, &mut events) {
                Ok(0) => {
                    idle = self.is_quiet();
                    waiting.delay = waiting.delay.saturating_mul(2).min(LATE);
                }
                Ok(count) => {
                    let mut events = events.iter().take(count);
                    if events.any(|event| event.data() == BELL)
                        && let Some(bell) = &self.bell
                    {
                        // Before the look, so that no ringing is lost.
                        let _ = bell.read();
                        waiting.delay = SOON;
                    }
                    idle = false;
                    self.requests(&mut waiting);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
            self.try_again(&mut waiting);
        }
    }

    fn requests<'m>(&'m self, waiting: &mut Waiting<'m>) {
        loop {
            self.server.take_forgets(&self.slot, &self.ram, false);
            match self.slot.take(REQUESTS, &self.ram, true) {
                Taken::Chain(chain, lease) => {
                    if self.slot.has_more(REQUESTS, &self.ram) {
                        // Fails only when it is readable already.
                        let _ = self.slot.kick().write(1);
                    }
                    match self.server.serve(&chain) {
                        Served::Done(written) => self.slot.give_back(lease, written, &self.ram),
                        // The same request any number of times: nothing that a
                        // kernel does.
                        Served::Waits if waiting.requests.len() >= MOST => {
                            let written = self.server.give_up(&chain);
                            self.slot.give_back(lease, written, &self.ram);
                        }
                        Served::Waits => {
                            waiting.requests.push((chain, lease));
                            waiting.delay = SOON;
                        }
                    }
                    if waiting.is_due() {
                        self.try_again(waiting);
                    }
                }
                Taken::Refused | Taken::Empty | Taken::Stopped => return,
            }
        }
    }

    fn try_again<'m>(&'m self, waiting: &mut Waiting<'m>) {
        if waiting.requests.is_empty() {
            return;
        }
        waiting.tried = Instant::now();
        for (chain, lease) in std::mem::take(&mut waiting.requests) {
            match self.server.serve(&chain) {
                Served::Done(written) => self.slot.give_back(lease, written, &self.ram),
                Served::Waits => waiting.requests.push((chain, lease)),
            }
        }
    }

    /// Passes on what has been forgotten. Where that was nothing, the next
    /// forget is told by a kick, and nobody has to look until then.
    fn is_quiet(&self) -> bool {
        self.server.take_forgets(&self.slot, &self.ram, false);
        if self.server.pass_forgets_on() {
            return false;
        }
        !self.server.take_forgets(&self.slot, &self.ram, true)
    }
}
