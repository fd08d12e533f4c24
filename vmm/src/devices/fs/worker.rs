//! A worker: a thread that takes requests from the queue and serves them.
//!
//! All workers of a device wait for the same kick, one of them is woken. Who
//! takes a request while more are waiting wakes another before it begins, for
//! its own may block.
//!
//! Forgets have a queue of their own, and nobody waits for them. While the
//! device is busy it asks for no kicks there: the queue is looked at with each
//! request, and by a worker now and then until there is nothing more.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{Fs, REQUESTS};
use super::server::Server;
use crate::memory::GuestRam;
use crate::slots::{Occupant, Slot};
use crate::virtio::transport::Taken;

/// The deepest call is a system call.
const STACK: usize = 128 << 10;

/// Milliseconds between two looks at what has been forgotten.
const NOW_AND_THEN: i32 = 20;

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
    let event = EpollEvent::new(interest, 0);
    poller.ctl(ControlOperation::Add, slot.kick().as_raw_fd(), event)?;
    let worker = Worker {
        slot,
        server,
        ram,
        poller,
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
}

impl Worker {
    /// Ends when the event loop's process does.
    fn run(self) {
        let mut idle = true;
        loop {
            let patience = if idle { -1 } else { NOW_AND_THEN };
            match self.poller.wait(patience, &mut [EpollEvent::default()]) {
                Ok(0) => idle = self.is_quiet(),
                Ok(_) => {
                    idle = false;
                    self.requests();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn requests(&self) {
        loop {
            self.server.take_forgets(&self.slot, &self.ram, false);
            match self.slot.take(REQUESTS, &self.ram, true) {
                Taken::Chain(chain, lease) => {
                    if self.slot.has_more(REQUESTS, &self.ram) {
                        // Fails only when it is readable already.
                        let _ = self.slot.kick().write(1);
                    }
                    let written = self.server.serve(&chain);
                    self.slot.give_back(lease, written, &self.ram);
                }
                Taken::Refused | Taken::Empty | Taken::Stopped => return,
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
