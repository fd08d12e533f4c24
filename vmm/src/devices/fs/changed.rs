//! The attributes of the directory that was changed last.
//!
//! Linux forgets a directory's attributes whenever a name in it comes or goes,
//! and asks for them at the next name: a program that makes many files asks as
//! often as it makes them. The broker tells them with the answer to the
//! change, where only this guest changes the tree, and they are kept here
//! until anything else may have changed them.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::broker::Changed;
use protocol::fuse::{AttrOut, Opcode};

/// What is known of the directory that was changed last.
#[derive(Debug, Default)]
pub(super) struct LastChanged {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Changed>,
    /// Requests that may change attributes and are on their way.
    running: usize,
    /// Of those on their way two were there at a time: which came first, and
    /// whose word is the last, nobody knows.
    overlapped: bool,
}

impl LastChanged {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attributes of `node`, if it is the one and nothing has happened to
    /// it since.
    pub(super) fn attributes(&self, node: u64) -> Option<AttrOut> {
        let state = self.state();
        state
            .known
            .as_ref()
            .filter(|changed| changed.node == node)
            .map(|changed| changed.attributes)
    }

    /// Does a request, and keeps what its answer tells.
    pub(super) fn during<T>(
        &self,
        opcode: Opcode,
        request: impl FnOnce() -> (T, Option<Changed>),
    ) -> T {
        if only_looks(opcode) {
            return request().0;
        }
        let mut state = self.state();
        state.known = None;
        state.overlapped |= state.running > 0;
        state.running = state.running.saturating_add(1);
        drop(state);
        let (result, told) = request();
        let mut state = self.state();
        state.running = state.running.saturating_sub(1);
        if !state.overlapped {
            state.known = told;
        }
        if state.running == 0 {
            state.overlapped = false;
        }
        result
    }
}

/// Whether a request changes no directory's attributes, its time of access
/// included.
fn only_looks(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Lookup
            | Opcode::Getattr
            | Opcode::Statx
            | Opcode::Statfs
            | Opcode::Getxattr
            | Opcode::Listxattr
            | Opcode::Flush
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(node: u64) -> Option<Changed> {
        Some(Changed {
            node,
            ..Changed::default()
        })
    }

    #[test]
    fn last_word_holds_until_the_next_change() {
        let last = LastChanged::default();
        assert!(last.attributes(0).is_none());
        last.during(Opcode::Mknod, || ((), told(5)));
        last.during(Opcode::Lookup, || ((), None));
        assert!(last.attributes(5).is_some() && last.attributes(6).is_none());
        last.during(Opcode::Setattr, || ((), None));
        assert!(last.attributes(5).is_none());
    }

    #[test]
    fn words_that_overlap_are_not_believed() {
        let last = LastChanged::default();
        last.during(Opcode::Mkdir, || {
            last.during(Opcode::Unlink, || ((), told(5)));
            assert!(last.attributes(5).is_none());
            ((), told(6))
        });
        assert!(last.attributes(6).is_none());
        last.during(Opcode::Unlink, || ((), told(6)));
        assert!(last.attributes(6).is_some());
    }
}
