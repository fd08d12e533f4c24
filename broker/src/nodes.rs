//! The nodes that the guest knows.
//!
//! A node is a parent and a name. Its descriptor (`O_PATH`) is opened when an
//! operation needs it, by walking down from the nearest ancestor that has one,
//! and what is found must be what the guest was told about, else the answer is
//! `ESTALE` and the guest looks again. So a guest that knows a million files
//! costs memory and no descriptors, on any file system: file handles would
//! need a file system that has them, which overlayfs mostly is not, and a
//! privilege that reaches beyond the shares.
//!
//! Descriptors are kept, the least recently used ones closed. A node that has
//! lost its name (removed while the guest still has it) cannot be found again:
//! its descriptor stays until the guest forgets it.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::fuse::{Name, ROOT};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::status::{Identity, Status};

/// Number of a node. Never used twice, so that a stale one is no other node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct NodeId(pub(crate) u64);

/// Nodes by number. The numbers are given here, one after the other, so that
/// nobody can choose some that collide: the cheapest of all hashes will do.
type ByNumber = HashMap<NodeId, Node, BuildHasherDefault<NumberHasher>>;

#[derive(Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: neighbours end up far from each other.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Deepest node: far beyond what a path of 4096 bytes can name.
const DEEPEST: usize = 4096;

/// A place below a share.
#[derive(Debug)]
struct Node {
    parent: NodeId,
    name: CString,
    identity: Identity,
    kind: FileType,
    /// How many answers have named it that the guest has not forgotten.
    lookups: u64,
    descriptor: Option<Arc<OwnedFd>>,
    /// Used since the descriptor was last considered for closing.
    recent: bool,
    /// Open files, for which the descriptor must stay.
    pins: u32,
    /// The name leads here no more, so that the descriptor must stay.
    nameless: bool,
    /// It is in [`Table::open`].
    listed: bool,
}

#[derive(Debug)]
struct Table {
    nodes: ByNumber,
    known: HashMap<Identity, NodeId>,
    /// Nodes with descriptors that could be closed, oldest first.
    open: VecDeque<NodeId>,
    next: u64,
}

/// Limits of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Nodes at a time. A guest's kernel needs more memory for a node than
    /// the broker, so that an honest one never gets there.
    pub(crate) nodes: usize,
    /// Descriptors of nodes that could be found again by name.
    pub(crate) descriptors: usize,
}

/// All nodes of a device.
#[derive(Debug)]
pub(crate) struct Nodes {
    table: Mutex<Table>,
    limits: Limits,
    births: bool,
    shares: u64,
    /// The file system that the device's own stands for: of the first share
    /// that is a directory.
    main: Option<(NodeId, Identity)>,
}

/// What an operation found behind a name.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: NodeId,
    /// It is on another mount than the directory that it was found in.
    pub(crate) submount: bool,
    pub(crate) status: Status,
}

const REFERENCE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens one name in a directory, as a reference only.
fn open_name(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    openat2(directory, name, REFERENCE, Mode::empty(), resolve)
}

