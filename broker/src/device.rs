//! One virtio-fs device: its nodes, its policy, and who answers what.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::broker::{Changed, DATA, DataIn, Policy, entry_bytes};
use protocol::fuse::{ATTR_DAX, Attr, AttrOut, EntryOut, Opcode, ROOT, init};
use protocol::fuse::{InitIn, InitOut, MAJOR, MAP_ALIGNMENT_SHIFT, MAX_DATA, MINOR};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::answer::Answer;
use crate::caller;
use crate::news::{self, Announced};
use crate::nodes::{Found, Limits, NodeId, Nodes};
use crate::operations::open::OpenFiles;
use crate::operations::{attributes, create, directory, extended, names, open};
use crate::request::Request;
use crate::status::Status;
use crate::streams::Streams;

/// Most descriptors that the nodes of a device keep: enough for the files that
/// a build works on.
const DESCRIPTORS: usize = 4096;

/// How long the guest may believe what it was told of a shared tree.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// As long as the guest lives.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What every device uses of what the guest's kernel can.
const FEATURES: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    // The umask comes with each request, so that an access list of the
    // directory can take its place.
    | init::DONT_MASK
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::SUBMOUNTS
    // Spares a look for file capabilities before each write.
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::DIRECT_IO_ALLOW_MMAP;

/// Opening a file asks nobody, and writes are collected.
const EXCLUSIVE_FEATURES: u64 = init::WRITEBACK_CACHE | init::NO_OPEN_SUPPORT;

/// A change by others is noticed, and so are their locks, which the VMM knows.
const SHARED_FEATURES: u64 = init::AUTO_INVAL_DATA | init::POSIX_LOCKS | init::FLOCK_LOCKS;

/// Pages of files themselves in guest memory, for the files that are said to be
/// worth it.
const WINDOW_FEATURES: u64 = init::MAP_ALIGNMENT | init::HAS_INODE_DAX;

/// From how many bytes on a file is worth a place in the window.
const LARGE: u64 = 1 << 20;

/// One device.
#[derive(Debug)]
pub struct Device {
    pub(crate) policy: Policy,
    pub(crate) nodes: Nodes,
    pub(crate) streams: Streams,
    pub(crate) files: OpenFiles,
    /// The guest has found a window for pages of files.
    window: AtomicBool,
    /// What the agent is telling the guest.
    pub(crate) announced: Announced,
}

/// What goes beside an answer.
pub(crate) type Beside = Option<OwnedFd>;

impl Device {
    /// A device that shows `shares`, references to the roots of trees, to a
    /// guest that may know `most_nodes` files at a time, and keeps so many
    /// `descriptors` that it could do without.
    ///
    /// # Errors
    ///
    /// When a share's root cannot be looked at.
    pub fn new(
        policy: Policy,
        shares: Vec<OwnedFd>,
        most_nodes: usize,
        descriptors: usize,
    ) -> Result<Self, Errno> {
        let limits = Limits {
            nodes: most_nodes,
            descriptors: descriptors.min(DESCRIPTORS),
        };
        Ok(Self {
            policy,
            nodes: Nodes::new(shares, policy == Policy::Shared, limits)?,
            streams: Streams::default(),
            files: OpenFiles::default(),
            window: AtomicBool::new(false),
            announced: Announced::default(),
        })
    }

    /// What it holds.
    #[cfg(any(test, feature = "test-utils"))]
    #[must_use]
    pub fn census(&self) -> crate::Census {
        self.nodes.census()
    }

    /// Does what a request asks. `None`: nobody waits for an answer.
    pub(crate) fn handle(
        &self,
        request: &mut Request<'_>,
        answer: &mut Answer,
    ) -> Option<Result<Beside, Errno>> {
        if request.header.opcode == DATA {
            return Some(self.data(request).map(Some));
        }
        let Some(opcode) = Opcode::from_number(request.header.opcode) else {
            return Some(Err(Errno::NOSYS));
        };
        if opcode.is_one_way() {
            names::forget(self, opcode, request);
            return None;
        }
        let result = self.answer(opcode, request, answer);
        if result.is_ok() && self.policy == Policy::Exclusive && entry_bytes(opcode).is_some() {
            answer.changed = self.changed(request.node());
        }
        Some(result)
    }

