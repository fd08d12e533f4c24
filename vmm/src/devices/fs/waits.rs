//! Requests that wait for a lock.
//!
//! A worker keeps them and tries them again: when something has been unlocked
//! through this device, at once; and now and then, for a lock that is held
//! outside of the guest ends without a word.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::locks::Key;
use super::ranges::Range;

/// Requests that may wait at a time. Each takes three descriptors of the queue's
/// 1024, and the largest write, after which a lock may be given back, 260.
pub(super) const MOST: usize = 192;

/// Interrupts kept that came before what they interrupt has begun to wait.
const MOST_EARLY: usize = 64;

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// The request.
    pub(super) unique: u64,
    pub(super) key: Key,
    pub(super) range: Range,
    pub(super) write: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(Wait, Interrupted)>,
    early: VecDeque<u64>,
}

type Interrupted = bool;

/// The waiting requests of a device.
#[derive(Debug, Default)]
pub(super) struct Waits {
    state: Mutex<State>,
    /// The driver is about to go: nothing waits.
    over: AtomicBool,
    workers: Mutex<Vec<Arc<EventFd>>>,
}

impl Waits {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Arc<EventFd>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker; what it gets becomes readable when its requests are to
    /// be tried again.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub(super) fn join(&self) -> io::Result<Arc<EventFd>> {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        self.workers().push(Arc::clone(&bell));
        Ok(bell)
    }

    /// Has all be tried again.
    pub(super) fn look_again(&self) {
        if !self.state().waiting.is_empty() {
            self.ring();
        }
    }

    fn ring(&self) {
        for bell in self.workers().iter() {
            // Fails only when it is readable already.
            let _ = bell.write(1);
        }
    }

    /// Notes that a request waits, or still does.
    ///
    /// # Errors
    ///
    /// `EINTR`, `ENOLCK`; it waits no more then.
    pub(super) fn begin(&self, wait: Wait) -> io::Result<()> {
        let mut state = self.state();
        let position = state.position(wait.unique);
        let early = state.early.iter().position(|one| *one == wait.unique);
        let interrupted = position
            .and_then(|position| state.waiting.get(position))
            .is_some_and(|(_, interrupted)| *interrupted);
        if interrupted || early.is_some() || self.over.load(Ordering::Relaxed) {
            early.map(|early| state.early.remove(early));
            state.end(wait.unique);
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        if position.is_none() {
            if state.waiting.len() >= MOST {
                return Err(io::Error::from_raw_os_error(libc::ENOLCK));
            }
            state.waiting.push((wait, false));
        }
        Ok(())
    }

    /// A request waits no more.
    pub(super) fn end(&self, unique: u64) {
        self.state().end(unique);
    }

    /// The guest's program has got a signal.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.state();
        let position = state.position(unique);
        if let Some((_, interrupted)) = position.and_then(|at| state.waiting.get_mut(at)) {
            *interrupted = true;
            drop(state);
            self.ring();
            return;
        }
        if state.early.len() >= MOST_EARLY {
            state.early.pop_front();
        }
        state.early.push_back(unique);
    }

    /// What an owner waits for.
    pub(super) fn of_owner(&self, owner: u64) -> Option<Wait> {
        let state = self.state();
        let mut waiting = state.waiting.iter().map(|(wait, _)| *wait);
        waiting.find(|wait| wait.key.owner == owner && !wait.key.whole)
    }

    /// Ends all waiting, until [`Waits::go_on`].
    pub(super) fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        *self.state() = State::default();
    }

    /// There is another driver: things may wait.
    pub(super) fn go_on(&self) {
        self.over.store(false, Ordering::Relaxed);
    }
}

impl State {
    fn position(&self, unique: u64) -> Option<usize> {
        self.waiting
            .iter()
            .position(|(wait, _)| wait.unique == unique)
    }

    fn end(&mut self, unique: u64) {
        self.waiting.retain(|(wait, _)| wait.unique != unique);
    }
}
