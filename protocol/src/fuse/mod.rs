//! The FUSE protocol as virtio-fs carries it (Linux 6.12,
//! `include/uapi/linux/fuse.h`, version 7.41; virtio 1.2, section 5.11).
//!
//! Both halves of the file server read it: the VMM answers what concerns data,
//! the broker what concerns names and metadata. A request is a header, a
//! structure and perhaps names; all of it comes from the guest, so it is read
//! through [`Reader`] only, which never goes beyond the end.

mod opcode;
mod reader;
mod wire;

pub use opcode::Opcode;
pub use reader::{Name, Reader};
pub use wire::*;

/// Protocol version that nerite speaks.
pub const MAJOR: u32 = 7;
/// Minor version of the guest kernel that nerite builds.
pub const MINOR: u32 = 41;

/// Most bytes of data in one READ or WRITE: 256 pages.
pub const MAX_DATA: u32 = 1 << 20;
/// Longest request without data: the header, its structure, and either two
/// names or an extended attribute's name and value.
pub const MAX_REQUEST: usize = 80 * 1024;
/// Longest answer without data: a directory's entries.
pub const MAX_ANSWER: usize = 128 * 1024;
/// Longest name of a directory entry, without its end.
pub const MAX_NAME: usize = 255;
/// The root directory of a device: its entries are the shares.
pub const ROOT: u64 = 1;
