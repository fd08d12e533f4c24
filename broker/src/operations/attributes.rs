//! Attributes of nodes and of file systems.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::fuse::{SetattrIn, StatfsOut, StatxOut, fattr};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chmodat, chownat, fstatvfs, ftruncate, openat, utimensat,
};
use rustix::io::Errno;

use crate::answer::Answer;
use crate::device::Device;
use crate::nodes::NodeId;
use crate::request::Request;
use crate::status::Status;
use crate::sys::ProcName;

/// Longest target of a symbolic link.
const LONGEST_TARGET: usize = 4096;
const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

/// GETATTR.
pub(crate) fn get(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let status = device.status(request.node())?;
    answer.push(&device.attributes(status.attributes(false)));
    Ok(())
}

/// STATX.
pub(crate) fn get_extended(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let status = device.status(request.node())?;
    let valid = device.attributes(status.attributes(false));
    answer.push(&StatxOut {
        attr_valid: valid.attr_valid,
        attr_valid_nsec: valid.attr_valid_nsec,
        flags: 0,
        spare: [0; 2],
        stat: status.extended(),
    });
    Ok(())
}

/// SETATTR, in the order in which one change can undo another.
pub(crate) fn set(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let change: SetattrIn = request.take()?;
    let node = device.nodes.descriptor(request.node())?;
    let has = |flags| change.valid & flags != 0;
    if has(fattr::SIZE) {
        truncate(
            device.nodes.kind(request.node())?,
            node.as_fd(),
            change.size,
        )?;
    }
    if has(fattr::KILL_SUIDGID) && !has(fattr::MODE) {
        kill_privileges(node.as_fd())?;
    }
    if has(fattr::UID | fattr::GID) {
        // An id that nobody can have: to the host it means no change.
        if has(fattr::UID) && change.uid == u32::MAX || has(fattr::GID) && change.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let owner = has(fattr::UID).then(|| Uid::from_raw(change.uid));
        let group = has(fattr::GID).then(|| Gid::from_raw(change.gid));
        chownat(&node, c"", owner, group, AtFlags::EMPTY_PATH)?;
    }
    if has(fattr::MODE) {
        set_mode(node.as_fd(), change.mode)?;
    }
    if has(fattr::ATIME | fattr::MTIME) {
        let time = |set, now, seconds: u64, nanoseconds: u32| {
            let (tv_sec, tv_nsec) = if !has(set) {
                (0, UTIME_OMIT)
            } else if has(now) {
                (0, UTIME_NOW)
            } else {
                (seconds.cast_signed(), nanoseconds.into())
            };
            Timespec { tv_sec, tv_nsec }
        };
        let times = Timestamps {
            last_access: time(
                fattr::ATIME,
                fattr::ATIME_NOW,
                change.atime,
                change.atimensec,
            ),
            last_modification: time(
                fattr::MTIME,
                fattr::MTIME_NOW,
                change.mtime,
                change.mtimensec,
            ),
        };
        utimensat(&node, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    let status = Status::of(node.as_fd())?;
    answer.push(&device.attributes(status.attributes(false)));
    Ok(())
}

fn truncate(kind: FileType, node: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    ftruncate(reopen(kind, node, OFlags::WRONLY)?, size)
}

/// Opens a node for its data. Only what is known to be a regular file: to
/// open a device or a pipe would have effects of its own.
pub(crate) fn reopen(
    kind: FileType,
    node: BorrowedFd<'_>,
    access: OFlags,
) -> Result<OwnedFd, Errno> {
    match kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    // The table's word is as good as the file's own: an inode never changes
    // its type, and the descriptor holds the inode.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(CWD, ProcName::new(node).as_c_str(), flags, Mode::empty())
}

fn set_mode(node: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let path = ProcName::new(node);
    chmodat(
        CWD,
        path.as_c_str(),
        Mode::from_raw_mode(mode & 0o7777),
        AtFlags::empty(),
    )
}

/// What a write by somebody without CAP_FSETID does to a program that runs
/// under its owner's ids.
pub(crate) fn kill_privileges(node: BorrowedFd<'_>) -> Result<(), Errno> {
    let mode = Status::of(node)?.mode();
    let mut kept = mode & !SET_USER_ID;
    if mode & GROUP_EXECUTES != 0 {
        kept &= !SET_GROUP_ID;
    }
    if kept == mode {
        return Ok(());
    }
    set_mode(node, kept)
}

/// READLINK.
pub(crate) fn read_link(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let node = device.nodes.descriptor(request.node())?;
    if device.nodes.kind(request.node())? != FileType::Symlink {
        return Err(Errno::INVAL);
    }
    let target = rustix::fs::readlinkat(&node, c"", Vec::with_capacity(LONGEST_TARGET))?;
    answer.push_bytes(target.to_bytes());
    Ok(())
}

/// STATFS.
pub(crate) fn file_system(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let status = fstatvfs(&device.nodes.descriptor(request.node())?)?;
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    answer.push(&StatfsOut {
        blocks: status.f_blocks,
        bfree: status.f_bfree,
        bavail: status.f_bavail,
        files: status.f_files,
        ffree: status.f_ffree,
        bsize: narrow(status.f_bsize),
        namelen: narrow(status.f_namemax),
        frsize: narrow(status.f_frsize),
        ..StatfsOut::default()
    });
    Ok(())
}

/// FSYNCDIR, and SYNCFS with `whole`.
pub(crate) fn sync(device: &Device, id: NodeId, whole: bool) -> Result<(), Errno> {
    let node = device.nodes.descriptor(id)?;
    if device.nodes.kind(id)? != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(&node, c".", flags, Mode::empty())?;
    if whole {
        rustix::fs::syncfs(&directory)
    } else {
        rustix::fs::fsync(&directory)
    }
}
