//! New files, directories, links and nodes, made under their creator's ids.

use std::os::fd::{AsFd, OwnedFd};

use protocol::broker::Policy;
use protocol::fuse::{CreateIn, MkdirIn, MknodIn, Name, OpenOut};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

use super::open;
use crate::answer::Answer;
use crate::caller::{Caller, create_as};
use crate::device::{Beside, Device};
use crate::nodes::NodeId;
use crate::request::Request;
use crate::status::decode_device;

/// The type and permission bits of a mode.
const TYPE: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;

/// MKNOD. A regular file is opened as it is made: whoever makes one is going
/// to write to it, and the VMM is spared the question.
pub(crate) fn node(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<Beside, Errno> {
    let node: MknodIn = request.take()?;
    let name = request.name()?;
    let caller = request.caller();
    let kind = FileType::from_raw_mode(node.mode & TYPE);
    let parent = device.nodes.descriptor(request.node())?;
    match kind {
        FileType::RegularFile => {
            let file = new_file(device, request.node(), name, caller, node.mode, node.umask)?;
            let (found, file) = device.nodes.adopt(request.node(), name, file)?;
            answer.push(&device.entry(&found));
            return Ok(Some(file.try_clone().map_err(|_| Errno::MFILE)?));
        }
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            let mode = Mode::from_raw_mode(node.mode & PERMISSIONS);
            let number = decode_device(node.rdev);
            create_as(caller, node.umask, || {
                mknodat(&parent, name.as_c_str(), kind, mode, number)
            })?;
        }
        _ => return Err(Errno::INVAL),
    }
    tell(device, request.node(), name, answer).map(|()| None)
}

/// CREATE, which only a shared device hears.
pub(crate) fn file(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<Beside, Errno> {
    if device.policy == Policy::Exclusive {
        // The guest's kernel then makes a node and opens it without asking.
        return Err(Errno::NOSYS);
    }
    let create: CreateIn = request.take()?;
    let name = request.name()?;
    let flags = OFlags::from_bits_retain(create.flags);
    let made = new_file(
        device,
        request.node(),
        name,
        request.caller(),
        create.mode,
        create.umask,
    );
    let (found, file) = match made {
        Ok(file) => {
            let (found, file) = device.nodes.adopt(request.node(), name, file)?;
            (found, Some(file))
        }
        // Somebody else was faster; an exclusive creation fails for that.
        Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
            (device.nodes.look_up(request.node(), name)?, None)
        }
        Err(errno) => return Err(errno),
    };
    crate::caller::become_self()?;
    let file = match file {
        Some(file) => file.try_clone().map_err(|_| Errno::MFILE)?,
        None => open::data(device, found.id, open::writes(flags))?,
    };
    if flags.contains(OFlags::TRUNC) {
        rustix::fs::ftruncate(&file, 0)?;
    }
    let handle = device.files.open(&device.nodes, found.id, true)?;
    answer.push(&device.entry(&found));
    answer.push(&OpenOut {
        fh: handle,
        ..OpenOut::default()
    });
    Ok(Some(file))
}

/// TMPFILE.
pub(crate) fn nameless(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<Beside, Errno> {
    let create: CreateIn = request.take()?;
    let parent = device.nodes.descriptor(request.node())?;
    // With O_EXCL it can never get a name, by nobody.
    let wanted = OFlags::from_bits_retain(create.flags) & OFlags::EXCL;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | wanted;
    let mode = Mode::from_raw_mode(create.mode & PERMISSIONS);
    let file = create_as(request.caller(), create.umask, || {
        openat(&parent, c".", flags, mode)
    })?;
    let beside = file.try_clone().map_err(|_| Errno::MFILE)?;
    let found = device.nodes.adopt_nameless(request.node(), file)?;
    let handle = device.files.open(&device.nodes, found.id, true)?;
    answer.push(&device.entry(&found));
    answer.push(&OpenOut {
        fh: handle,
        ..OpenOut::default()
    });
    Ok(Some(beside))
}

/// MKDIR.
pub(crate) fn directory(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let make: MkdirIn = request.take()?;
    let name = request.name()?;
    let parent = device.nodes.descriptor(request.node())?;
    let mode = Mode::from_raw_mode(make.mode & PERMISSIONS);
    create_as(request.caller(), make.umask, || {
        mkdirat(&parent, name.as_c_str(), mode)
    })?;
    tell(device, request.node(), name, answer)
}

/// SYMLINK. The target is the guest's affair: nothing here ever follows it.
pub(crate) fn link(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let name = request.name()?;
    let target = request.string()?;
    let parent = device.nodes.descriptor(request.node())?;
    create_as(request.caller(), 0, || {
        symlinkat(target, &parent, name.as_c_str())
    })?;
    tell(device, request.node(), name, answer)
}

fn tell(
    device: &Device,
    directory: NodeId,
    name: Name<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let found = device.nodes.look_up(directory, name)?;
    answer.push(&device.entry(&found));
    device.hold_directory(&found);
    Ok(())
}

fn new_file(
    device: &Device,
    directory: NodeId,
    name: Name<'_>,
    caller: Caller,
    mode: u32,
    umask: u32,
) -> Result<OwnedFd, Errno> {
    let parent = device.nodes.descriptor(directory)?;
    // Exclusive: what is there already is never opened here, whatever it is.
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode & PERMISSIONS);
    create_as(caller, umask, || {
        openat(parent.as_fd(), name.as_c_str(), flags, mode)
    })
}
