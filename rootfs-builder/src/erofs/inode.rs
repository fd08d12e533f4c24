//! Inodes (`struct erofs_inode_extended`) and their extended attributes
//! (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`).
//!
//! Only the extended form is used: the compact one has 16-bit owners and no
//! time. Attributes are stored with each inode, none is shared.

use std::io;

use super::{BLOCK, Extent, NO_BLOCK, SLOT, directory};
use crate::tree::{Content, Device, Node, NodeId};

const HEAD: usize = 64;
const LAYOUT_EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const XATTR_HEADER: usize = 12;

/// Namespaces that EROFS has a number for. The two lists of access rights
/// are whole names.
const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Whether an image may have that attribute.
///
/// Other namespaces are refused by Linux file systems as well, so container
/// engines drop them. Overlay's own marks would be obeyed by the overlay that
/// the guest mounts on top.
pub(crate) fn keeps_xattr(name: &[u8]) -> bool {
    split_xattr(name).is_some() && !name.starts_with(b"trusted.overlay.")
}

/// An attribute's namespace number and the name within.
fn split_xattr(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(prefix, number)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = !prefix.ends_with(b".");
        (rest.is_empty() == whole && rest.len() <= 255).then_some((*number, rest))
    })
}

/// A node's bytes.
#[derive(Debug)]
pub(super) enum Body {
    /// Of a regular file: stored before.
    Stored(Extent),
    /// Of a directory or symlink: `size` bytes, the last `tail` of them
    /// beside the inode, the others from block `start` on.
    Own { size: u64, tail: usize, start: u32 },
    /// None.
    Device(u32),
}

impl Body {
    fn own(size: u64, xattrs: usize) -> Self {
        // Below the block size, so the conversion is exact.
        let tail = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let inline = HEAD + xattrs + tail <= BLOCK;
        Self::Own {
            size,
            tail: if inline { tail } else { 0 },
            start: NO_BLOCK,
        }
    }

    /// Says where the blocks of its own are.
    pub(super) fn place(&mut self, block: u32) {
        if let Self::Own { start, .. } = self {
            *start = block;
        }
    }
}

/// One inode with its place in the image.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) node: NodeId,
    /// The directory that it was first found in.
    pub(super) parent: NodeId,
    pub(super) links: u32,
    pub(super) body: Body,
    /// Bytes from the begin of the inode area.
    pub(super) offset: u64,
    xattrs: Vec<u8>,
}

impl Inode {
    pub(super) fn new(id: NodeId, parent: NodeId, node: &Node) -> io::Result<Self> {
        let xattrs = encode_xattrs(node)?;
        let body = match &node.content {
            Content::Directory(names) => Body::own(directory::size(names), xattrs.len()),
            Content::Symlink(target) => Body::own(target.len() as u64, xattrs.len()),
            Content::File(extent) => Body::Stored(*extent),
            Content::Character(device) | Content::Block(device) => Body::Device(number(*device)),
            Content::Fifo | Content::Socket => Body::Device(0),
        };
        Ok(Self {
            node: id,
            parent,
            links: 1,
            body,
            offset: 0,
            xattrs,
        })
    }

    fn tail(&self) -> usize {
        match self.body {
            Body::Own { tail, .. } => tail,
            _ => 0,
        }
    }

    /// Takes the first place from `offset` on, and tells where the next
    /// inode may be.
    ///
    /// An inode's head stays within one block, and with an inline tail all of
    /// it does: the kernel refuses a tail that crosses.
    pub(super) fn put_at(&mut self, offset: u64) -> u64 {
        let length = HEAD + self.xattrs.len() + self.tail();
        let together = if self.tail() > 0 { length } else { HEAD } as u64;
        let block = BLOCK as u64;
        self.offset = if offset % block + together > block {
            offset.next_multiple_of(block)
        } else {
            offset
        };
        (self.offset + length as u64).next_multiple_of(SLOT as u64)
    }

    /// The number that directory entries use.
    pub(super) fn number(&self) -> u64 {
        self.offset / SLOT as u64
    }

    /// Head and attributes; `index` is any number that no other inode has.
    pub(super) fn encode(&self, node: &Node, index: usize) -> io::Result<Vec<u8>> {
        let (layout, size, word) = match self.body {
            Body::Stored(extent) => (FLAT_PLAIN, extent.size, extent.start),
            Body::Own { size, tail, start } => {
                (if tail > 0 { FLAT_INLINE } else { FLAT_PLAIN }, size, start)
            }
            Body::Device(number) => (FLAT_PLAIN, 0, number),
        };
        let meta = &node.meta;
        let mut bytes = Vec::with_capacity(HEAD + self.xattrs.len());
        bytes.extend_from_slice(&(LAYOUT_EXTENDED | (layout << 1)).to_le_bytes());
        bytes.extend_from_slice(&xattr_count(self.xattrs.len())?.to_le_bytes());
        bytes.extend_from_slice(&(kind(&node.content) | meta.mode & 0o7777).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&word.to_le_bytes());
        let serial = u32::try_from(index + 1).map_err(io::Error::other)?;
        bytes.extend_from_slice(&serial.to_le_bytes());
        bytes.extend_from_slice(&meta.uid.to_le_bytes());
        bytes.extend_from_slice(&meta.gid.to_le_bytes());
        bytes.extend_from_slice(&meta.mtime.to_le_bytes());
        bytes.extend_from_slice(&meta.mtime_nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&self.links.to_le_bytes());
        bytes.resize(HEAD, 0);
        bytes.extend_from_slice(&self.xattrs);
        Ok(bytes)
    }
}

