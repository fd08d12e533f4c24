//! The system calls of a job: as an entry for io_uring, or performed at once.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::job::{Call, ZEROS_AT_ONCE};
use crate::sys::buffers;

/// What zeros are written from; several times, for longer writes.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Puts an entry into the ring, to be submitted later; fails when it is full.
pub(super) fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    let mut queue = ring.submission();
    // SAFETY: entries come from `entry` below and from the poll of a kick: the
    // descriptors live as long as the engine, the vectors stay in the request's
    // `Flight` until its completion, and what they point to is guest memory,
    // which outlives the engine, or `ZEROS`.
    unsafe { queue.push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
}

/// The call as an entry, and the vectors that must live as long as it runs.
pub(super) fn entry(file: &File, call: Call<'_, '_>) -> (squeue::Entry, Vec<libc::iovec>) {
    let fd = Fd(file.as_raw_fd());
    let vectors = vectors(call);
    let pointer = vectors.as_ptr();
    let count = u32::try_from(vectors.len()).unwrap_or(0);
    let entry = match call {
        Call::Read(_, offset) => opcode::Readv::new(fd, pointer, count)
            .offset(offset.unsigned_abs())
            .build(),
        Call::Write {
            offset, through, ..
        } => opcode::Writev::new(fd, pointer, count)
            .offset(offset.unsigned_abs())
            .rw_flags(write_flags(through))
            .build(),
        Call::Zeros { offset, .. } => opcode::Writev::new(fd, pointer, count)
            .offset(offset.unsigned_abs())
            .build(),
        Call::Allocate {
            mode,
            offset,
            bytes,
        } => opcode::Fallocate::new(fd, bytes.unsigned_abs())
            .offset(offset.unsigned_abs())
            .mode(mode)
            .build(),
        Call::Synchronize => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
    };
    (entry, vectors)
}

/// Performs the call; its result as io_uring gives it.
pub(super) fn perform(file: &File, call: Call<'_, '_>) -> i32 {
    let fd = file.as_raw_fd();
    let vectors = vectors(call);
    let pointer = vectors.as_ptr();
    let count = i32::try_from(vectors.len()).unwrap_or(0);
    let result = match call {
        Call::Read(_, offset) => {
            // SAFETY: the vectors point to guest memory, which outlives the
            // call; Rust holds no reference into it.
            unsafe { libc::preadv(fd, pointer, count, offset) }
        }
        Call::Write {
            offset, through, ..
        } => {
            let flags = write_flags(through);
            // SAFETY: the vectors point to guest memory, which outlives the
            // call and is only read.
            unsafe { libc::pwritev2(fd, pointer, count, offset, flags) }
        }
        Call::Zeros { offset, .. } => {
            // SAFETY: the vectors point to a constant.
            unsafe { libc::pwritev(fd, pointer, count, offset) }
        }
        Call::Allocate {
            mode,
            offset,
            bytes,
        } => {
            // SAFETY: takes plain numbers; the descriptor is borrowed.
            let result = unsafe { libc::fallocate(fd, mode, offset, bytes) };
            result as isize
        }
        Call::Synchronize => {
            // SAFETY: takes a number; the descriptor is borrowed.
            let result = unsafe { libc::fdatasync(fd) };
            result as isize
        }
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return -error.raw_os_error().unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}

fn write_flags(through: bool) -> i32 {
    if through { libc::RWF_DSYNC } else { 0 }
}

fn vectors(call: Call<'_, '_>) -> Vec<libc::iovec> {
    match call {
        Call::Read(slices, _) | Call::Write { from: slices, .. } => buffers(slices),
        Call::Zeros { bytes, .. } => {
            let mut left = usize::try_from(bytes.min(ZEROS_AT_ONCE)).unwrap_or(0);
            let mut vectors = Vec::new();
            while left > 0 {
                let length = left.min(ZEROS.len());
                vectors.push(libc::iovec {
                    iov_base: ZEROS.as_ptr().cast_mut().cast(),
                    iov_len: length,
                });
                left -= length;
            }
            vectors
        }
        Call::Allocate { .. } | Call::Synchronize => Vec::new(),
    }
}
