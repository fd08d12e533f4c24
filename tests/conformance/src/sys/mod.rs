//! System calls as they are: what a library would correct or emulate is what
//! is to be seen here. Only the calls that work relative to a directory, which
//! every architecture has.

#![allow(unsafe_code)]

pub(crate) mod memory;
pub(crate) mod process;

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::Errno;

/// What a call answers.
pub(crate) type Res<T> = Result<T, Errno>;

/// The working directory.
pub(crate) const HERE: RawFd = libc::AT_FDCWD;

/// An argument as the kernel takes it.
#[derive(Clone, Copy)]
struct Word(usize);

impl From<i32> for Word {
    fn from(number: i32) -> Self {
        Self((number as isize).cast_unsigned())
    }
}

impl From<i64> for Word {
    fn from(number: i64) -> Self {
        Self(usize::try_from(number.cast_unsigned()).unwrap_or(usize::MAX))
    }
}

impl From<u32> for Word {
    fn from(number: u32) -> Self {
        Self(number as usize)
    }
}

impl From<usize> for Word {
    fn from(number: usize) -> Self {
        Self(number)
    }
}

impl From<&CString> for Word {
    fn from(path: &CString) -> Self {
        Self(path.as_ptr().expose_provenance())
    }
}

impl From<&[u8]> for Word {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr().expose_provenance())
    }
}

impl From<&mut [u8]> for Word {
    fn from(bytes: &mut [u8]) -> Self {
        Self(bytes.as_mut_ptr().expose_provenance())
    }
}

/// A pointer to a structure that the kernel reads or fills.
fn at<T>(value: &mut T) -> Word {
    Word((&raw mut *value).expose_provenance())
}

const NULL: Word = Word(0);

/// Calls the kernel.
fn call<const N: usize>(number: libc::c_long, words: [Word; N]) -> Res<usize> {
    let mut six = [0; 6];
    for (to, from) in six.iter_mut().zip(words) {
        *to = from.0;
    }
    let [a, b, c, d, e, f] = six;
    // SAFETY: this module alone calls it, and passes what the call's manual
    // page asks for: pointers are made from references that live until it
    // returns, lengths are those of what they point to.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    usize::try_from(result).map_err(|_| Errno::last())
}

fn done<const N: usize>(number: libc::c_long, words: [Word; N]) -> Res<()> {
    call(number, words).map(|_| ())
}

fn number<const N: usize>(call_number: libc::c_long, words: [Word; N]) -> Res<i32> {
    call(call_number, words).map(|value| i32::try_from(value).unwrap_or(i32::MAX))
}

/// Structures of the kernel's that are valid when all their bytes are zero.
pub(crate) trait Plain: Sized {
    /// All zero.
    fn zeroed() -> Self {
        // SAFETY: the types below are made of integers and arrays of them.
        unsafe { std::mem::zeroed() }
    }
}

impl Plain for libc::stat {}
impl Plain for libc::statx {}
impl Plain for libc::statfs64 {}
impl Plain for libc::flock64 {}

