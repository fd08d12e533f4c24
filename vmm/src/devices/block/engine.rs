//! What performs a disk's requests, and where both engines get them from.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::control::BlockEngine;

use super::device::{Block, Disk};
use super::job::Job;
use super::request::{BadRequest, BlockRequest, Status};
use super::ring::Ring;
use super::threads;
use crate::memory::GuestRam;
use crate::slots::Slot;
use crate::virtio::transport::{Lease, Taken};

/// An engine for one disk, not yet running.
#[derive(Debug)]
pub struct Engine(Kind);

#[derive(Debug)]
enum Kind {
    Ring(Box<Ring>),
    Threads(String),
}

impl Engine {
    /// The best engine that this host allows.
    ///
    /// # Errors
    ///
    /// Whatever io_uring fails with but a refusal.
    pub fn new() -> io::Result<Self> {
        let kind = match Ring::new() {
            Ok(ring) => Kind::Ring(Box::new(ring)),
            Err(error) => Kind::Threads(refusal(error)?),
        };
        Ok(Self(kind))
    }

    /// The engine for hosts that refuse io_uring, for `reason`.
    #[must_use]
    pub fn threads(reason: &str) -> Self {
        Self(Kind::Threads(reason.into()))
    }

    /// Which one it is.
    #[must_use]
    pub fn describe(&self) -> BlockEngine {
        match &self.0 {
            Kind::Ring(_) => BlockEngine::IoUring,
            Kind::Threads(reason) => BlockEngine::Threads {
                reason: reason.clone(),
            },
        }
    }

    /// Lets it work for the device in `slot`, until the process ends; or until
    /// it cannot go on, which `failed` is told.
    ///
    /// # Errors
    ///
    /// When no thread or no descriptor can be had.
    pub fn start(
        self,
        slot: Arc<Slot<Block>>,
        ram: GuestRam,
        failed: impl Fn(io::Error) + Clone + Send + 'static,
    ) -> io::Result<()> {
        let intake = Intake::new(slot, ram);
        match self.0 {
            Kind::Ring(ring) => ring.start(intake, failed),
            Kind::Threads(_) => threads::start(&intake, &failed),
        }
    }
}

/// Why there is no io_uring, where that is the host's decision.
fn refusal(error: io::Error) -> io::Result<String> {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Ok("this host's kernel has no io_uring".into()),
        Some(libc::EPERM | libc::EACCES) => {
            Ok("this host forbids io_uring (sysctl kernel.io_uring_disabled, or seccomp)".into())
        }
        Some(libc::EOPNOTSUPP) => Ok("this host's kernel is older than Linux 5.13".into()),
        // Before Linux 5.12 it is locked memory.
        Some(libc::ENOMEM) => Ok("io_uring needs more locked memory (ulimit -l)".into()),
        _ => Err(error),
    }
}

/// Where requests come from and go to.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    pub(super) slot: Arc<Slot<Block>>,
    pub(super) ram: GuestRam,
    pub(super) disk: Arc<Disk>,
    queues: usize,
    unlimited: bool,
}

/// What there is to do.
#[derive(Debug)]
pub(super) enum Next<'m> {
    /// A request.
    Work(Work<'m>),
    /// A request that is answered already.
    Answered(Lease, u32),
    /// One that has to wait for so long, if there is any.
    Wait(Duration),
    /// Nothing, until the next kick.
    Nothing,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Work<'m> {
    pub(super) job: Job<'m>,
    pub(super) status: Status<'m>,
    pub(super) lease: Lease,
}

impl Intake {
    pub(super) fn new(slot: Arc<Slot<Block>>, ram: GuestRam) -> Self {
        let (disk, queues) = slot.with_device(|device| (device.disk().clone(), device.queues()));
        let unlimited = disk.limiter().is_unlimited();
        Self {
            slot,
            ram,
            disk,
            queues,
            unlimited,
        }
    }

    /// The next request; of all queues in turn, beginning behind `last`, the
    /// queue that gave one last.
    pub(super) fn next<'m>(&self, ram: &'m GuestRam, last: &mut usize) -> Next<'m> {
        if !self.unlimited
            && let Some(wait) = self.disk.limiter().wait(Instant::now())
        {
            return Next::Wait(wait);
        }
        for turn in 1..=self.queues {
            let index = last
                .saturating_add(turn)
                .checked_rem(self.queues)
                .unwrap_or(0);
            if let Taken::Chain(chain, lease) = self.slot.take(index, ram, true) {
                *last = index;
                return self.accept(BlockRequest::parse(&chain, self.disk.shape), lease);
            }
        }
        Next::Nothing
    }

    fn accept<'m>(
        &self,
        request: Result<BlockRequest<'m>, BadRequest<'m>>,
        lease: Lease,
    ) -> Next<'m> {
        let moved = match &request {
            Ok(request) => request.operation.moves(),
            Err(_) => 0,
        };
        if !self.unlimited {
            self.disk.limiter().charge(moved, Instant::now());
        }
        match request {
            Ok(BlockRequest { operation, status }) => match Job::new(operation, &self.disk) {
                Ok(job) => Next::Work(Work { job, status, lease }),
                Err((outcome, data)) => Next::Answered(lease, status.answer(outcome, data)),
            },
            Err(BadRequest::Refused(status, outcome)) => {
                Next::Answered(lease, status.answer(outcome, 0))
            }
            Err(BadRequest::NoStatus) => Next::Answered(lease, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_lead_to_threads() {
        let error = |number| refusal(io::Error::from_raw_os_error(number));
        assert!(error(libc::EPERM).unwrap().contains("forbids"));
        assert!(error(libc::ENOSYS).is_ok());
        assert!(error(libc::EMFILE).is_err());
    }
}
