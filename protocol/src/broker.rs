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
}

/// The broker's only message: why it could not begin.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The chain of causes, outermost first.
    pub message: String,
}
