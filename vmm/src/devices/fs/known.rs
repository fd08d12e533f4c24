//! What is known of files of a tree that only this guest changes.
//!
//! Linux asks more often than anything can have changed: for a directory's
//! attributes after each name that comes or goes in it, for a file's after
//! each close, for `security.capability` at each program that is started. The
//! last answers are kept here until a request of the guest may have made them
//! wrong. A directory's attributes come with the answer to its change
//! (`protocol::broker::Changed`).

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::broker::Changed;
use protocol::fuse::{AttrOut, Opcode};

/// Nodes at a time. Programs, their libraries and what they work on are fewer.
const MOST: usize = 1024;

/// What a request may make wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Effect {
    /// Nothing: it only looks.
    None,
    /// The attributes of two nodes, or of one twice.
    Nodes(u64, u64),
    /// The extended attributes of a node, and its others.
    Extended(u64),
    /// The attributes of nodes that the request does not name.
    All,
}

impl Effect {
    /// Of a request on `node`; `other`: the second node that such a request
    /// names, if it does.
    pub(super) fn of(opcode: Opcode, node: u64, other: impl FnOnce() -> Option<u64>) -> Self {
        match opcode {
            Opcode::Lookup
            | Opcode::Getattr
            | Opcode::Statx
            | Opcode::Statfs
            | Opcode::Getxattr
            | Opcode::Listxattr
            | Opcode::Flush
            | Opcode::Lseek => Self::None,
            // Time of access included.
            Opcode::Read
            | Opcode::Readdir
            | Opcode::Readdirplus
            | Opcode::Setattr
            | Opcode::Write
            | Opcode::Fallocate
            | Opcode::Mknod
            | Opcode::Mkdir
            | Opcode::Symlink => Self::Nodes(node, node),
            Opcode::CopyFileRange | Opcode::Link => match other() {
                Some(other) => Self::Nodes(node, other),
                None => Self::All,
            },
            Opcode::Setxattr | Opcode::Removexattr => Self::Extended(node),
            _ => Self::All,
        }
    }
}

/// Extended attributes that Linux asks for by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Extended {
    /// What a program may do.
    Capability = 1,
    /// Access list.
    Access = 2,
    /// Access list of new files in a directory.
    Default = 4,
    /// Any at all.
    Any = 7,
}

impl Extended {
    /// By name, which ends with a NUL.
    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"security.capability\0" => Some(Self::Capability),
            b"system.posix_acl_access\0" => Some(Self::Access),
            b"system.posix_acl_default\0" => Some(Self::Default),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct File {
    attributes: Option<AttrOut>,
    /// Bits of [`Extended`] that it has not.
    lacks: u8,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u64, File>,
    /// Requests with an effect that have begun.
    begun: u64,
    /// Those on their way.
    running: usize,
    /// Of those on their way two were there at a time: which came first, and
    /// whose word is the last, nobody knows.
    overlapped: bool,
}

impl State {
    fn file(&mut self, node: u64) -> &mut File {
        if self.files.len() >= MOST && !self.files.contains_key(&node) {
            self.files.clear();
        }
        self.files.entry(node).or_default()
    }

    fn doubt(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Nodes(one, other) => {
                for node in [one, other] {
                    if let Some(file) = self.files.get_mut(&node) {
                        file.attributes = None;
                    }
                }
            }
            Effect::Extended(node) => {
                self.files.remove(&node);
            }
            Effect::All => {
                for file in self.files.values_mut() {
                    file.attributes = None;
                }
            }
        }
    }
}

/// What the answer to a request with an effect tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How a directory is now.
    pub(super) changed: Option<Changed>,
    /// A file that is new, and so has no capability.
    pub(super) new: Option<u64>,
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attributes of `node`.
    pub(super) fn attributes(&self, node: u64) -> Option<AttrOut> {
        self.state().files.get(&node)?.attributes
    }

    /// Whether it is known that `node` has no such attribute.
    pub(super) fn lacks(&self, node: u64, extended: Extended) -> bool {
        let lacks = self.state().files.get(&node).map_or(0, |file| file.lacks);
        lacks & extended as u8 == extended as u8
    }

    /// Forgets everything: a new driver begins.
    pub(super) fn clear(&self) {
        self.state().files.clear();
    }

    /// Does a request that may make something wrong, and keeps what its answer
    /// tells.
    pub(super) fn during<T>(&self, effect: Effect, request: impl FnOnce() -> (T, Told)) -> T {
        let mut state = self.state();
        state.doubt(effect);
        state.overlapped |= state.running > 0;
        state.running = state.running.saturating_add(1);
        state.begun = state.begun.wrapping_add(1);
        drop(state);
        let (result, told) = request();
        let mut state = self.state();
        state.running = state.running.saturating_sub(1);
        if let (Some(changed), false) = (told.changed, state.overlapped) {
            state.file(changed.node).attributes = Some(changed.attributes);
        }
        if let Some(node) = told.new {
            state.file(node).lacks |= Extended::Capability as u8;
        }
        if state.running == 0 {
            state.overlapped = false;
        }
        result
    }

    /// Asks, and keeps the answer if nothing can have changed meanwhile.
    pub(super) fn asking<T>(&self, ask: impl FnOnce() -> (T, Option<Answered>)) -> T {
        let before = self.state().begun;
        let (result, answered) = ask();
        let mut state = self.state();
        if state.running == 0 && state.begun == before {
            match answered {
                None => {}
                Some(Answered::Attributes(node, attributes)) => {
                    state.file(node).attributes = Some(attributes);
                }
                Some(Answered::Lacks(node, extended)) => {
                    state.file(node).lacks |= extended as u8;
                }
            }
        }
        result
    }
}