    /// How a directory is now. Without an answer the guest asks for it.
    fn changed(&self, directory: NodeId) -> Option<Changed> {
        let status = self.status(directory).ok()?;
        Some(Changed {
            node: directory.0,
            attributes: self.attributes(status.attributes(false)),
        })
    }

    fn data(&self, request: &mut Request<'_>) -> Result<OwnedFd, Errno> {
        caller::become_self()?;
        let wanted: DataIn = request.take()?;
        open::data(self, request.node(), wanted.write != 0)
    }

    fn answer(
        &self,
        opcode: Opcode,
        request: &mut Request<'_>,
        answer: &mut Answer,
    ) -> Result<Beside, Errno> {
        // The root shows the shares and nothing else.
        if request.node() == NodeId(ROOT) {
            return directory::answer_root(self, opcode, request, answer).map(|()| None);
        }
        if let Some(done) = news::answer(self, opcode, *request, answer) {
            return done;
        }
        let done = match opcode {
            Opcode::Mknod => return create::node(self, request, answer),
            Opcode::Tmpfile => return create::nameless(self, request, answer),
            Opcode::Open => return open::open(self, request, answer),
            Opcode::Create => return create::file(self, request, answer),
            Opcode::Mkdir => create::directory(self, request, answer),
            Opcode::Symlink => create::link(self, request, answer),
            _ => {
                caller::become_self()?;
                self.answer_as_self(opcode, request, answer)
            }
        };
        done.map(|()| None)
    }

    fn answer_as_self(
        &self,
        opcode: Opcode,
        request: &mut Request<'_>,
        answer: &mut Answer,
    ) -> Result<(), Errno> {
        match opcode {
            Opcode::Init => self.init(request, answer),
            Opcode::Destroy => Ok(()),
            Opcode::Lookup => names::look_up(self, request, answer),
            Opcode::Link => names::link(self, request, answer),
            Opcode::Unlink => names::remove(self, request, false),
            Opcode::Rmdir => names::remove(self, request, true),
            Opcode::Rename => names::rename(self, request, false),
            Opcode::Rename2 => names::rename(self, request, true),
            Opcode::Getattr => attributes::get(self, request, answer),
            Opcode::Statx => attributes::get_extended(self, request, answer),
            Opcode::Setattr => attributes::set(self, request, answer),
            Opcode::Readlink => attributes::read_link(self, request, answer),
            Opcode::Statfs => attributes::file_system(self, request, answer),
            Opcode::Syncfs => attributes::sync(self, request.node(), true),
            Opcode::Fsyncdir => attributes::sync(self, request.node(), false),
            Opcode::Readdir => directory::read(self, request, answer, false),
            Opcode::Readdirplus => directory::read(self, request, answer, true),
            Opcode::Getxattr => extended::get(self, request, answer),
            Opcode::Listxattr => extended::list(self, request, answer),
            Opcode::Setxattr => extended::set(self, request),
            Opcode::Removexattr => extended::remove(self, request),
            Opcode::Release => open::release(self, request),
            // The VMM's own, or answered before.
            Opcode::Flush
            | Opcode::Getlk
            | Opcode::Setlk
            | Opcode::Setlkw
            | Opcode::Interrupt
            | Opcode::Read
            | Opcode::Write
            | Opcode::Fsync
            | Opcode::Fallocate
            | Opcode::Lseek
            | Opcode::CopyFileRange
            | Opcode::Setupmapping
            | Opcode::Removemapping
            | Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Mknod
            | Opcode::Mkdir
            | Opcode::Symlink
            | Opcode::Create
            | Opcode::Tmpfile
            | Opcode::Open => Err(Errno::NOSYS),
        }
    }

