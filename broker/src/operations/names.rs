//! Names: what they lead to, and how they come, go and move.

use std::os::fd::{AsFd, BorrowedFd};

use protocol::fuse::{
    BatchForgetIn, ForgetIn, ForgetOne, LinkIn, Name, Opcode, Rename2In, RenameIn,
};
use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::answer::Answer;
use crate::device::Device;
use crate::nodes::NodeId;
use crate::request::Request;
use crate::status::Status;
use crate::sys::ProcName;

/// LOOKUP.
pub(crate) fn look_up(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let name = request.name()?;
    match device.nodes.look_up(request.node(), name) {
        Ok(found) => {
            answer.push(&device.entry(&found));
            device.hold_directory(&found);
        }
        Err(Errno::NOENT) => answer.push(&device.no_entry()),
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// FORGET and BATCH_FORGET.
pub(crate) fn forget(device: &Device, opcode: Opcode, request: &mut Request<'_>) {
    if opcode == Opcode::Forget {
        if let Ok(forget) = request.take::<ForgetIn>() {
            device.nodes.forget(request.node(), forget.nlookup);
        }
        return;
    }
    // An interrupt is the VMM's: nothing waits here.
    if opcode != Opcode::BatchForget {
        return;
    }
    let Ok(batch) = request.take::<BatchForgetIn>() else {
        return;
    };
    for _ in 0..batch.count {
        let Ok(one) = request.take::<ForgetOne>() else {
            return;
        };
        device.nodes.forget(NodeId(one.nodeid), one.nlookup);
    }
}

/// LINK.
pub(crate) fn link(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let link: LinkIn = request.take()?;
    let name = request.name()?;
    let old = device.nodes.descriptor(NodeId(link.oldnodeid))?;
    let directory = device.nodes.descriptor(request.node())?;
    let path = ProcName::new(old.as_fd());
    linkat(
        CWD,
        path.as_c_str(),
        &directory,
        name.as_c_str(),
        // Follows the descriptor's own link, and none of the share's.
        AtFlags::SYMLINK_FOLLOW,
    )?;
    let found = device.nodes.look_up(request.node(), name)?;
    answer.push(&device.entry(&found));
    Ok(())
}

/// UNLINK and RMDIR.
pub(crate) fn remove(
    device: &Device,
    request: &mut Request<'_>,
    directory: bool,
) -> Result<(), Errno> {
    let name = request.name()?;
    let parent = device.nodes.descriptor(request.node())?;
    let victim = device.nodes.victim(parent.as_fd(), name);
    let flags = if directory {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    unlinkat(&parent, name.as_c_str(), flags)?;
    if let Some(victim) = victim {
        device.nodes.lose_name(victim);
    }
    Ok(())
}

/// RENAME and RENAME2.
pub(crate) fn rename(
    device: &Device,
    request: &mut Request<'_>,
    with_flags: bool,
) -> Result<(), Errno> {
    let (new_parent, flags) = if with_flags {
        let rename: Rename2In = request.take()?;
        (NodeId(rename.newdir), rename.flags)
    } else {
        let rename: RenameIn = request.take()?;
        (NodeId(rename.newdir), 0)
    };
    let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    let (old_name, new_name) = (request.name()?, request.name()?);
    let old_parent = request.node();
    let from = device.nodes.descriptor(old_parent)?;
    let to = device.nodes.descriptor(new_parent)?;
    let replaces = !flags.intersects(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE);
    let victim = replaces
        .then(|| device.nodes.victim(to.as_fd(), new_name))
        .flatten();
    renameat_with(&from, old_name.as_c_str(), &to, new_name.as_c_str(), flags)?;
    if let Some(victim) = victim {
        device.nodes.lose_name(victim);
    }
    moved(device, to.as_fd(), new_parent, new_name);
    if flags.contains(RenameFlags::EXCHANGE) {
        moved(device, from.as_fd(), old_parent, old_name);
    }
    Ok(())
}

/// Tells the nodes what is behind a name now. Whoever removes it meanwhile
/// makes the node stale, which is what it is then.
fn moved(device: &Device, directory: BorrowedFd<'_>, id: NodeId, name: Name<'_>) {
    if let Ok(status) = Status::at(directory, name.as_c_str()) {
        device.nodes.renamed(&status, id, name);
    }
}