/// What an answer says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answered {
    /// How a node is.
    Attributes(u64, AttrOut),
    /// What a node has not.
    Lacks(u64, Extended),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(node: u64) -> Told {
        Told {
            changed: Some(Changed {
                node,
                ..Changed::default()
            }),
            new: None,
        }
    }

    fn learn(known: &Known, node: u64) {
        known.asking(|| ((), Some(Answered::Attributes(node, AttrOut::default()))));
        known.asking(|| ((), Some(Answered::Lacks(node, Extended::Any))));
    }

    /// Of 1 to 3, what is known still after `effect`.
    fn after(effect: Effect) -> Vec<(bool, bool)> {
        let known = Known::default();
        (1..4).for_each(|node| learn(&known, node));
        known.during(effect, || ((), Told::default()));
        (1..4)
            .map(|node| {
                (
                    known.attributes(node).is_some(),
                    known.lacks(node, Extended::Access),
                )
            })
            .collect()
    }

    #[test]
    fn requests_make_wrong_what_they_may_change() {
        let (all, lacks, none) = ((true, true), (false, true), (false, false));
        let of = |opcode, other| Effect::of(opcode, 1, || other);
        assert_eq!(after(of(Opcode::Getattr, None)), [all, all, all]);
        assert_eq!(after(of(Opcode::Write, None)), [lacks, all, all]);
        assert_eq!(after(of(Opcode::Link, Some(3))), [lacks, all, lacks]);
        assert_eq!(after(of(Opcode::Link, None)), [lacks, lacks, lacks]);
        assert_eq!(after(of(Opcode::Unlink, None)), [lacks, lacks, lacks]);
        assert_eq!(after(of(Opcode::Setxattr, None)), [none, all, all]);
        // Whatever is not thought of is taken for the worst.
        assert_eq!(of(Opcode::Init, None), Effect::All);
    }

    #[test]
    fn last_word_holds_until_the_next_change() {
        let known = Known::default();
        assert!(known.attributes(0).is_none());
        known.during(Effect::Nodes(5, 5), || ((), told(5)));
        assert!(known.attributes(5).is_some() && known.attributes(6).is_none());
        known.during(Effect::Nodes(5, 5), || ((), Told::default()));
        assert!(known.attributes(5).is_none());
    }

    #[test]
    fn words_that_overlap_are_not_believed() {
        let known = Known::default();
        let change = Effect::Nodes(6, 6);
        known.during(change, || {
            known.during(Effect::All, || ((), told(5)));
            learn(&known, 7);
            assert!(known.attributes(5).is_none() && known.attributes(7).is_none());
            ((), told(6))
        });
        assert!(known.attributes(6).is_none());
        known.asking(|| {
            known.during(change, || ((), Told::default()));
            ((), Some(Answered::Attributes(6, AttrOut::default())))
        });
        assert!(known.attributes(6).is_none());
        known.during(change, || ((), told(6)));
        assert!(known.attributes(6).is_some());
    }

    #[test]
    fn new_files_have_no_capability() {
        let known = Known::default();
        let told = Told {
            new: Some(9),
            ..Told::default()
        };
        known.during(Effect::Nodes(1, 1), || ((), told));
        assert!(known.lacks(9, Extended::Capability));
        assert!(!known.lacks(9, Extended::Access) && !known.lacks(9, Extended::Any));
        known.during(Effect::Extended(9), || ((), Told::default()));
        assert!(!known.lacks(9, Extended::Capability));
    }

    #[test]
    fn many_files_cost_no_more() {
        let known = Known::default();
        (0..5000).for_each(|node| learn(&known, node));
        assert!(known.state().files.len() <= MOST);
        assert!(known.attributes(4999).is_some());
    }
}
