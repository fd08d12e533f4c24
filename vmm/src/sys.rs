//! System calls that have no safe wrapper: vectored I/O between sockets and
//! guest memory, and what the process does to itself when it starts.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::virtio::queue::GuestSlice;

/// Buffers that one call takes; longer lists are cut, the caller goes on.
const MOST_BUFFERS: usize = 64;

/// Dies with the parent, gains no privilege by any later `execve`.
///
/// # Errors
///
/// The system's.
pub fn confine() -> io::Result<()> {
    // SAFETY: sets a signal for this process; takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: sets a flag of this process; takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Fills the buffer from the kernel's generator; returns how much. Fewer
/// bytes only where the generator is not seeded, which a host that runs
/// virtual machines is.
#[must_use]
pub fn random(buffer: &mut [u8]) -> usize {
    // SAFETY: writes at most the buffer's length to the buffer.
    let filled = unsafe {
        libc::getrandom(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::GRND_NONBLOCK,
        )
    };
    usize::try_from(filled).unwrap_or(0)
}

/// Reads exactly `slice.len()` bytes at `offset` into guest memory, leaving
/// the file's own offset alone.
pub(crate) fn pread_exact(file: &File, slice: &GuestSlice<'_>, offset: u64) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let mut done = 0;
    while done < slice.len() {
        let position = offset
            .checked_add(done as u64)
            .and_then(|position| i64::try_from(position).ok())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let target = guard.as_ptr().wrapping_add(done);
        // SAFETY: `target` and the remaining length lie within the slice, a
        // part of guest memory that `guard` keeps alive; the guest does not
        // run yet, and Rust holds no reference into it.
        let read = unsafe {
            libc::pread(
                file.as_raw_fd(),
                target.cast(),
                slice.len() - done,
                position,
            )
        };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Sends what `slices` hold, without waiting and without a signal.
///
/// # Errors
///
/// The system's; `WouldBlock` when the socket has no room.
pub fn send(socket: BorrowedFd<'_>, slices: &[GuestSlice<'_>]) -> io::Result<usize> {
    let mut buffers = buffers(slices);
    let message = message(&mut buffers);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to buffers within guest memory, which
    // outlives the call; they are only read.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends `bytes`, without waiting and without a signal.
///
/// # Errors
///
/// The system's; `WouldBlock` when the socket has no room.
pub fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: reads at most the slice's length from the slice.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives into `slices`, without waiting; 0 at the end of the stream.
///
/// # Errors
///
/// The system's; `WouldBlock` when nothing is there.
pub fn receive(socket: BorrowedFd<'_>, slices: &[GuestSlice<'_>]) -> io::Result<usize> {
    let mut buffers = buffers(slices);
    let mut message = message(&mut buffers);
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the header points to buffers within guest memory, which
    // outlives the call; Rust holds no reference into it.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

fn buffers(slices: &[GuestSlice<'_>]) -> Vec<libc::iovec> {
    slices
        .iter()
        .take(MOST_BUFFERS)
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect()
}

fn message(buffers: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid msghdr: null pointers, zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = buffers.as_mut_ptr();
    message.msg_iovlen = buffers.len();
    message
}

/// Which directions of a socket end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Nothing more will be sent to it.
    Write,
    /// Nothing more will be read from it.
    Read,
}

/// Ends a direction of a socket. A socket whose peer is gone has ended.
pub fn shutdown(socket: BorrowedFd<'_>, end: End) {
    let how = match end {
        End::Write => libc::SHUT_WR,
        End::Read => libc::SHUT_RD,
    };
    // SAFETY: takes plain numbers; the descriptor is borrowed for the call.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}
