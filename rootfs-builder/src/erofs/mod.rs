//! Writes EROFS images: uncompressed, every file's data in whole blocks.
//!
//! `mkfs.erofs` is not used. Its versions differ in what they can read (tar
//! only since 1.7) and how they lay data out, it would be one more package
//! that a user must install, and an image has to be unpacked as root for it.
//! What nerite needs of the format is small:
//!
//! ```text
//!  block 0   superblock at byte 1024
//!  block 1…  contents of regular files, each from a block's start: DAX maps
//!            them straight into programs (EROFS_INODE_FLAT_PLAIN)
//!            directories and symlinks that do not fit beside their inode
//!  meta…     inodes (64 bytes each, EROFS_INODE_LAYOUT_EXTENDED), each with
//!            its xattrs and, for directories and symlinks, the tail inline
//! ```
//!
//! Contents come first because then they can be streamed while the tree is
//! still being read: an archive is read once, in one pass, without being
//! unpacked. A file that a later layer hides leaves a hole, which costs no
//! disk space. All zero blocks become holes.
//!
//! Equal input gives equal bytes: no time, no random UUID, names sorted.
//! Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of
//! Linux 6.12; only features of Linux 5.4 are used.

mod directory;
mod inode;
mod output;
mod superblock;

use std::fs::File;
use std::io::{self, Read};

pub(crate) use self::inode::keeps_xattr;
use self::inode::{Body, Inode};
use self::output::Output;
use crate::tree::{Content, NodeId, PerNode, Tree};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of a unit in which inodes are numbered.
const SLOT: usize = 32;

/// Where a regular file's contents are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Extent {
    /// First block.
    start: u32,
    /// Bytes.
    pub(crate) size: u64,
}

impl Extent {
    /// Of a file without contents.
    pub(crate) const EMPTY: Self = Self {
        start: NO_BLOCK,
        size: 0,
    };
}

/// The block number of what has no block.
const NO_BLOCK: u32 = u32::MAX;

/// Why contents were not stored.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// Reading them failed.
    Read(io::Error),
    /// Writing them failed.
    Write(io::Error),
}

/// An image being written.
#[derive(Debug)]
pub(crate) struct Writer {
    output: Output,
}

impl Writer {
    /// Starts an image in an empty file.
    pub(crate) fn new(file: File) -> Self {
        Self {
            output: Output::new(file, BLOCK as u64),
        }
    }

    /// Stores a regular file's contents, to the reader's end.
    pub(crate) fn store(&mut self, contents: &mut dyn Read) -> Result<Extent, StoreError> {
        let start = self.output.block().map_err(StoreError::Write)?;
        let size = self.output.copy(contents)?;
        if size == 0 {
            return Ok(Extent::EMPTY);
        }
        self.output.pad(BLOCK).map_err(StoreError::Write)?;
        Ok(Extent { start, size })
    }

    /// Writes the tree behind its contents and completes the image.
    ///
    /// Contents of files without a name give their disk space back.
    pub(crate) fn finish(mut self, tree: &Tree) -> io::Result<File> {
        let mut plan = Plan::new(tree)?;
        for node in plan.nameless_files(tree) {
            self.output
                .discard(u64::from(node.start) * BLOCK as u64, node.size)?;
        }
        for index in 0..plan.inodes.len() {
            let blocks = plan.block_bytes(tree, index);
            if !blocks.is_empty() {
                plan.inodes[index].body.place(self.output.block()?);
                self.output.write(&blocks)?;
                self.output.pad(BLOCK)?;
            }
        }
        let meta_block = self.output.block()?;
        for index in 0..plan.inodes.len() {
            let inode = &plan.inodes[index];
            self.output
                .seek_to(u64::from(meta_block) * BLOCK as u64, inode.offset)?;
            self.output
                .write(&inode.encode(tree.node(inode.node), index)?)?;
            self.output.write(&plan.tail_bytes(tree, index))?;
        }
        self.output.pad(BLOCK)?;
        let superblock = superblock::encode(&superblock::Shape {
            root: u16::try_from(plan.inodes[0].number()).map_err(io::Error::other)?,
            inodes: plan.inodes.len() as u64,
            blocks: self.output.block()?,
            meta_block,
        });
        self.output.finish(superblock::OFFSET, &superblock)
    }
}

/// Every inode of an image with its place. Directories come before what they
/// hold; the root is the first.
struct Plan {
    inodes: Vec<Inode>,
    /// Index into `inodes` of each node that has a name.
    index: PerNode<Option<usize>>,
}

impl Plan {
    fn new(tree: &Tree) -> io::Result<Self> {
        let mut plan = Self {
            inodes: Vec::new(),
            index: PerNode::new(tree),
        };
        // Inode number 0 means "no entry" to readdir(3): leave the first slot.
        let mut offset = SLOT as u64;
        let mut pending = vec![(Tree::ROOT, Tree::ROOT)];
        while let Some((id, parent)) = pending.pop() {
            if let Some(index) = *plan.index.get(id) {
                plan.inodes[index].links += 1;
                continue;
            }
            let node = tree.node(id);
            let mut inode = Inode::new(id, parent, node)?;
            if let Content::Directory(names) = &node.content {
                inode.links = 2;
                for entry in names.values().rev() {
                    inode.links += u32::from(tree.names(entry.node).is_some());
                    pending.push((entry.node, id));
                }
            }
            offset = inode.put_at(offset);
            *plan.index.get_mut(id) = Some(plan.inodes.len());
            plan.inodes.push(inode);
        }
        Ok(plan)
    }

    fn nameless_files(&self, tree: &Tree) -> Vec<Extent> {
        tree.nodes()
            .filter(|(id, _)| self.index.get(*id).is_none())
            .filter_map(|(_, node)| match node.content {
                Content::File(extent) if extent.size > 0 => Some(extent),
                _ => None,
            })
            .collect()
    }

    fn number(&self, id: NodeId) -> u64 {
        self.index
            .get(id)
            .map_or(0, |index| self.inodes[index].number())
    }

    /// A directory's or symlink's bytes.
    fn bytes(&self, tree: &Tree, index: usize) -> Vec<u8> {
        let inode = &self.inodes[index];
        match &tree.node(inode.node).content {
            Content::Directory(names) => {
                let own = self.number(inode.node);
                let parent = self.number(inode.parent);
                directory::encode(names, own, parent, |id| {
                    (self.number(id), inode::file_type(&tree.node(id).content))
                })
            }
            Content::Symlink(target) => target.to_vec(),
            _ => Vec::new(),
        }
    }

    /// The part of them that lies in blocks of its own.
    fn block_bytes(&self, tree: &Tree, index: usize) -> Vec<u8> {
        match self.inodes[index].body {
            Body::Own { size, tail, .. } if size > tail as u64 => {
                let mut bytes = self.bytes(tree, index);
                bytes.truncate(bytes.len() - tail);
                bytes
            }
            _ => Vec::new(),
        }
    }

    /// The part of them that lies beside the inode.
    fn tail_bytes(&self, tree: &Tree, index: usize) -> Vec<u8> {
        match self.inodes[index].body {
            Body::Own { tail, .. } if tail > 0 => {
                let bytes = self.bytes(tree, index);
                bytes[bytes.len() - tail..].to_vec()
            }
            _ => Vec::new(),
        }
    }
}
