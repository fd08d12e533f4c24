//! The superblock (`struct erofs_super_block`).
//!
//! Without checksum: `EROFS_FEATURE_COMPAT_SB_CHKSUM` guards these 128 bytes
//! alone, and the file was written by the user who uses it.

use super::BLOCK;

/// Where it is in the image.
pub(super) const OFFSET: u64 = 1024;
const SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Inode times are modification times.
const COMPAT_MTIME: u32 = 0x2;
/// The same for every image; nothing mounts nerite's layers by UUID.
const UUID: [u8; 16] = *b"nerite\x40\x00\x80\x00layer\x01";

/// What the superblock says.
pub(super) struct Shape {
    /// The root directory's inode number.
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// The block in which inode number 0 would be.
    pub(super) meta_block: u32,
}

pub(super) fn encode(shape: &Shape) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[BLOCK.trailing_zeros().to_le_bytes()[0]]);
    put(14, &shape.root.to_le_bytes());
    put(16, &shape.inodes.to_le_bytes());
    put(36, &shape.blocks.to_le_bytes());
    put(40, &shape.meta_block.to_le_bytes());
    put(48, &UUID);
    bytes
}
