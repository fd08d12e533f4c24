//! The engine without io_uring: a few threads, each with one request at a
//! time.
//!
//! All wait for the same kick, one of them is woken. Who takes a request while
//! more may be waiting wakes another before it begins, for its own may block.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::engine::{Intake, Next};
use super::job::Progress;
use super::sys;
use crate::slots::Occupant;

/// Requests of a disk that can be on their way at a time.
const THREADS: usize = 4;

/// The deepest call is a system call.
const STACK: usize = 128 << 10;

/// Starts the threads.
pub(super) fn start(
    intake: &Intake,
    failed: &(impl Fn(io::Error) + Clone + Send + 'static),
) -> io::Result<()> {
    for _ in 0..THREADS {
        let poller = Epoll::new()?;
        // Exclusive and by edge, as the workers of a directory device do it.
        let interest = EventSet::IN | EventSet::EXCLUSIVE | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, 0);
        let kick = intake.slot.kick().as_raw_fd();
        poller.ctl(ControlOperation::Add, kick, event)?;
        let (intake, failed) = (intake.clone(), failed.clone());
        thread::Builder::new()
            .name("block".into())
            .stack_size(STACK)
            .spawn(move || failed(run(&intake, &poller)))?;
    }
    Ok(())
}

/// Ends when the process does, or says why it cannot go on.
fn run(intake: &Intake, poller: &Epoll) -> io::Error {
    let mut last = 0;
    let mut patience = -1;
    loop {
        match poller.wait(patience, &mut [EpollEvent::default()]) {
            Ok(_) => patience = milliseconds(work(intake, &mut last)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error,
        }
    }
}

/// Serves what there is; says how long to wait for more, `None`: until the
/// next kick.
fn work(intake: &Intake, last: &mut usize) -> Option<Duration> {
    loop {
        let (lease, length) = match intake.next(&intake.ram, last) {
            Next::Nothing => return None,
            Next::Wait(wait) => return Some(wait),
            Next::Answered(lease, length) => (lease, length),
            Next::Work(mut work) => {
                // Fails only when it is readable already.
                let _ = intake.slot.kick().write(1);
                let outcome = loop {
                    let result = sys::perform(&intake.disk.file, work.job.call());
                    if let Progress::Done(outcome) = work.job.advance(result) {
                        break outcome;
                    }
                };
                (work.lease, work.status.answer(outcome, work.job.data()))
            }
        };
        intake.slot.give_back(lease, length, &intake.ram);
    }
}

/// Serves what there is on the calling thread, for tests.
#[cfg(any(test, feature = "test-utils"))]
pub fn serve_now(
    slot: &std::sync::Arc<crate::slots::Slot<super::Block>>,
    ram: &crate::memory::GuestRam,
) {
    let intake = Intake::new(slot.clone(), ram.clone());
    let _ = work(&intake, &mut 0);
}

/// For epoll; rounded up, so that the time is over when it returns.
fn milliseconds(wait: Option<Duration>) -> i32 {
    wait.map_or(-1, |wait| {
        i32::try_from(wait.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    })
}