/// The number of 4-byte units that the kernel computes the size from.
fn xattr_count(bytes: usize) -> io::Result<u16> {
    match bytes.checked_sub(XATTR_HEADER) {
        None => Ok(0),
        Some(entries) => u16::try_from(entries / 4 + 1).map_err(|_| too_many_xattrs()),
    }
}

fn too_many_xattrs() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "too many or too long extended attributes",
    )
}

fn encode_xattrs(node: &Node) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (name, value) in &node.meta.xattrs {
        let Some((prefix, name)) = split_xattr(name) else {
            continue;
        };
        bytes.resize(bytes.len().max(XATTR_HEADER), 0);
        let name_length = u8::try_from(name.len()).map_err(|_| too_many_xattrs())?;
        let value_length = u16::try_from(value.len()).map_err(|_| too_many_xattrs())?;
        bytes.extend_from_slice(&[name_length, prefix]);
        bytes.extend_from_slice(&value_length.to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    xattr_count(bytes.len())?;
    Ok(bytes)
}

/// The kernel's `new_encode_dev()`.
fn number(device: Device) -> u32 {
    (device.minor & 0xff) | ((device.major & 0xfff) << 8) | ((device.minor & !0xff) << 12)
}

/// The file type's bits of `st_mode`.
fn kind(content: &Content) -> u16 {
    match content {
        Content::Fifo => 0o010_000,
        Content::Character(_) => 0o020_000,
        Content::Directory(_) => 0o040_000,
        Content::Block(_) => 0o060_000,
        Content::File(_) => 0o100_000,
        Content::Symlink(_) => 0o120_000,
        Content::Socket => 0o140_000,
    }
}

/// The file type of directory entries (`EROFS_FT_*`).
pub(super) fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::Character(_) => 3,
        Content::Block(_) => 4,
        Content::Fifo => 5,
        Content::Socket => 6,
        Content::Symlink(_) => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Meta, Names, Tree};

    fn node(xattrs: &[(&[u8], &[u8])]) -> Node {
        let xattrs = xattrs
            .iter()
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        Node {
            meta: Meta {
                xattrs,
                ..Meta::root(0o644)
            },
            content: Content::Fifo,
        }
    }

    #[test]
    fn attributes_are_encoded_as_the_kernel_reads_them() {
        let bytes = encode_xattrs(&node(&[
            (b"security.ab", b"123"),
            (b"system.posix_acl_access", b"acl"),
        ]))
        .unwrap();
        let mut expected = vec![0; 12];
        expected.extend_from_slice(b"\x02\x06\x03\x00ab123\x00\x00\x00");
        expected.extend_from_slice(b"\x00\x02\x03\x00acl\x00");
        assert_eq!(bytes, expected);
        assert_eq!(xattr_count(bytes.len()).unwrap(), 1 + 20 / 4);
        assert_eq!(xattr_count(0).unwrap(), 0);
    }

    #[test]
    fn attributes_that_do_not_fit_are_refused() {
        assert!(encode_xattrs(&node(&[(b"user.a", &[0; 65_536])])).is_err());
        let names: Vec<Vec<u8>> = (0..5).map(|i| format!("user.{i}").into_bytes()).collect();
        let all: Vec<(&[u8], &[u8])> = names
            .iter()
            .map(|name| (&name[..], &[0; 65_000][..]))
            .collect();
        assert!(encode_xattrs(&node(&all)).is_err());
        assert!(encode_xattrs(&node(&all[..4])).is_ok());
    }

    #[test]
    fn only_namespaces_of_linux_file_systems_are_kept() {
        for name in [
            "user.x",
            "security.capability",
            "trusted.x",
            "system.posix_acl_default",
        ] {
            assert!(keeps_xattr(name.as_bytes()), "{name}");
        }
        for name in [
            "user.",
            "com.apple.x",
            "system.nfs4_acl",
            "trusted.overlay.opaque",
            "",
        ] {
            assert!(!keeps_xattr(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn inode_with_tail_never_crosses_a_block() {
        for name in (1..6000).step_by(7) {
            let content = Content::Symlink(vec![b'x'; name].into());
            let node = Node {
                meta: Meta::root(0o777),
                content,
            };
            let mut inode = Inode::new(Tree::ROOT, Tree::ROOT, &node).unwrap();
            for offset in (32..9000).step_by(32) {
                let end = inode.put_at(offset);
                assert!(inode.offset >= offset && end > inode.offset && end.is_multiple_of(32));
                let length = (HEAD + inode.tail()) as u64;
                assert_eq!(inode.offset / 4096, (inode.offset + length - 1) / 4096);
            }
        }
    }

    #[test]
    fn device_numbers_are_those_of_the_kernel() {
        assert_eq!(number(Device { major: 1, minor: 3 }), 0x103);
        assert_eq!(
            number(Device {
                major: 259,
                minor: 300
            }),
            0x0011_032c
        );
        let content = Content::Directory(Names::new());
        assert_eq!((kind(&content), file_type(&content)), (0o040_000, 2));
    }
}