    /// Agrees with a driver on what to use; whatever an earlier one knew is
    /// forgotten.
    pub(crate) fn init(&self, request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Errno> {
        let wanted: InitIn = request.take()?;
        if wanted.major != MAJOR {
            return Err(Errno::PROTO);
        }
        self.nodes.clear();
        self.streams.clear();
        self.files.clear();
        let offered = u64::from(wanted.flags) | u64::from(wanted.flags2) << 32;
        let used = match self.policy {
            Policy::Exclusive => FEATURES | EXCLUSIVE_FEATURES,
            Policy::Shared => FEATURES | SHARED_FEATURES,
        } & offered;
        // Offered by a kernel that has found a window.
        let window = offered & init::MAP_ALIGNMENT != 0;
        self.window.store(window, Ordering::Relaxed);
        let used = if window {
            used | WINDOW_FEATURES & offered
        } else {
            used
        };
        answer.push(&InitOut {
            major: MAJOR,
            minor: MINOR,
            max_readahead: wanted.max_readahead,
            flags: lower(used),
            flags2: lower(used >> 32),
            max_background: 64,
            congestion_threshold: 48,
            max_write: MAX_DATA,
            time_gran: 1,
            max_pages: 256,
            map_alignment: if window { MAP_ALIGNMENT_SHIFT } else { 0 },
            ..InitOut::default()
        });
        Ok(())
    }

    /// Attributes, with the word that the file is worth a place in the window:
    /// one takes 2 MiB of it, however short the file.
    fn with_window(&self, mut attr: Attr) -> Attr {
        let regular = FileType::from_raw_mode(attr.mode) == FileType::RegularFile;
        if regular && attr.size >= LARGE && self.window.load(Ordering::Relaxed) {
            attr.flags |= ATTR_DAX;
        }
        attr
    }

    /// How long the guest may believe an answer.
    fn validity(&self) -> Duration {
        match self.policy {
            Policy::Exclusive => FOR_EVER,
            Policy::Shared => SHARED_FOR,
        }
    }

    /// The answer that names a node.
    pub(crate) fn entry(&self, found: &Found) -> EntryOut {
        let valid = self.validity();
        // Only directories are mount points for the guest: a single file that
        // is mounted on the host is just that file.
        let submount = found.submount && found.status.kind() == FileType::Directory;
        EntryOut {
            nodeid: found.id.0,
            generation: 0,
            entry_valid: valid.as_secs(),
            attr_valid: valid.as_secs(),
            entry_valid_nsec: valid.subsec_nanos(),
            attr_valid_nsec: valid.subsec_nanos(),
            attr: self.with_window(found.status.attributes(submount)),
        }
    }

    /// Opens a directory that others may remove: a program may be in it then,
    /// and by its name it could not be found again.
    pub(crate) fn hold_directory(&self, found: &Found) {
        if self.policy == Policy::Shared && found.status.kind() == FileType::Directory {
            // Where that fails it is found by name, while there is one.
            let _ = self.nodes.descriptor(found.id);
        }
    }

    /// The answer that a name leads nowhere, which the guest may believe for
    /// as long as any other.
    pub(crate) fn no_entry(&self) -> EntryOut {
        let valid = self.validity();
        EntryOut {
            entry_valid: valid.as_secs(),
            entry_valid_nsec: valid.subsec_nanos(),
            ..EntryOut::default()
        }
    }

    /// The answer with attributes.
    pub(crate) fn attributes(&self, attr: Attr) -> AttrOut {
        let valid = self.validity();
        AttrOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            dummy: 0,
            attr: self.with_window(attr),
        }
    }

    /// A node's status.
    pub(crate) fn status(&self, id: NodeId) -> Result<Status, Errno> {
        Status::of(self.nodes.descriptor(id)?.as_fd())
    }
}

fn lower(flags: u64) -> u32 {
    let [a, b, c, d, ..] = flags.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