fn path(bytes: impl AsRef<[u8]>) -> CString {
    CString::new(bytes.as_ref()).unwrap_or_default()
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Fd(OwnedFd);

impl Fd {
    /// Takes what a call has just opened.
    fn take(number: usize) -> Self {
        let number = RawFd::try_from(number).unwrap_or(RawFd::MAX);
        // SAFETY: the kernel has just made the descriptor, and answers its
        // number to the one caller that passes it here.
        Self(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// Its number.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

pub(crate) fn openat(directory: RawFd, name: impl AsRef<[u8]>, flags: i32, mode: u32) -> Res<Fd> {
    let name = path(name);
    let flags = flags | libc::O_CLOEXEC;
    call(
        libc::SYS_openat,
        [directory.into(), (&name).into(), flags.into(), mode.into()],
    )
    .map(Fd::take)
}

pub(crate) fn open(name: impl AsRef<[u8]>, flags: i32, mode: u32) -> Res<Fd> {
    openat(HERE, name, flags, mode)
}

pub(crate) fn close(descriptor: RawFd) -> Res<()> {
    done(libc::SYS_close, [descriptor.into()])
}

pub(crate) fn read(descriptor: RawFd, length: usize) -> Res<Vec<u8>> {
    let mut bytes = vec![0; length];
    let room = Word::from(bytes.as_mut_slice());
    let length = call(libc::SYS_read, [descriptor.into(), room, length.into()])?;
    bytes.truncate(length);
    Ok(bytes)
}

pub(crate) fn write(descriptor: RawFd, bytes: impl AsRef<[u8]>) -> Res<usize> {
    let bytes = bytes.as_ref();
    call(
        libc::SYS_write,
        [descriptor.into(), bytes.into(), bytes.len().into()],
    )
}

pub(crate) fn pread(descriptor: RawFd, length: usize, offset: i64) -> Res<Vec<u8>> {
    let mut bytes = vec![0; length];
    let length = pread_into(descriptor, &mut bytes, offset)?;
    bytes.truncate(length);
    Ok(bytes)
}

pub(crate) fn pread_into(descriptor: RawFd, room: &mut [u8], offset: i64) -> Res<usize> {
    let length = room.len();
    call(
        libc::SYS_pread64,
        [descriptor.into(), room.into(), length.into(), offset.into()],
    )
}

pub(crate) fn pwrite(descriptor: RawFd, bytes: impl AsRef<[u8]>, offset: i64) -> Res<usize> {
    let bytes = bytes.as_ref();
    call(
        libc::SYS_pwrite64,
        [
            descriptor.into(),
            bytes.into(),
            bytes.len().into(),
            offset.into(),
        ],
    )
}

/// `preadv2` into buffers of these lengths; answers what was read, joined.
pub(crate) fn preadv2(
    descriptor: RawFd,
    lengths: &[usize],
    offset: i64,
    flags: i32,
) -> Res<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = lengths.iter().map(|&length| vec![0; length]).collect();
    let vectors: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        })
        .collect();
    let length = vector_call(libc::SYS_preadv2, descriptor, &vectors, offset, flags)?;
    let mut bytes = buffers.concat();
    bytes.truncate(length);
    Ok(bytes)
}

/// `pwritev2` of several buffers.
pub(crate) fn pwritev2(
    descriptor: RawFd,
    buffers: &[&[u8]],
    offset: i64,
    flags: i32,
) -> Res<usize> {
    let vectors: Vec<_> = buffers
        .iter()
        .map(|buffer| libc::iovec {
            iov_base: buffer.as_ptr().cast_mut().cast(),
            iov_len: buffer.len(),
        })
        .collect();
    vector_call(libc::SYS_pwritev2, descriptor, &vectors, offset, flags)
}

fn vector_call(
    number: libc::c_long,
    descriptor: RawFd,
    vectors: &[libc::iovec],
    offset: i64,
    flags: i32,
) -> Res<usize> {
    let list = Word(vectors.as_ptr().expose_provenance());
    // The position is in two halves; a register has room for all of it.
    let words = [
        descriptor.into(),
        list,
        vectors.len().into(),
        offset.into(),
        NULL,
        flags.into(),
    ];
    call(number, words)
}

pub(crate) fn lseek(descriptor: RawFd, offset: i64, whence: i32) -> Res<usize> {
    call(
        libc::SYS_lseek,
        [descriptor.into(), offset.into(), whence.into()],
    )
}

pub(crate) fn truncate(name: impl AsRef<[u8]>, length: i64) -> Res<()> {
    let name = path(name);
    done(libc::SYS_truncate, [(&name).into(), length.into()])
}

pub(crate) fn ftruncate(descriptor: RawFd, length: i64) -> Res<()> {
    done(libc::SYS_ftruncate, [descriptor.into(), length.into()])
}

pub(crate) fn fallocate(descriptor: RawFd, mode: i32, offset: i64, length: i64) -> Res<()> {
    done(
        libc::SYS_fallocate,
        [descriptor.into(), mode.into(), offset.into(), length.into()],
    )
}

pub(crate) fn copy_file_range(
    from: (RawFd, Option<i64>),
    to: (RawFd, Option<i64>),
    length: usize,
    flags: u32,
) -> Res<usize> {
    let (mut from_position, mut to_position) = (from.1, to.1);
    let pointer = |position: &mut Option<i64>| position.as_mut().map_or(NULL, at);
    call(
        libc::SYS_copy_file_range,
        [
            from.0.into(),
            pointer(&mut from_position),
            to.0.into(),
            pointer(&mut to_position),
            length.into(),
            flags.into(),
        ],
    )
}

pub(crate) fn sendfile(to: RawFd, from: RawFd, offset: Option<i64>, length: usize) -> Res<usize> {
    let mut offset = offset;
    let pointer = offset.as_mut().map_or(NULL, at);
    call(
        libc::SYS_sendfile,
        [to.into(), from.into(), pointer, length.into()],
    )
}

pub(crate) fn splice(
    from: (RawFd, Option<i64>),
    to: (RawFd, Option<i64>),
    length: usize,
) -> Res<usize> {
    let (mut from_position, mut to_position) = (from.1, to.1);
    let pointer = |position: &mut Option<i64>| position.as_mut().map_or(NULL, at);
    call(
        libc::SYS_splice,
        [
            from.0.into(),
            pointer(&mut from_position),
            to.0.into(),
            pointer(&mut to_position),
            length.into(),
            NULL,
        ],
    )
}

pub(crate) fn fsync(descriptor: RawFd) -> Res<()> {
    done(libc::SYS_fsync, [descriptor.into()])
}

pub(crate) fn fdatasync(descriptor: RawFd) -> Res<()> {
    done(libc::SYS_fdatasync, [descriptor.into()])
}

pub(crate) fn syncfs(descriptor: RawFd) -> Res<()> {
    done(libc::SYS_syncfs, [descriptor.into()])
}

pub(crate) fn sync_file_range(descriptor: RawFd, offset: i64, length: i64, flags: u32) -> Res<()> {
    done(
        libc::SYS_sync_file_range,
        [
            descriptor.into(),
            offset.into(),
            length.into(),
            flags.into(),
        ],
    )
}

pub(crate) fn fstatat(directory: RawFd, name: impl AsRef<[u8]>, flags: i32) -> Res<libc::stat> {
    let name = path(name);
    let mut status = libc::stat::zeroed();
    done(
        libc::SYS_newfstatat,
        [
            directory.into(),
            (&name).into(),
            at(&mut status),
            flags.into(),
        ],
    )?;
    Ok(status)
}

pub(crate) fn lstat(name: impl AsRef<[u8]>) -> Res<libc::stat> {
    fstatat(HERE, name, libc::AT_SYMLINK_NOFOLLOW)
}

pub(crate) fn stat(name: impl AsRef<[u8]>) -> Res<libc::stat> {
    fstatat(HERE, name, 0)
}

pub(crate) fn fstat(descriptor: RawFd) -> Res<libc::stat> {
    fstatat(descriptor, "", libc::AT_EMPTY_PATH)
}

pub(crate) fn statx(name: impl AsRef<[u8]>, flags: i32, mask: u32) -> Res<libc::statx> {
    let name = path(name);
    let mut status = libc::statx::zeroed();
    done(
        libc::SYS_statx,
        [
            HERE.into(),
            (&name).into(),
            flags.into(),
            mask.into(),
            at(&mut status),
        ],
    )?;
    Ok(status)
}

pub(crate) fn statfs(name: impl AsRef<[u8]>) -> Res<libc::statfs64> {
    let name = path(name);
    let mut status = libc::statfs64::zeroed();
    done(libc::SYS_statfs, [(&name).into(), at(&mut status)])?;
    Ok(status)
}

pub(crate) fn fstatfs(descriptor: RawFd) -> Res<libc::statfs64> {
    let mut status = libc::statfs64::zeroed();
    done(libc::SYS_fstatfs, [descriptor.into(), at(&mut status)])?;
    Ok(status)
}

/// `getdents64`: entries as the kernel lays them out.
pub(crate) fn getdents(descriptor: RawFd, room: &mut [u8]) -> Res<usize> {
    let length = room.len();
    call(
        libc::SYS_getdents64,
        [descriptor.into(), room.into(), length.into()],
    )
}

pub(crate) fn dup(descriptor: RawFd) -> Res<Fd> {
    call(libc::SYS_dup, [descriptor.into()]).map(Fd::take)
}

pub(crate) fn pipe(flags: i32) -> Res<(Fd, Fd)> {
    let mut ends = [0_i32; 2];
    done(libc::SYS_pipe2, [at(&mut ends), flags.into()])?;
    let [read, write] = ends.map(|end| Fd::take(usize::try_from(end).unwrap_or(usize::MAX)));
    Ok((read, write))
}

pub(crate) fn fcntl(descriptor: RawFd, command: i32, argument: i32) -> Res<i32> {
    number(
        libc::SYS_fcntl,
        [descriptor.into(), command.into(), argument.into()],
    )
}

pub(crate) fn fcntl_lock(descriptor: RawFd, command: i32, lock: &mut libc::flock64) -> Res<()> {
    done(
        libc::SYS_fcntl,
        [descriptor.into(), command.into(), at(lock)],
    )
}

pub(crate) fn flock(descriptor: RawFd, operation: i32) -> Res<()> {
    done(libc::SYS_flock, [descriptor.into(), operation.into()])
}

/// `ioctl` with a number.
pub(crate) fn ioctl(descriptor: RawFd, request: u64, argument: i32) -> Res<i32> {
    let request = usize::try_from(request).unwrap_or(usize::MAX);
    number(
        libc::SYS_ioctl,
        [descriptor.into(), request.into(), argument.into()],
    )
}

/// `ioctl` that fills a number in.
pub(crate) fn ioctl_get(descriptor: RawFd, request: u64) -> Res<u64> {
    let mut value = 0_u64;
    let request = usize::try_from(request).unwrap_or(usize::MAX);
    done(
        libc::SYS_ioctl,
        [descriptor.into(), request.into(), at(&mut value)],
    )?;
    Ok(value)
}

mod names;
pub(crate) use names::*;