impl Nodes {
    /// The nodes of `shares`: references to their roots. `births`: files are
    /// told apart by the time of their birth as well.
    pub(crate) fn new(shares: Vec<OwnedFd>, births: bool, limits: Limits) -> Result<Self, Errno> {
        let mut table = Table {
            nodes: ByNumber::default(),
            known: HashMap::new(),
            open: VecDeque::new(),
            next: ROOT + 1,
        };
        let count = u64::try_from(shares.len()).unwrap_or(0);
        let mut main = None;
        for share in shares {
            let status = Status::of(share.as_fd())?;
            let id = NodeId(table.next);
            if status.kind() == FileType::Directory {
                main = main.or(Some((id, status.identity(births))));
            }
            table.next += 1;
            table.nodes.insert(
                id,
                Node {
                    parent: NodeId(ROOT),
                    name: c"".into(),
                    identity: status.identity(births),
                    kind: status.kind(),
                    lookups: 0,
                    descriptor: Some(Arc::new(share)),
                    recent: true,
                    pins: 1,
                    nameless: false,
                    listed: false,
                },
            );
        }
        Ok(Self {
            table: Mutex::new(table),
            limits,
            births,
            shares: count,
            main,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything but the shares: a new driver begins.
    pub(crate) fn clear(&self) {
        let shares = self.shares;
        let mut table = self.table();
        table.nodes.retain(|id, _| id.0 <= ROOT + shares);
        table.known.clear();
        table.open.clear();
    }

    /// The root of share `number`, `None` if there is no such share.
    pub(crate) fn share(&self, number: u64) -> Option<NodeId> {
        (number < self.shares).then(|| NodeId(ROOT.saturating_add(1).saturating_add(number)))
    }

    /// What the device's root has as share `number`, `None` if there is no such
    /// share. A share on another file system than the first is announced as one
    /// of its own, for the numbers of its files are. Others are not, because
    /// Linux has no access control lists in what is announced
    /// (`fuse_fill_super_submount` leaves `SB_POSIXACL` out).
    pub(crate) fn enter_share(&self, number: u64) -> Result<Option<Found>, Errno> {
        let Some(id) = self.share(number) else {
            return Ok(None);
        };
        let status = Status::of(self.descriptor(id)?.as_fd())?;
        let identity = status.identity(self.births);
        let submount = !self
            .main
            .is_some_and(|(_, main)| main.same_file_system(&identity));
        Ok(Some(Found {
            id,
            submount,
            status,
        }))
    }

    /// A share on the file system that the device's own stands for.
    pub(crate) fn main_share(&self) -> Option<NodeId> {
        self.main.map(|(id, _)| id)
    }

    /// Whether `id` is the root of a share, which no operation moves.
    pub(crate) fn is_share(&self, id: NodeId) -> bool {
        id.0 > ROOT && id.0 <= ROOT.saturating_add(self.shares)
    }

    /// What is held.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn census(&self) -> crate::Census {
        let table = self.table();
        let closable = |node: &&Node| node.descriptor.is_some() && node.pins == 0 && !node.nameless;
        crate::Census {
            nodes: table.nodes.len(),
            descriptors: table.nodes.values().filter(closable).count(),
        }
    }

    /// The kind of a node.
    pub(crate) fn kind(&self, id: NodeId) -> Result<FileType, Errno> {
        self.table()
            .nodes
            .get(&id)
            .map(|node| node.kind)
            .ok_or(Errno::STALE)
    }

    /// A reference to a node.
    pub(crate) fn descriptor(&self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        let mut missing = Vec::new();
        let mut here = {
            let mut table = self.table();
            let mut at = id;
            loop {
                let node = table.nodes.get_mut(&at).ok_or(Errno::STALE)?;
                if let Some(descriptor) = &node.descriptor {
                    node.recent = true;
                    break Arc::clone(descriptor);
                }
                if missing.len() >= DEEPEST || node.nameless {
                    return Err(Errno::STALE);
                }
                missing.push((at, node.name.clone(), node.identity, node.kind));
                at = node.parent;
            }
        };
        for (id, name, identity, kind) in missing.into_iter().rev() {
            let descriptor = match open_name(here.as_fd(), &name) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
                result => result?,
            };
            // The kind as well: where births do not tell, the number of a file
            // that is gone may be another's by now.
            let status = Status::of(descriptor.as_fd())?;
            if status.identity(self.births) != identity || status.kind() != kind {
                return Err(Errno::STALE);
            }
            here = self.table().keep(id, descriptor, self.limits);
        }
        Ok(here)
    }

    /// What `name` in `directory` leads to, as a node that the guest knows
    /// from now on.
    pub(crate) fn look_up(&self, directory: NodeId, name: Name<'_>) -> Result<Found, Errno> {
        let parent = self.descriptor(directory)?;
        let status = Status::at(parent.as_fd(), name.as_c_str())?;
        self.learn(directory, &parent, name, status, None)
    }

    /// As [`Nodes::look_up`] of a file that is open already.
    pub(crate) fn adopt(
        &self,
        directory: NodeId,
        name: Name<'_>,
        file: OwnedFd,
    ) -> Result<(Found, Arc<OwnedFd>), Errno> {
        let parent = self.descriptor(directory)?;
        let status = Status::of(file.as_fd())?;
        let file = Arc::new(file);
        let found = self.learn(directory, &parent, name, status, Some(&file))?;
        Ok((found, file))
    }

    /// As [`Nodes::adopt`] of a file that never had a name.
    pub(crate) fn adopt_nameless(&self, directory: NodeId, file: OwnedFd) -> Result<Found, Errno> {
        let name = Name::new(c"?").map_err(Errno::from_raw_os_error)?;
        let (found, _) = self.adopt(directory, name, file)?;
        let mut table = self.table();
        if let Some(node) = table.nodes.get_mut(&found.id) {
            node.nameless = true;
        }
        Ok(found)
    }

    fn learn(
        &self,
        directory: NodeId,
        parent: &OwnedFd,
        name: Name<'_>,
        status: Status,
        file: Option<&Arc<OwnedFd>>,
    ) -> Result<Found, Errno> {
        let identity = status.identity(self.births);
        let mut table = self.table();
        let parent_identity = match table.nodes.get(&directory) {
            Some(node) => node.identity,
            None => Status::of(parent.as_fd())?.identity(self.births),
        };
        let submount = !parent_identity.same_mount(&identity);
        let present = table.known.get(&identity).copied();
        let id = match present {
            Some(id)
                if table
                    .nodes
                    .get(&id)
                    .is_some_and(|node| node.kind == status.kind()) =>
            {
                id
            }
            _ => {
                if table.nodes.len() >= self.limits.nodes {
                    return Err(Errno::NFILE);
                }
                let id = NodeId(table.next);
                table.next = table.next.saturating_add(1);
                table.known.insert(identity, id);
                table.nodes.insert(
                    id,
                    Node {
                        parent: directory,
                        name: name.as_c_str().into(),
                        identity,
                        kind: status.kind(),
                        lookups: 0,
                        descriptor: None,
                        recent: false,
                        pins: 0,
                        nameless: false,
                        listed: false,
                    },
                );
                id
            }
        };
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_add(1);
            node.nameless = false;
            // The newest of several names: the others may be gone.
            if node.parent != directory || node.name.as_c_str() != name.as_c_str() {
                node.parent = directory;
                node.name = name.as_c_str().into();
            }
        }
        if let Some(file) = file {
            table.keep_shared(id, Arc::clone(file), self.limits);
        }
        table.list(id);
        Ok(Found {
            id,
            submount,
            status,
        })
    }

