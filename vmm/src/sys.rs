//! System calls that have no safe wrapper: vectored I/O between sockets and
//! guest memory, and what the process does to itself when it starts.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::virtio::queue::GuestSlice;

/// Buffers that one call takes; longer lists are cut, the caller goes on.
const MOST_BUFFERS: usize = 1024;

/// The one capability that is kept: writing to a file leaves it its set-ids,
/// as writing by the guest's root does (capabilities(7)).
const KEPT: CapabilitySet = CapabilitySet::FSETID;

/// Gives up every capability but [`KEPT`], and that as well where there are
/// none.
fn drop_capabilities() -> io::Result<()> {
    let only = |kept| CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, only(KEPT))
        .or_else(|_| set_capabilities(None, only(CapabilitySet::empty())))?;
    Ok(())
}

/// Changes a file as somebody who has no privilege: it loses its set-ids.
///
/// # Errors
///
/// The system's, or those of `change`.
pub(crate) fn unprivileged<T>(change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let held = capabilities(None)?;
    let mut without = held;
    without.effective.remove(KEPT);
    if without == held {
        return change();
    }
    set_capabilities(None, without)?;
    let result = change();
    set_capabilities(None, held)?;
    result
}

/// As many descriptors as the keeper may have. Where that fails it stays as it
/// is, which is enough for all but guests with many files.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads the structure.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// Lets all threads allocate from one arena: they allocate little, and each
/// further arena is private memory.
fn one_arena() {
    // SAFETY: takes plain numbers, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Dies with the parent, has no privilege but [`KEPT`] and gains none by any
/// later `execve`.
///
/// # Errors
///
/// The system's.
pub fn confine() -> io::Result<()> {
    // SAFETY: sets a signal for this process; takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: sets a flag of this process; takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    drop_capabilities()?;
    raise_descriptor_limit();
    one_arena();
    Ok(())
}

/// Whether this thread, when it wakes, lets whoever has the processor go on.
/// Where the host refuses, nothing changes.
pub(crate) fn be_patient(patient: bool) {
    let parameters = libc::sched_param { sched_priority: 0 };
    let policy = if patient {
        libc::SCHED_BATCH
    } else {
        libc::SCHED_OTHER
    };
    // SAFETY: reads the structure; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A range of a file as fcntl(2) names it.
fn range_of(first: i64, length: i64, kind: libc::c_int) -> libc::flock {
    // Numbers below ten.
    let short = |number: libc::c_int| i16::try_from(number).unwrap_or(0);
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: first,
        l_len: length,
        // Demanded of open file description locks (fcntl(2)).
        l_pid: 0,
    }
}

/// The kind of lock that stops writers, or readers as well.
fn lock_kind(write: bool) -> libc::c_int {
    if write { libc::F_WRLCK } else { libc::F_RDLCK }
}

/// Locks a range of `file` for this open file description, or unlocks it.
///
/// # Errors
///
/// The system's: `EAGAIN` if somebody else has a lock.
pub(crate) fn lock_range(
    file: &File,
    first: i64,
    length: i64,
    write: Option<bool>,
) -> io::Result<()> {
    let range = range_of(first, length, write.map_or(libc::F_UNLCK, lock_kind));
    // SAFETY: reads the structure.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) })
}

/// Finds a lock that keeps this open file description from locking a range:
/// its first byte, its length, and whether it is against reading as well.
///
/// # Errors
///
/// The system's.
pub(crate) fn find_lock(
    file: &File,
    first: i64,
    length: i64,
    write: bool,
) -> io::Result<Option<(i64, i64, bool)>> {
    let mut range = range_of(first, length, lock_kind(write));
    // SAFETY: reads and writes the structure.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) })?;
    Ok(match libc::c_int::from(range.l_type) {
        libc::F_UNLCK => None,
        kind => Some((range.l_start, range.l_len, kind == libc::F_WRLCK)),
    })
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

/// Sends one message: `head`, then what `slices` hold. Waits for room.
///
/// # Errors
///
/// The system's.
pub(crate) fn send_message(
    socket: BorrowedFd<'_>,
    head: &[u8],
    slices: &[GuestSlice<'_>],
) -> io::Result<()> {
    let head = iovec(head.as_ptr().cast_mut(), head.len());
    let mut buffers = around(head, slices, None)?;
    let message = message(&mut buffers);
    loop {
        // SAFETY: the header points to `head` and to buffers within guest
        // memory, which outlive the call; they are only read.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Room for one descriptor beside a message.
#[repr(C, align(8))]
struct Beside([u8; 24]);

/// Receives one message and the descriptor beside it: its first bytes into
/// `head`, what follows into `slices`, the rest into `tail`. Waits for it;
/// answers its length.
///
/// # Errors
///
/// The system's; `UnexpectedEof` when nobody will ever send one,
/// `InvalidData` when it does not fit.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    head: &mut [u8],
    slices: &[GuestSlice<'_>],
    tail: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let head = iovec(head.as_mut_ptr(), head.len());
    let tail = iovec(tail.as_mut_ptr(), tail.len());
    let mut buffers = around(head, slices, Some(tail))?;
    let mut beside = Beside([0; 24]);
    let mut message = message(&mut buffers);
    message.msg_control = (&raw mut beside).cast();
    message.msg_controllen = size_of::<Beside>();
    let length = loop {
        let flags = libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header points to `head`, `tail`, `beside` and to buffers
        // within guest memory, which outlive the call; Rust holds no other
        // reference to any of them.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        if let Ok(length) = usize::try_from(received) {
            break length;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let file = received_descriptor(&message);
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((length, file))
}

/// The first descriptor that came with a message just received. There is room
/// for a second one beside it, which nobody asked for: it is closed.
fn received_descriptor(message: &libc::msghdr) -> Option<OwnedFd> {
    // SAFETY: `recvmsg` has set the control buffer's length to what it wrote.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: either null or a header within the control buffer.
    let header = unsafe { first.as_ref() }?;
    if header.cmsg_type != libc::SCM_RIGHTS {
        return None;
    }
    let bytes = header.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
    // SAFETY: the header is the control buffer's first, checked above.
    let data = unsafe { libc::CMSG_DATA(first) }.cast::<RawFd>();
    let mut received = None;
    for index in 0..bytes / size_of::<RawFd>() {
        // SAFETY: so many descriptors follow the header, whose length says so.
        let descriptor = unsafe { data.wrapping_add(index).read_unaligned() };
        // SAFETY: the kernel has just installed it for this message, which is
        // read once: nobody else knows the number.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        received.get_or_insert(descriptor);
    }
    received
}

fn iovec(start: *mut u8, length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start.cast(),
        iov_len: length,
    }
}

/// Buffers for a message; more than one call takes are refused.
fn around(
    head: libc::iovec,
    slices: &[GuestSlice<'_>],
    tail: Option<libc::iovec>,
) -> io::Result<Vec<libc::iovec>> {
    if slices.len() > MOST_BUFFERS - 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut all = Vec::with_capacity(slices.len() + 2);
    all.push(head);
    all.extend(buffers(slices));
    all.extend(tail);
    Ok(all)
}

/// Reads from a file at `offset` into `slices`; 0 at its end.
///
/// # Errors
///
/// The system's.
pub(crate) fn read_at(file: &File, slices: &[GuestSlice<'_>], offset: i64) -> io::Result<usize> {
    let buffers = buffers(slices);
    let count = buffers.len().try_into().unwrap_or(0);
    // SAFETY: the buffers lie within guest memory, which outlives the call;
    // Rust holds no reference into it.
    let read = unsafe { libc::preadv(file.as_raw_fd(), buffers.as_ptr(), count, offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes `slices` to a file at `offset`, or at its end with `append`;
/// answers how much.
///
/// # Errors
///
/// The system's.
pub(crate) fn write_at(
    file: &File,
    slices: &[GuestSlice<'_>],
    offset: i64,
    append: bool,
) -> io::Result<usize> {
    let buffers = buffers(slices);
    let count = buffers.len().try_into().unwrap_or(0);
    let flags = if append { libc::RWF_APPEND } else { 0 };
    // SAFETY: the buffers lie within guest memory, which outlives the call;
    // they are only read.
    let written =
        unsafe { libc::pwritev2(file.as_raw_fd(), buffers.as_ptr(), count, offset, flags) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Finds data or a hole. The file's own position moves, which nobody uses.
///
/// # Errors
///
/// The system's; `EINVAL` for any other `whence`.
pub(crate) fn seek_data(file: &File, offset: i64, whence: u32) -> io::Result<u64> {
    let whence = match i32::try_from(whence) {
        Ok(whence @ (libc::SEEK_DATA | libc::SEEK_HOLE)) => whence,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    // SAFETY: takes plain numbers; the descriptor is borrowed for the call.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Gives space to a file, or takes it away, as fallocate(2).
///
/// # Errors
///
/// The system's.
pub(crate) fn allocate(file: &File, mode: u32, offset: i64, length: i64) -> io::Result<()> {
    // SAFETY: takes plain numbers; the descriptor is borrowed for the call.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode.cast_signed(), offset, length) })
}

/// Copies between files at positions, within the host.
///
/// # Errors
///
/// The system's.
pub(crate) fn copy_range(
    (source, mut from): (&File, i64),
    (target, mut to): (&File, i64),
    length: usize,
) -> io::Result<usize> {
    // SAFETY: the positions are read and written during the call only.
    let copied = unsafe {
        libc::copy_file_range(
            source.as_raw_fd(),
            &raw mut from,
            target.as_raw_fd(),
            &raw mut to,
            length,
            0,
        )
    };
    usize::try_from(copied).map_err(|_| io::Error::last_os_error())
}

/// Copies the beginning of `slice`, whatever becomes of it meanwhile: where no
/// page is, less is copied. Answers how much.
pub(crate) fn read_memory(slice: &GuestSlice<'_>, buffer: &mut [u8]) -> usize {
    let length = buffer.len().min(slice.len());
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: length,
    };
    // SAFETY: writes at most the buffer's length to the buffer; what is read
    // the kernel looks up as another process's memory.
    let copied = unsafe {
        libc::process_vm_readv(process_id(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(copied).unwrap_or(0)
}

/// Overwrites the beginning of `slice`, as [`read_memory`].
pub(crate) fn write_memory(slice: &GuestSlice<'_>, bytes: &[u8]) -> usize {
    let length = bytes.len().min(slice.len());
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: length,
    };
    // SAFETY: reads at most the slice's length from the slice; what is written
    // is guest memory, which Rust holds no reference into.
    let copied = unsafe {
        libc::process_vm_writev(process_id(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(copied).unwrap_or(0)
}

fn process_id() -> libc::pid_t {
    std::process::id().cast_signed()
}

/// The vectors of a call, as many as one takes.
pub(crate) fn buffers(slices: &[GuestSlice<'_>]) -> Vec<libc::iovec> {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    #[test]
    fn privileges_are_taken_back_as_they_were() {
        let before = capabilities(None).unwrap();
        let during = unprivileged(|| Ok(capabilities(None)?)).unwrap();
        let after = capabilities(None).unwrap();
        assert!(!during.effective.contains(KEPT));
        assert_eq!((during.permitted, after), (before.permitted, before));
        let failed = unprivileged(|| Err::<(), _>(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn descriptors_beyond_the_first_are_closed() {
        let (peer, ours) = UnixDatagram::pair().unwrap();
        let (wanted, _other) = UnixStream::pair().unwrap();
        let (unwanted, mut end) = UnixStream::pair().unwrap();
        let both = [wanted.as_raw_fd(), unwanted.as_raw_fd()];
        peer.send_with_fds(&[&b"x"[..]], &both).unwrap();
        drop(unwanted);
        let mut head = [0; 1];
        let (length, first) = receive_message(ours.as_fd(), &mut head, &[], &mut []).unwrap();
        assert_eq!((length, first.is_some()), (1, true));
        // Open no more, or this would have to wait.
        end.set_nonblocking(true).unwrap();
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }
}
