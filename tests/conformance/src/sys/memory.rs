//! Mapped files.

use std::os::fd::RawFd;

use super::{Res, Word, call, done};
use crate::errno::Errno;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Map {
    address: usize,
    length: usize,
}

impl Map {
    pub(crate) fn new(
        descriptor: RawFd,
        length: usize,
        protection: i32,
        flags: i32,
        offset: i64,
    ) -> Res<Self> {
        let address = call(
            libc::SYS_mmap,
            [
                Word(0),
                length.into(),
                protection.into(),
                flags.into(),
                descriptor.into(),
                offset.into(),
            ],
        )?;
        Ok(Self { address, length })
    }

    fn byte(&self, at: usize) -> *mut u8 {
        assert!(at < self.length, "a byte of the mapping");
        std::ptr::with_exposed_provenance_mut(self.address + at)
    }

    /// Reads bytes. Beyond the file's last page this ends the process.
    pub(crate) fn get(&self, at: usize, length: usize) -> Vec<u8> {
        let read = |at| {
            // SAFETY: within the mapping, which lives as long as `self`;
            // volatile, for others write to the file.
            unsafe { self.byte(at).read_volatile() }
        };
        (at..at + length).map(read).collect()
    }

    /// Writes bytes.
    pub(crate) fn set(&self, at: usize, bytes: &[u8]) {
        for (at, &byte) in (at..).zip(bytes) {
            // SAFETY: as in `get`.
            unsafe { self.byte(at).write_volatile(byte) };
        }
    }

    pub(crate) fn sync(&self, flags: i32) -> Res<()> {
        done(
            libc::SYS_msync,
            [self.address.into(), self.length.into(), flags.into()],
        )
    }

    pub(crate) fn protect(&self, protection: i32) -> Res<()> {
        done(
            libc::SYS_mprotect,
            [self.address.into(), self.length.into(), protection.into()],
        )
    }

    pub(crate) fn advise(&self, advice: i32) -> Res<()> {
        done(
            libc::SYS_madvise,
            [self.address.into(), self.length.into(), advice.into()],
        )
    }

    /// `pread` into the mapping.
    pub(crate) fn fill(
        &self,
        descriptor: RawFd,
        at: usize,
        length: usize,
        offset: i64,
    ) -> Res<usize> {
        self.transfer(libc::SYS_pread64, descriptor, at, length, offset)
    }

    /// `pwrite` from the mapping.
    pub(crate) fn store(
        &self,
        descriptor: RawFd,
        at: usize,
        length: usize,
        offset: i64,
    ) -> Res<usize> {
        self.transfer(libc::SYS_pwrite64, descriptor, at, length, offset)
    }

    /// A call that moves bytes between a file and a part of the mapping.
    fn transfer(
        &self,
        number: libc::c_long,
        descriptor: RawFd,
        at: usize,
        length: usize,
        offset: i64,
    ) -> Res<usize> {
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Errno(libc::EINVAL));
        }
        call(
            number,
            [
                descriptor.into(),
                Word(self.address + at),
                length.into(),
                offset.into(),
            ],
        )
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let _ = done(libc::SYS_munmap, [self.address.into(), self.length.into()]);
    }
}

/// Memory of its own, which begins at a page: for O_DIRECT.
pub(crate) fn anonymous(length: usize) -> Res<Map> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    Map::new(
        -1,
        length,
        protection,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        0,
    )
}
