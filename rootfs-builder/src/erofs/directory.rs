//! Directory contents: blocks of entries followed by their names
//! (`struct erofs_dirent`).
//!
//! Names are sorted by bytes over the whole directory, `.` and `..` with
//! them, because the kernel searches by bisection. The first entry's name
//! offset tells how many entries the block has; a name ends where the next
//! begins, the last one at a zero byte or at the end of the block.

use super::BLOCK;
use crate::tree::{Names, NodeId};

const ENTRY: usize = 12;
/// `EROFS_FT_DIR`.
const TYPE_DIRECTORY: u8 = 2;

/// Names of each block, with `.` and `..`.
fn blocks(names: &Names) -> Vec<Vec<(&[u8], Option<NodeId>)>> {
    let mut all: Vec<(&[u8], Option<NodeId>)> = names
        .iter()
        .map(|(name, entry)| (&name[..], Some(entry.node)))
        .collect();
    all.extend([(&b"."[..], None), (b"..", None)]);
    all.sort_unstable_by_key(|(name, _)| *name);

    let mut blocks = Vec::new();
    let mut block = Vec::new();
    let mut used = 0;
    for item in all {
        let need = ENTRY + item.0.len();
        if used + need > BLOCK {
            blocks.push(std::mem::take(&mut block));
            used = 0;
        }
        used += need;
        block.push(item);
    }
    blocks.push(block);
    blocks
}

/// Bytes of a directory with these names.
pub(super) fn size(names: &Names) -> u64 {
    let blocks = blocks(names);
    let last: usize = blocks.last().map_or(0, |block| {
        block.iter().map(|(name, _)| ENTRY + name.len()).sum()
    });
    ((blocks.len() - 1) * BLOCK + last) as u64
}

/// The bytes themselves; `target` tells a node's inode number and file type.
pub(super) fn encode(
    names: &Names,
    own: u64,
    parent: u64,
    target: impl Fn(NodeId) -> (u64, u8),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in blocks(names) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut name_offset = block.len() * ENTRY;
        for (name, node) in &block {
            let (number, kind) = match node {
                Some(id) => target(*id),
                None if *name == b"." => (own, TYPE_DIRECTORY),
                None => (parent, TYPE_DIRECTORY),
            };
            bytes.extend_from_slice(&number.to_le_bytes());
            // At most 4096, see `blocks`.
            bytes.extend_from_slice(&name_offset.to_le_bytes()[..2]);
            bytes.extend_from_slice(&[kind, 0]);
            name_offset += name.len();
        }
        for (name, _) in &block {
            bytes.extend_from_slice(name);
        }
    }
    bytes
}
