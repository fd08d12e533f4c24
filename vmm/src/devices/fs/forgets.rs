//! What the guest has forgotten and the broker is to hear of.
//!
//! Nobody waits for a forget, so they are collected: the first of a batch is
//! told to a worker, which passes the batch on a little later.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::fuse::ForgetOne;

/// Forgets that are passed on in one message.
const MOST: usize = 256;

/// The forgets of a device.
#[derive(Debug, Default)]
pub(super) struct Forgets {
    waiting: Mutex<Vec<ForgetOne>>,
    /// Held while a batch is told and until the broker has done it.
    telling: Mutex<()>,
}

impl Forgets {
    fn waiting(&self) -> MutexGuard<'_, Vec<ForgetOne>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held, nobody else is telling the broker of a batch.
    pub(super) fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one; true if it is the first of a batch.
    pub(super) fn note(&self, one: ForgetOne) -> bool {
        let mut waiting = self.waiting();
        waiting.push(one);
        waiting.len() == 1
    }

    /// The whole batch.
    pub(super) fn take(&self) -> Vec<ForgetOne> {
        std::mem::take(&mut *self.waiting())
    }

    /// The batch, if it is as long as one should be.
    pub(super) fn take_full(&self) -> Option<Vec<ForgetOne>> {
        let mut waiting = self.waiting();
        (waiting.len() >= MOST).then(|| std::mem::take(&mut *waiting))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn first_of_a_batch_is_told() {
        let forgets = Forgets::default();
        assert!(forgets.note(ForgetOne::default()));
        assert!(!forgets.note(ForgetOne::default()));
        assert!(forgets.take_full().is_none());
        assert_eq!(forgets.take().len(), 2);
        assert!(forgets.note(ForgetOne::default()));
        for _ in 1..MOST {
            forgets.note(ForgetOne::default());
        }
        assert_eq!(forgets.take_full().unwrap().len(), MOST);
    }
}
