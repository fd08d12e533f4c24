//! Files inside a container's root, whatever links its image has.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::container::paths::{InRoot, Step};

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

const REFERENCE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Refers to what is at `path`.
pub(super) fn find(root: BorrowedFd<'_>, path: &InRoot) -> Result<OwnedFd, Errno> {
    let prefix = path
        .steps
        .last()
        .map_or(c".", |step| step.prefix.as_c_str());
    openat2(root, prefix, REFERENCE, Mode::empty(), INSIDE)
}

/// Opens what is at `path`, which is relative.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, Mode::empty(), INSIDE)
}

/// Refers to the directory at `path`, made with all above it if absent.
/// `plain`: symbolic links on the way are refused.
pub(super) fn directory(
    root: BorrowedFd<'_>,
    path: &InRoot,
    plain: bool,
) -> Result<OwnedFd, Errno> {
    walk(
        root,
        &path.steps,
        if plain {
            INSIDE | ResolveFlags::NO_SYMLINKS
        } else {
            INSIDE
        },
    )
}

/// The directory that `path` is in, made if absent, and its name there.
pub(super) fn parent<'p>(
    root: BorrowedFd<'_>,
    path: &'p InRoot,
) -> Result<(OwnedFd, &'p CStr), Errno> {
    let (last, above) = path.steps.split_last().ok_or(Errno::ISDIR)?;
    Ok((walk(root, above, INSIDE)?, &last.name))
}

fn walk(root: BorrowedFd<'_>, steps: &[Step], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = REFERENCE | OFlags::DIRECTORY;
    let open = |path: &CStr| openat2(root, path, flags, Mode::empty(), resolve);
    // Nearly always it is all there.
    match open(steps.last().map_or(c".", |step| step.prefix.as_c_str())) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut here = open(c".")?;
    for step in steps {
        here = match open(&step.prefix) {
            Err(Errno::NOENT) => {
                mkdirat(&here, &*step.name, Mode::from_raw_mode(0o755))?;
                open(&step.prefix)?
            }
            result => result?,
        };
    }
    Ok(here)
}

/// Refers to what is at `path`, made as an empty file if absent.
pub(super) fn file(root: BorrowedFd<'_>, path: &InRoot) -> Result<OwnedFd, Errno> {
    match find(root, path) {
        Err(Errno::NOENT) => {
            let (directory, name) = parent(root, path)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(directory, name, flags, Mode::from_raw_mode(0o644))?);
            find(root, path)
        }
        result => result,
    }
}

/// Whether a descriptor is a directory's.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}
