//! Answers to operations of the agent that are only said, not meant: they
//! make the guest's kernel notify whoever watches a file (`protocol::news`).
//!
//! One piece of news is told at a time. While it is, requests of the agent's
//! own process that concern it are answered as if they did now what has
//! happened before. Nothing of them reaches the host's files, and what the
//! guest is told holds for no time at all.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::fuse::{
    Attr, AttrOut, EntryOut, MkdirIn, MknodIn, Name, Opcode, OpenOut, Rename2In, RenameIn,
};
use protocol::news::{AGENT_PROCESS, event};
use rustix::io::Errno;

use crate::answer::Answer;
use crate::caller;
use crate::device::{Beside, Device};
use crate::nodes::NodeId;
use crate::operations::open;
use crate::request::Request;
use crate::status::Status;

/// What has happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Happening {
    /// One of [`event`].
    pub(crate) kind: u32,
    /// The watched node.
    pub(crate) node: NodeId,
    /// A name in it; empty: itself.
    pub(crate) name: CString,
    /// The new name, with [`event::MOVED`].
    pub(crate) new_name: CString,
    /// Type of what it happened to, as in `st_mode`.
    pub(crate) kind_of_file: u32,
}

/// The news being told.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    any: AtomicBool,
    happening: Mutex<Option<Happening>>,
}

impl Announced {
    pub(crate) fn set(&self, happening: Option<Happening>) {
        self.any.store(happening.is_some(), Ordering::Relaxed);
        *self
            .happening
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = happening;
    }

    fn get(&self) -> Option<Happening> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let happening = self.happening.lock();
        happening.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The answer to a request that only tells the news; `None`: it is meant.
pub(crate) fn answer(
    device: &Device,
    opcode: Opcode,
    request: Request<'_>,
    answer: &mut Answer,
) -> Option<Result<Beside, Errno>> {
    if request.header.pid != AGENT_PROCESS {
        return None;
    }
    let happening = device.announced.get()?;
    if let Err(errno) = caller::become_self() {
        return Some(Err(errno));
    }
    let said = Said {
        device,
        happening: &happening,
        here: request.node() == happening.node,
    };
    said.answer(opcode, request, answer)
}

struct Said<'a> {
    device: &'a Device,
    happening: &'a Happening,
    /// The request is of the watched node.
    here: bool,
}

impl Said<'_> {
    fn answer(
        &self,
        opcode: Opcode,
        mut request: Request<'_>,
        answer: &mut Answer,
    ) -> Option<Result<Beside, Errno>> {
        let kind = self.happening.kind;
        let mut is = |name: &CStr, skip: usize| -> bool {
            let skipped = u32::try_from(skip).is_ok_and(|skip| request.bytes(skip).is_ok());
            skipped && request.name().is_ok_and(|said| said.as_c_str() == name)
        };
        let (name, new) = (&*self.happening.name, &*self.happening.new_name);
        let done = match (kind, opcode) {
            (event::CREATED, Opcode::Lookup) if self.here && is(name, 0) => {
                answer.push(&EntryOut::default());
                Ok(())
            }
            (event::CREATED, Opcode::Mknod) if self.here && is(name, size_of::<MknodIn>()) => {
                self.tell(name, answer)
            }
            (event::CREATED, Opcode::Mkdir) if self.here && is(name, size_of::<MkdirIn>()) => {
                self.tell(name, answer)
            }
            (event::CREATED, Opcode::Symlink) if self.here && is(name, 0) => {
                self.tell(name, answer)
            }
            (event::REMOVED, Opcode::Lookup) if self.here && is(name, 0) => {
                self.tell_what_was(answer)
            }
            (event::REMOVED, Opcode::Unlink | Opcode::Rmdir) if self.here && is(name, 0) => Ok(()),
            (event::MOVED, Opcode::Lookup) if self.here => match request.name() {
                Ok(said) if said.as_c_str() == name => self.tell(new, answer),
                Ok(said) if said.as_c_str() == new => {
                    answer.push(&EntryOut::default());
                    Ok(())
                }
                _ => return None,
            },
            (event::MOVED, Opcode::Rename) if self.here && is(name, size_of::<RenameIn>()) => {
                Ok(())
            }
            (event::MOVED, Opcode::Rename2) if self.here && is(name, size_of::<Rename2In>()) => {
                Ok(())
            }
            (event::MODIFIED | event::ATTRIBUTES, Opcode::Setattr)
                if self.is_of(request.node()) =>
            {
                self.device.status(request.node()).map(|status| {
                    answer.push(&AttrOut {
                        attr: status.attributes(false),
                        ..AttrOut::default()
                    });
                })
            }
            (event::CLOSED, Opcode::Open) if self.is_of(request.node()) => {
                return Some(self.open(request.node(), answer));
            }
            _ => return None,
        };
        Some(done.map(|()| None))
    }

    /// Whether a node is what the news are of.
    fn is_of(&self, node: NodeId) -> bool {
        let Ok(name) = Name::new(&self.happening.name) else {
            return self.here;
        };
        let nodes = &self.device.nodes;
        let named = || {
            let parent = nodes.descriptor(self.happening.node).ok()?;
            nodes.known(&Status::at(parent.as_fd(), name.as_c_str()).ok()?)
        };
        named() == Some(node)
    }

    /// What is there now under a name.
    fn tell(&self, name: &CStr, answer: &mut Answer) -> Result<(), Errno> {
        let name = Name::new(name).map_err(Errno::from_raw_os_error)?;
        let found = self.device.nodes.look_up(self.happening.node, name)?;
        answer.push(&EntryOut {
            entry_valid: 0,
            entry_valid_nsec: 0,
            ..self.device.entry(&found)
        });
        Ok(())
    }

    /// What was there: the guest's own idea of it, or anything of its type.
    fn tell_what_was(&self, answer: &mut Answer) -> Result<(), Errno> {
        let name = Name::new(&self.happening.name).map_err(Errno::from_raw_os_error)?;
        let parent = self.device.nodes.descriptor(self.happening.node)?;
        if Status::at(parent.as_fd(), name.as_c_str()).is_ok() {
            // It is there again.
            return Err(Errno::EXIST);
        }
        let id = self.device.nodes.recall(self.happening.node, name);
        answer.push(&EntryOut {
            nodeid: id.0,
            attr: Attr {
                ino: id.0,
                mode: self.happening.kind_of_file | 0o600,
                nlink: 1,
                ..Attr::default()
            },
            ..EntryOut::default()
        });
        Ok(())
    }

    /// Opened by the agent, who will only close it: for reading, whatever it
    /// asks for.
    fn open(&self, node: NodeId, answer: &mut Answer) -> Result<Beside, Errno> {
        let file = open::data(self.device, node, false)?;
        let handle = self.device.files.open(&self.device.nodes, node, false)?;
        answer.push(&OpenOut {
            fh: handle,
            ..OpenOut::default()
        });
        Ok(Some(file))
    }
}
