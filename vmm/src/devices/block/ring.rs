//! The io_uring engine: one thread for a disk, which waits in one place for
//! kicks and for results.
//!
//! ```text
//!  kick (eventfd) ──poll──┐
//!                         ├─▶ completions ─▶ answers, one interrupt for all
//!  image ◀── submissions ─┘        │
//!              ▲                   ▼
//!              └── take ◀── queues
//! ```

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue};

use super::engine::{Intake, Next, Work};
use super::job::Progress;
use super::patience::Patience;
use super::sys;
use crate::slots::Occupant;
use crate::sys::be_patient;
use crate::virtio::transport::Lease;

/// Requests of a disk that can be on their way at a time; the others wait in
/// their queues.
const DEPTH: usize = 128;

/// Entries of the submission queue: all requests and the poll.
const ENTRIES: u32 = 256;

/// The deepest call is a system call.
const STACK: usize = 128 << 10;

/// What the kicks' poll is called among the requests.
const KICK: u64 = u64::MAX;

/// A ring, its thread not yet running.
pub(super) struct Ring {
    ring: IoUring,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring, if the host gives one; `EOPNOTSUPP` where it lacks what is used
    /// here (multishot polls).
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        // Came with the same release as those.
        if !ring.params().is_feature_resource_tagging() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(Self { ring })
    }

    /// Starts the thread.
    pub(super) fn start(
        self,
        intake: Intake,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<()> {
        thread::Builder::new()
            .name("block".into())
            .stack_size(STACK)
            .spawn(move || {
                let Err(error) = serve(self.ring, &intake);
                failed(error);
            })?;
        Ok(())
    }
}

/// A request on its way, and what the kernel reads of it meanwhile.
struct Flight<'m> {
    work: Work<'m>,
    /// Where its current call's buffers are.
    #[expect(dead_code, reason = "the kernel may read it until the call's end")]
    vectors: Vec<libc::iovec>,
}

/// Runs until the process ends; ends itself only with a ring that does not
/// work any more.
fn serve(mut ring: IoUring, intake: &Intake) -> Result<Infallible, io::Error> {
    let mut flights = Flights::default();
    let mut done: Vec<(Lease, u32)> = Vec::with_capacity(DEPTH);
    let mut last = 0;
    let mut patience = Patience::new();
    be_patient(true);
    watch_kicks(&mut ring, intake)?;
    loop {
        let mut pause = None;
        let mut taken = 0_usize;
        while flights.has_room() {
            match intake.next(&intake.ram, &mut last) {
                Next::Work(work) => {
                    taken = taken.saturating_add(1);
                    submit(&mut ring, intake, &mut flights, work);
                }
                Next::Answered(lease, length) => done.push((lease, length)),
                Next::Wait(wait) => {
                    pause = Some(wait);
                    break;
                }
                Next::Nothing => break,
            }
            if done.len() >= DEPTH {
                break;
            }
        }
        if let Some(patient) = patience.after(taken) {
            be_patient(patient);
        }
        // What is answered already does not wait for anything.
        let want = usize::from(done.is_empty());
        wait(&ring, want, pause)?;
        let mut unwatched = false;
        let mut again = Vec::new();
        for completion in ring.completion() {
            if completion.user_data() == KICK {
                unwatched |= !cqueue::more(completion.flags());
                continue;
            }
            let Some(mut work) = flights.land(completion.user_data()) else {
                continue;
            };
            match work.job.advance(completion.result()) {
                Progress::Again => again.push(work),
                Progress::Done(outcome) => {
                    let length = work.status.answer(outcome, work.job.data());
                    done.push((work.lease, length));
                }
            }
        }
        for work in again {
            submit(&mut ring, intake, &mut flights, work);
        }
        if unwatched {
            watch_kicks(&mut ring, intake)?;
        }
        intake.slot.give_back_all(&mut done, &intake.ram);
    }
}

/// Asks to be woken by kicks, by edge: nobody has to read the counter.
fn watch_kicks(ring: &mut IoUring, intake: &Intake) -> io::Result<()> {
    let events = u32::from(libc::POLLIN.unsigned_abs());
    let entry = io_uring::opcode::PollAdd::new(Fd(intake.slot.kick().as_raw_fd()), events)
        .multi(true)
        .build()
        .user_data(KICK);
    sys::push(ring, &entry)
}

/// Puts a request's next call into the ring. There is room: fewer requests
/// than entries can be on their way, and each has one call at a time.
fn submit<'m>(ring: &mut IoUring, intake: &Intake, flights: &mut Flights<'m>, work: Work<'m>) {
    let (entry, vectors) = sys::entry(&intake.disk.file, work.job.call());
    let number = flights.start(Flight { work, vectors });
    // Full only if the kernel has taken nothing of a whole ring; then it does
    // so now.
    if sys::push(ring, &entry.clone().user_data(number)).is_err() {
        let _ = ring.submit();
        let _ = sys::push(ring, &entry.user_data(number));
    }
}

/// Submits what is in the ring and waits for `want` completions, at most so
/// long.
fn wait(ring: &IoUring, want: usize, pause: Option<Duration>) -> io::Result<()> {
    let result = match pause {
        None => ring.submit_and_wait(want),
        Some(pause) => {
            let time = io_uring::types::Timespec::from(pause);
            let arguments = io_uring::types::SubmitArgs::new().timespec(&time);
            ring.submitter().submit_with_args(want, &arguments)
        }
    };
    match result {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The requests on their way, by number.
#[derive(Default)]
struct Flights<'m> {
    all: Vec<Option<Flight<'m>>>,
    free: Vec<usize>,
    count: usize,
}

impl<'m> Flights<'m> {
    fn has_room(&self) -> bool {
        self.count < DEPTH
    }

    fn start(&mut self, flight: Flight<'m>) -> u64 {
        self.count = self.count.saturating_add(1);
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.all.push(None);
                self.all.len().saturating_sub(1)
            }
        };
        if let Some(place) = self.all.get_mut(number) {
            *place = Some(flight);
        }
        u64::try_from(number).unwrap_or(KICK)
    }

    fn land(&mut self, number: u64) -> Option<Work<'m>> {
        let number = usize::try_from(number).ok()?;
        let flight = self.all.get_mut(number)?.take()?;
        self.free.push(number);
        self.count = self.count.saturating_sub(1);
        Some(flight.work)
    }
}
