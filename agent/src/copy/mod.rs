//! Files into and out of a container, as tar archives over streams.
//!
//! It is done from here, not from the host: the root may be in guest memory,
//! parts of it are mounts that only the guest has, and what the host writes
//! into a directory that the guest caches would not be seen. Every path is
//! resolved with the container's root as `/`, in its mounts; a link leads
//! nowhere outside.

mod pack;
mod tar;
mod unpack;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::stream::StreamAddress;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::container::paths::{InRoot, c_string};
use crate::error::{Attempt, Failure, Result};
use crate::transport::{Stream, Transport};

/// Content is passed on in pieces of this.
const PIECE: usize = 64 << 10;

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const REFERENCE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Sends what is at `path`; the archive's entries begin with its last name.
pub(crate) async fn out(
    root: BorrowedFd<'_>,
    path: &str,
    transport: &Transport,
    stream: &str,
) -> Result<()> {
    let place = InRoot::parse("path", path)?;
    let mut stream = connect(transport, stream).await?;
    let act = || format!("copy {path} out of the container");
    // The last name is not followed: a link is copied as one.
    let (directory, name) = match place.steps.split_last() {
        Some((last, above)) => {
            let above = above.last().map_or(c".", |step| step.prefix.as_c_str());
            (open(root, above).attempt(act)?, last.name.clone())
        }
        None => (open(root, c".").attempt(act)?, c".".into()),
    };
    pack::pack(&mut stream, directory.as_fd(), &name)
        .await
        .attempt(act)
}

/// Unpacks an archive below `directory`, which must be there.
pub(crate) async fn into(
    root: BorrowedFd<'_>,
    directory: &str,
    transport: &Transport,
    stream: &str,
) -> Result<()> {
    let place = InRoot::parse("directory", directory)?;
    let mut stream = connect(transport, stream).await?;
    let act = || format!("copy to {directory} in the container");
    let prefix = place
        .steps
        .last()
        .map_or(c".", |step| step.prefix.as_c_str());
    // Looked at first, so that a mistake is told without a file being made.
    let flags = REFERENCE | OFlags::DIRECTORY;
    openat2(root, prefix, flags, Mode::empty(), INSIDE).attempt(act)?;
    unpack::unpack(&mut stream, root, prefix).await.attempt(act)
}

async fn connect(transport: &Transport, stream: &str) -> Result<Stream> {
    let StreamAddress(port) = stream
        .parse()
        .map_err(|error| Failure::argument(format!("stream: {error}")))?;
    transport
        .connect(port)
        .await
        .attempt(|| format!("connect to the keeper at port {port}"))
}

fn open(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> std::result::Result<OwnedFd, Errno> {
    openat2(root, path, REFERENCE, Mode::empty(), INSIDE)
}

/// Checks a path of an archive: relative, and never upwards.
fn components(path: &[u8]) -> Option<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return None,
            name => names.push(c_string("path", name).ok()?),
        }
    }
    Some(names)
}
