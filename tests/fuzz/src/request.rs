//! FUSE requests that are mostly well formed, so that the fuzzer's bytes reach
//! what lies behind the first checks.
//!
//! Input of one: a byte for the opcode, one for the node, one for the caller;
//! a length and so many bytes of the request's structure (the rest is zero);
//! names, each a byte that chooses one of [`NAMES`] or announces raw bytes.

use protocol::broker::DATA;
use protocol::fuse::{InHeader, Opcode};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

pub(crate) const IN_HEADER: usize = size_of::<InHeader>();

/// Names that mean something in the tree of [`crate::share`], or nothing good.
const NAMES: [&[u8]; 24] = [
    b"0",
    b"file",
    b"directory",
    b"upwards",
    b"absolute",
    b"magic",
    b"pipe",
    b"socket",
    b"new",
    b"other",
    b"..",
    b".",
    b"",
    b"/",
    b"../secret",
    b"directory/file",
    b"/etc/passwd",
    b"\xff\n",
    &[b'x'; 255],
    &[b'x'; 256],
    b"user.a",
    b"trusted.overlay.opaque",
    b"security.capability",
    b"system.posix_acl_access",
];

/// Structure's bytes and number of strings of each kind of request.
const FORMS: [(Opcode, usize, usize); 43] = [
    (Opcode::Lookup, 0, 1),
    (Opcode::Forget, 8, 0),
    (Opcode::Getattr, 16, 0),
    (Opcode::Setattr, 88, 0),
    (Opcode::Readlink, 0, 0),
    (Opcode::Symlink, 0, 2),
    (Opcode::Mknod, 16, 1),
    (Opcode::Mkdir, 8, 1),
    (Opcode::Unlink, 0, 1),
    (Opcode::Rmdir, 0, 1),
    (Opcode::Rename, 8, 2),
    (Opcode::Link, 8, 1),
    (Opcode::Open, 8, 0),
    (Opcode::Read, 40, 0),
    (Opcode::Write, 40, 1),
    (Opcode::Statfs, 0, 0),
    (Opcode::Release, 24, 0),
    (Opcode::Fsync, 16, 0),
    (Opcode::Setxattr, 16, 2),
    (Opcode::Getxattr, 8, 1),
    (Opcode::Listxattr, 8, 0),
    (Opcode::Removexattr, 0, 1),
    (Opcode::Flush, 24, 0),
    (Opcode::Init, 64, 0),
    (Opcode::Readdir, 40, 0),
    (Opcode::Fsyncdir, 16, 0),
    (Opcode::Getlk, 48, 0),
    (Opcode::Setlk, 48, 0),
    (Opcode::Setlkw, 48, 0),
    (Opcode::Create, 16, 1),
    (Opcode::Destroy, 0, 0),
    (Opcode::BatchForget, 72, 0),
    (Opcode::Fallocate, 32, 0),
    (Opcode::Readdirplus, 40, 0),
    (Opcode::Rename2, 16, 2),
    (Opcode::Lseek, 24, 0),
    (Opcode::CopyFileRange, 56, 0),
    (Opcode::Setupmapping, 40, 0),
    (Opcode::Removemapping, 36, 0),
    (Opcode::Syncfs, 8, 0),
    (Opcode::Tmpfile, 16, 1),
    (Opcode::Statx, 24, 0),
    (Opcode::Interrupt, 8, 0),
];

/// The number that chooses the VMM's own request.
const OWN: u8 = 43;

/// A request as bytes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    /// The next request of the input, numbered `unique`.
    pub(crate) fn mostly_right(input: &mut Input<'_>, unique: u64) -> Option<Self> {
        let form = input.u8()?;
        let node = match input.u8()? {
            0xff => input.u64()?,
            node => node.into(),
        };
        let caller = input.u8()?;
        let (opcode, structure, strings) = match FORMS.get(usize::from(form)) {
            Some(&(opcode, structure, strings)) => (opcode as u32, structure, strings),
            None if form == OWN => (DATA, 8, 0),
            None => (form.into(), 0, 0),
        };
        let mut body = vec![0; structure];
        let given = usize::from(input.u8()?).min(structure);
        let bytes = input.bytes(given);
        body[..bytes.len()].copy_from_slice(bytes);
        for _ in 0..strings {
            body.extend(string(input)?);
        }
        let extensions = caller & 0x80 != 0;
        if extensions {
            let bytes = input.bytes(16);
            body.extend(bytes);
            body.resize(body.len() + 16 - bytes.len(), 0);
        }
        let header = InHeader {
            len: u32::try_from(IN_HEADER + body.len()).unwrap(),
            opcode,
            unique,
            nodeid: node,
            uid: u32::from(caller & 1) * 1000,
            gid: u32::from(caller >> 1 & 1) * 1000,
            pid: 1,
            total_extlen: u16::from(extensions) * 2,
            padding: 0,
        };
        let bytes = [header.as_bytes(), &body].concat();
        Some(Self { bytes })
    }

    /// Any bytes.
    pub(crate) fn raw(input: &mut Input<'_>) -> Option<Self> {
        let length = usize::from(input.u16()? & 0x3ff);
        let bytes = input.bytes(length).to_vec();
        Some(Self { bytes })
    }

    /// Its header, if there is so much of it.
    pub(crate) fn header(&self) -> Option<InHeader> {
        InHeader::read_from_prefix(&self.bytes)
            .ok()
            .map(|(header, _)| header)
    }

    /// Whether it has the outer form of a request.
    pub(crate) fn is_whole(&self) -> bool {
        self.header().is_some_and(|header| {
            let extensions = usize::from(header.total_extlen) * 8;
            usize::try_from(header.len) == Ok(self.bytes.len())
                && extensions <= self.bytes.len() - IN_HEADER
        })
    }

    /// Whether nobody waits for its answer.
    pub(crate) fn is_one_way(&self) -> bool {
        let opcode = self
            .header()
            .and_then(|header| Opcode::from_number(header.opcode));
        opcode.is_some_and(Opcode::is_one_way)
    }
}

/// A string with its zero.
fn string(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let choice = input.u8()?;
    let mut bytes = match NAMES.get(usize::from(choice)) {
        Some(name) => name.to_vec(),
        None => input.bytes(usize::from(choice & 0x7f)).to_vec(),
    };
    bytes.push(0);
    Some(bytes)
}
