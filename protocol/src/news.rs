//! News: what others do to files of a shared directory that somebody in the
//! guest watches by inotify, told by the broker to the agent.
//!
//! Linux has no inotify over FUSE. So the agent tells the broker what is being
//! watched, the broker watches the same on the host, and when it has news the
//! agent makes the guest's kernel do the same operation once more, for the
//! kernel to notify whoever watches. The broker knows that the operation is
//! only said, not meant, and answers without doing it.
//!
//! ```text
//!  agent ──Watch node──▶ broker ──fanotify──▶ host's directory
//!        ◀──News: created, name── broker ◀── somebody's change
//!        ──mknod in the guest──▶ guest's kernel ──FUSE──▶ broker: "so it is"
//!                                     └── IN_CREATE ──▶ the watching program
//!        ──Done──▶ broker
//! ```
//!
//! The stream ([`crate::stream::HostPort::NEWS`]) goes through the VMM to the
//! broker; the keeper only makes it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the agent says.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Saying {
    /// One of [`saying`].
    pub kind: u32,
    /// Of [`saying::WATCH`]: inotify's mask. Of [`saying::DONE`]: which.
    pub value: u32,
    /// The node; nothing with [`saying::DONE`].
    pub node: u64,
}

/// Kinds of [`Saying`].
pub mod saying {
    /// A node is watched, for the events of a mask that replaces an earlier one.
    pub const WATCH: u32 = 1;
    /// A node is watched no more.
    pub const UNWATCH: u32 = 2;
    /// The guest has been told.
    pub const DONE: u32 = 3;
}

/// What the broker says; the two names follow.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct News {
    /// One of [`event`].
    pub kind: u32,
    /// To be answered by [`saying::DONE`] before there are more news.
    pub sequence: u32,
    /// The watched node.
    pub node: u64,
    /// Type of the file that the news are of, as in `st_mode`.
    pub kind_of_file: u32,
    /// Bytes of its name in the watched directory; 0: the watched node itself.
    pub name: u16,
    /// Bytes of the new name, with [`event::MOVED`].
    pub new_name: u16,
}

/// Kinds of [`News`].
pub mod event {
    /// Written or truncated.
    pub const MODIFIED: u32 = 1;
    /// Closed by somebody who could write.
    pub const CLOSED: u32 = 2;
    /// Owner, mode, times or links are others.
    pub const ATTRIBUTES: u32 = 3;
    /// A name has come, made or moved here from elsewhere.
    pub const CREATED: u32 = 4;
    /// A name has gone, removed or moved elsewhere.
    pub const REMOVED: u32 = 5;
    /// A name has become another in the same directory.
    pub const MOVED: u32 = 6;
}

/// Longest name.
pub const LONGEST_NAME: usize = 255;

/// Nodes that can be watched at a time.
pub const MOST_WATCHES: usize = 512;

/// The agent's process id in the guest, which is in its requests: nobody else
/// can have it.
pub const AGENT_PROCESS: u32 = 1;
