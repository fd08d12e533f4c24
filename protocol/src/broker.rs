//! The broker's two conversations: the keeper tells it what to share, the VMM
//! passes on what the guest asks.
//!
//! ```text
//!  keeper ──Setup, share trees, channels──▶ nerite-fs
//!  nerite-vmm ──FUSE request──▶ channel ──▶ nerite-fs
//!             ◀──FUSE answer (and a data descriptor)──
//! ```
//!
//! A channel is a `SOCK_SEQPACKET` socket with one request on its way at a
//! time. A request is what the guest wrote, header and all, at most
//! [`crate::fuse::MAX_REQUEST`] bytes; the answer is what the guest reads, at
//! most [`crate::fuse::MAX_ANSWER`] bytes. Requests without an answer
//! ([`crate::fuse::Opcode::is_one_way`]) get none. The VMM has one request of
//! its own, [`DATA`].

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::control::Fd;
use crate::fuse::{AttrOut, EntryOut, Opcode};

/// Opcode of the VMM's own request: a descriptor for a node's data. Outside
/// of FUSE's numbers, and never passed on from a guest. A [`DataIn`] follows
/// the header; the answer is a bare header with one descriptor beside it.
pub const DATA: u32 = 0x6e66_0001;

/// What a data descriptor is for.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct DataIn {
    /// 0: reading. 1: reading and writing.
    pub write: u32,
    /// Nothing.
    pub padding: u32,
}

/// What follows the answer to a request that has changed a directory: how the
/// directory is now. Only for trees that nobody but the guest changes, only
/// after requests that [`entry_bytes`] knows, and beyond the length in the
/// answer's header, for it is not the guest's.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Changed {
    /// The directory.
    pub node: u64,
    /// As GETATTR would tell them.
    pub attributes: AttrOut,
}

/// Bytes behind the header of the answer to a request that changes the
/// directory that it names; `None` for other requests.
#[must_use]
pub fn entry_bytes(opcode: Opcode) -> Option<usize> {
    match opcode {
        Opcode::Mknod | Opcode::Mkdir | Opcode::Symlink | Opcode::Link => {
            Some(size_of::<EntryOut>())
        }
        Opcode::Unlink | Opcode::Rmdir | Opcode::Rename | Opcode::Rename2 => Some(0),
        _ => None,
    }
}

/// Who may change what a device shows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Only this guest: everything is cached without expiry, writes are
    /// collected, locks are the guest's own affair.
    Exclusive,
    /// Others as well: caches expire soon, opening a file looks for changes,
    /// locks are the host's.
    Shared,
}

impl Policy {
    /// The virtio-fs tag of the device.
    #[must_use]
    pub fn tag(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// The keeper's first message to the broker.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The devices.
    pub devices: Vec<DeviceSetup>,
    /// Nodes that the guest may know at a time, over all devices.
    pub most_nodes: usize,
    /// A stream to the agent for what happens in the shared device
    /// ([`crate::news`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub news: Option<Fd>,
}

/// One virtio-fs device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DeviceSetup {
    /// Who may change what it shows.
    pub policy: Policy,
    /// The shares, named `0`, `1`, … in the device's root.
    pub shares: Vec<Share>,
    /// One end of each channel.
    pub channels: Vec<Fd>,
}

/// One share.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// A detached mount (`open_tree` with `OPEN_TREE_CLONE`) of a directory or
    /// of a file.
    pub tree: Fd,
    /// No writes through this share.
    pub read_only: bool,
    /// What the host mounts below it later appears in it.
    pub follows: bool,
}

/// The broker's only message: why it could not begin.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The chain of causes, outermost first.
    pub message: String,
}
