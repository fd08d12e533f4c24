//! Requests served on the processor that brings them.
//!
//! The guest mostly has one request on its way and waits for it. A thread that
//! takes it costs two switches between threads, and the processor falls idle
//! and is woken meanwhile; served here, the answer is there when the guest
//! goes on. What is long, or may wait for a disk for long, is left to the
//! workers.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Mutex;

use super::device::{Fs, REQUESTS};
use super::server::{Served, Server, is_quick};
use crate::memory::GuestRam;
use crate::slots::{Front, Left, Slot};
use crate::virtio::transport::Taken;

/// Requests that one kick serves, so that other processors' requests do not
/// keep this one from its guest.
const BATCH: usize = 32;

/// The front of a directory device.
#[derive(Debug)]
pub struct FsFront {
    server: Mutex<Server>,
}

impl FsFront {
    /// A front that asks the broker through `server`'s channel.
    #[must_use]
    pub fn new(server: Server) -> Self {
        Self {
            server: Mutex::new(server),
        }
    }
}

impl Front<Fs> for FsFront {
    fn serve(&self, slot: &Slot<Fs>, ram: &GuestRam) -> Left {
        // Another processor is at it: the workers are free to help.
        let Ok(server) = self.server.try_lock() else {
            return Left::Work;
        };
        let mut first = false;
        for _ in 0..BATCH {
            first |= server.take_forgets(slot, ram, false);
            match slot.take_if(REQUESTS, ram, true, is_quick) {
                Taken::Chain(chain, lease) => {
                    // Nothing that is quick waits for a lock.
                    let written = match server.serve(&chain) {
                        Served::Done(written) => written,
                        Served::Waits => server.give_up(&chain),
                    };
                    slot.give_back(lease, written, ram);
                }
                Taken::Empty | Taken::Stopped if first => return Left::Work,
                Taken::Empty | Taken::Stopped => return Left::Nothing,
                Taken::Refused => return Left::Work,
            }
        }
        Left::Work
    }
}