    /// The node of a file, if the guest knows it.
    pub(crate) fn known(&self, status: &Status) -> Option<NodeId> {
        let identity = status.identity(self.births);
        self.table().known.get(&identity).copied()
    }

    /// The node that the guest knows under a name, told once more; if there is
    /// none, a number that no node has.
    pub(crate) fn recall(&self, directory: NodeId, name: Name<'_>) -> NodeId {
        let mut table = self.table();
        let known = table
            .nodes
            .iter_mut()
            .find(|(_, node)| node.parent == directory && node.name.as_c_str() == name.as_c_str());
        if let Some((id, node)) = known {
            node.lookups = node.lookups.saturating_add(1);
            return *id;
        }
        let id = NodeId(table.next);
        table.next = table.next.saturating_add(1);
        id
    }

    /// The guest forgets `count` answers that named `id`.
    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        if self.is_share(id) {
            return;
        }
        let mut table = self.table();
        let Some(node) = table.nodes.get_mut(&id) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return;
        }
        if let Some(node) = table.nodes.remove(&id)
            && table.known.get(&node.identity) == Some(&id)
        {
            table.known.remove(&node.identity);
        }
    }

    /// Before `name` is removed or replaced: what is behind it, if the guest
    /// knows it. It keeps its descriptor when the name has gone
    /// ([`Nodes::lose_name`]).
    pub(crate) fn victim(&self, directory: BorrowedFd<'_>, name: Name<'_>) -> Option<Victim> {
        let descriptor = open_name(directory, name.as_c_str()).ok()?;
        let status = Status::of(descriptor.as_fd()).ok()?;
        let identity = status.identity(self.births);
        let id = *self.table().known.get(&identity)?;
        Some(Victim { id, descriptor })
    }

    /// After the name of `victim` has been removed or replaced.
    pub(crate) fn lose_name(&self, victim: Victim) {
        let mut table = self.table();
        if table.nodes.contains_key(&victim.id) {
            table.keep(victim.id, victim.descriptor, self.limits);
            if let Some(node) = table.nodes.get_mut(&victim.id) {
                node.nameless = true;
            }
        }
    }

    /// After a rename: what is now at `name` in `directory` is `id`'s.
    pub(crate) fn renamed(&self, status: &Status, directory: NodeId, name: Name<'_>) {
        let identity = status.identity(self.births);
        let mut table = self.table();
        let Some(id) = table.known.get(&identity).copied() else {
            return;
        };
        if let Some(node) = table.nodes.get_mut(&id) {
            node.parent = directory;
            node.name = name.as_c_str().into();
            node.nameless = false;
        }
        table.list(id);
    }

    /// An open file keeps its node's descriptor.
    pub(crate) fn pin(&self, id: NodeId) -> Result<(), Errno> {
        let descriptor = self.descriptor(id)?;
        let mut table = self.table();
        table.keep_shared(id, descriptor, self.limits);
        let node = table.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        node.pins = node.pins.saturating_add(1);
        Ok(())
    }

    /// The end of [`Nodes::pin`].
    pub(crate) fn unpin(&self, id: NodeId) {
        let mut table = self.table();
        if let Some(node) = table.nodes.get_mut(&id) {
            node.pins = node.pins.saturating_sub(1);
        }
        table.list(id);
    }
}

