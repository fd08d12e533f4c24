//! Open files. Their data are the VMM's; here it is known that they are open.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::broker::Policy;
use protocol::fuse::{OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReleaseIn};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::attributes::{kill_privileges, reopen};
use crate::answer::Answer;
use crate::device::{Beside, Device};
use crate::nodes::{NodeId, Nodes};
use crate::request::Request;

/// Files that a guest may have open at a time on one device.
const MOST_OPEN: usize = 65_536;

/// How long a change of a file that the guest has closed may still be its own.
const JUST_NOW: Duration = Duration::from_secs(1);

/// The open files of a device, by number.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Nodes, and whether they are open for writing.
    files: HashMap<u64, (NodeId, bool)>,
    /// When nodes were last closed that had been open for writing.
    written: HashMap<NodeId, Instant>,
    last: u64,
}

impl OpenFiles {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a node, which then keeps its descriptor; answers the number.
    pub(crate) fn open(&self, nodes: &Nodes, node: NodeId, write: bool) -> Result<u64, Errno> {
        if self.table().files.len() >= MOST_OPEN {
            return Err(Errno::NFILE);
        }
        nodes.pin(node)?;
        let mut table = self.table();
        table.last = table.last.saturating_add(1);
        let handle = table.last;
        table.files.insert(handle, (node, write));
        Ok(handle)
    }

    fn close(&self, nodes: &Nodes, handle: u64) {
        let mut table = self.table();
        let Some((node, write)) = table.files.remove(&handle) else {
            return;
        };
        if write {
            let now = Instant::now();
            table
                .written
                .retain(|_, closed| now.duration_since(*closed) < JUST_NOW);
            table.written.insert(node, now);
        }
        drop(table);
        nodes.unpin(node);
    }

    /// Whether the guest writes to a node, or did until a moment ago.
    pub(crate) fn writes_to(&self, node: NodeId) -> bool {
        let table = self.table();
        let open = || table.files.values().any(|file| *file == (node, true));
        let closed = table.written.get(&node);
        closed.is_some_and(|closed| closed.elapsed() < JUST_NOW) || open()
    }

    pub(crate) fn clear(&self) {
        let mut table = self.table();
        table.files.clear();
        table.written.clear();
    }
}

/// Whether a file opened with `flags` is written to.
pub(crate) fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR)
}

/// The VMM's question for a node's data.
pub(crate) fn data(device: &Device, id: NodeId, write: bool) -> Result<OwnedFd, Errno> {
    let node = device.nodes.descriptor(id)?;
    // Reading only where only that is asked for: opening for writing makes
    // overlayfs copy the file.
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    reopen(device.nodes.kind(id)?, node.as_fd(), access)
}

/// OPEN, which only a shared device hears: the file is opened at once, so that
/// the one who opens it learns what is wrong.
pub(crate) fn open(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<Beside, Errno> {
    if device.policy == Policy::Exclusive {
        return Err(Errno::NOSYS);
    }
    crate::caller::become_self()?;
    let open: OpenIn = request.take()?;
    let flags = OFlags::from_bits_retain(open.flags);
    let file = data(device, request.node(), writes(flags))?;
    if open.open_flags & OPEN_KILL_SUIDGID != 0 && flags.contains(OFlags::TRUNC) {
        kill_privileges(file.as_fd())?;
    }
    let handle = device
        .files
        .open(&device.nodes, request.node(), writes(flags))?;
    answer.push(&OpenOut {
        fh: handle,
        ..OpenOut::default()
    });
    Ok(Some(file))
}

/// RELEASE.
pub(crate) fn release(device: &Device, request: &mut Request<'_>) -> Result<(), Errno> {
    let release: ReleaseIn = request.take()?;
    device.files.close(&device.nodes, release.fh);
    Ok(())
}
