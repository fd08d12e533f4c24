//! The channels: a thread for each, one request at a time.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use protocol::fuse::MAX_REQUEST;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::answer::Answer;
use crate::caller;
use crate::device::{Beside, Device};
use crate::request::Request;

/// Enough for the deepest operation, which has a listing's buffer.
const STACK: usize = 256 * 1024;

/// Starts a thread that answers what comes over `channel`.
///
/// # Errors
///
/// When no thread can be had.
pub fn start(device: Arc<Device>, channel: OwnedFd) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name("channel".into())
        .stack_size(STACK)
        .spawn(move || {
            // A channel whose thread cannot be prepared is closed, which the
            // guest sees as I/O errors.
            let _ = caller::prepare_thread().and_then(|()| serve(&device, &channel));
        })
}

fn serve(device: &Device, channel: &OwnedFd) -> Result<(), Errno> {
    let mut room = vec![0; MAX_REQUEST];
    let mut answer = Answer::new();
    loop {
        let length = match recv(channel, room.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _) | (_, 0)) => return Ok(()),
            Ok((_, length)) => length,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let request = room.get(..length).unwrap_or_default();
        answer.clear();
        let Some((unique, result)) = handle(device, request, &mut answer) else {
            continue;
        };
        let (result, beside) = match result {
            Ok(beside) => (Ok(()), beside),
            Err(errno) => (Err(errno), None),
        };
        reply(channel, answer.finish(unique, result), beside.as_ref())?;
    }
}

/// Does what a message asks; `None` when nobody waits for an answer.
pub(crate) fn handle(
    device: &Device,
    message: &[u8],
    answer: &mut Answer,
) -> Option<(u64, Result<Beside, Errno>)> {
    let Some(mut request) = Request::parse(message) else {
        return Some((0, Err(Errno::INVAL)));
    };
    let unique = request.header.unique;
    let result = device.handle(&mut request, answer)?;
    Some((unique, result))
}

fn reply(channel: &OwnedFd, bytes: &[u8], beside: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = beside.map(|file| [file.as_fd()]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(
            channel,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