/// What a name that is about to go leads to.
#[derive(Debug)]
pub(crate) struct Victim {
    id: NodeId,
    descriptor: OwnedFd,
}

impl Table {
    fn keep(&mut self, id: NodeId, descriptor: OwnedFd, limits: Limits) -> Arc<OwnedFd> {
        let descriptor = Arc::new(descriptor);
        self.keep_shared(id, Arc::clone(&descriptor), limits);
        descriptor
    }

    fn keep_shared(&mut self, id: NodeId, descriptor: Arc<OwnedFd>, limits: Limits) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return; // forgotten meanwhile
        };
        node.recent = true;
        node.descriptor.get_or_insert(descriptor);
        self.list(id);
        // Each round drops one from the list, or takes away its second chance.
        let mut rounds = self.open.len().saturating_mul(2);
        while self.open.len() > limits.descriptors && rounds > 0 {
            rounds = rounds.saturating_sub(1);
            let Some(oldest) = self.open.pop_front() else {
                return;
            };
            let Some(node) = self.nodes.get_mut(&oldest) else {
                continue;
            };
            if node.pins > 0 || node.nameless {
                node.listed = false;
            } else if node.recent {
                node.recent = false;
                self.open.push_back(oldest);
            } else {
                node.listed = false;
                node.descriptor = None;
            }
        }
    }

    /// Lists a node whose descriptor could be closed.
    fn list(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.descriptor.is_some()
            && !node.listed
            && !node.nameless
            && node.pins == 0
        {
            node.listed = true;
            self.open.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_whose_number_went_to_another_kind_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let share = rustix::fs::open(directory.path(), REFERENCE, Mode::empty()).unwrap();
        let limits = Limits {
            nodes: 10,
            descriptors: 10,
        };
        let nodes = Nodes::new(vec![share], false, limits).unwrap();
        let root = nodes.share(0).unwrap();
        let name = Name::new(c"file").unwrap();
        let id = nodes.look_up(root, name).unwrap().id;
        // As if the file had been removed, and a pipe been made in its place
        // that the file system gave the same number.
        {
            let mut table = nodes.table();
            let node = table.nodes.get_mut(&id).unwrap();
            node.name = c"pipe".into();
            let share = rustix::fs::open(directory.path(), REFERENCE, Mode::empty()).unwrap();
            node.identity = Status::at(share.as_fd(), c"pipe").unwrap().identity(false);
        }
        assert_eq!(nodes.descriptor(id).unwrap_err(), Errno::STALE);
    }
}
