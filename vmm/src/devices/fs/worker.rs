//! A worker: a thread that takes requests from the queue and serves them.
//!
//! All workers of a device wait for the same kick, one of them is woken. Who
//! takes a request while more are waiting wakes another before it begins, for
//! its own may block.
//!
//! Forgets have a queue of their own, and nobody waits for them. So their
//! queue is looked at when there is something to do anyway, and asks for a
//! kick only when the device has been idle for a while.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use protocol::fuse::{InHeader, Opcode};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::{FromZeros, IntoBytes};

use super::device::Fs;
use super::server::Server;
use crate::memory::GuestRam;
use crate::slots::{Occupant, Slot};
use crate::virtio::queue::copy_from;
use crate::virtio::transport::Taken;

const FORGETS: usize = 0;
const REQUESTS: usize = 1;

/// The deepest call is a system call.
const STACK: usize = 128 << 10;

/// After so many milliseconds without a request the device is idle.
const IDLE: i32 = 100;

/// Starts a worker.
///
/// # Errors
///
/// When no thread or no descriptor can be had.
pub(crate) fn start(slot: Arc<Slot<Fs>>, server: Server, ram: GuestRam) -> io::Result<()> {
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
    fn run(mut self) {
        let mut idle = true;
        loop {
            let patience = if idle { -1 } else { IDLE };
            match self.poller.wait(patience, &mut [EpollEvent::default()]) {
                Ok(0) => {
                    // What comes now must be told: there may be nothing else.
                    self.forgets(true);
                    idle = true;
                    continue;
                }
                Ok(_) => idle = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            self.requests();
        }
    }

    fn requests(&mut self) {
        loop {
            self.forgets(false);
            match self.slot.take(REQUESTS, &self.ram, true) {
                Taken::Chain(chain, lease) => {
                    if self.slot.has_more(REQUESTS, &self.ram) {
                        // Fails only when it is readable already.
                        let _ = self.slot.kick().write(1);
                    }
                    let written = self.server.serve(&chain);
                    self.slot.give_back(lease, written, &self.ram);
                }
                Taken::Empty | Taken::Stopped => return,
            }
        }
    }

    fn forgets(&mut self, arm: bool) {
        while let Taken::Chain(chain, lease) = self.slot.take(FORGETS, &self.ram, arm) {
            let mut header = InHeader::new_zeroed();
            let length = copy_from(chain.readable(), header.as_mut_bytes());
            let opcode = Opcode::from_number(header.opcode);
            let written = match opcode {
                Some(opcode @ (Opcode::Forget | Opcode::BatchForget))
                    if length == size_of::<InHeader>() =>
                {
                    self.server.forget(opcode, &header, &chain);
                    0
                }
                // Anything else is served here as well; Linux sends nothing.
                _ => self.server.serve(&chain),
            };
            self.slot.give_back(lease, written, &self.ram);
        }
        if arm {
            self.server.pass_forgets_on();
        }
    }
}
