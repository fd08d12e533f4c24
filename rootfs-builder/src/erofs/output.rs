//! The image file: buffered, with holes where blocks are zero.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::{BLOCK, StoreError};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A file that grows at its end.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// Offset of the buffer's first byte, a multiple of the block size.
    start: u64,
    buffer: Vec<u8>,
}

impl Output {
    /// Continues a file at `start`, a multiple of the block size.
    pub(super) fn new(file: File, start: u64) -> Self {
        Self {
            file,
            start,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Number of the block that comes next. All before must be padded.
    pub(super) fn block(&self) -> io::Result<u32> {
        debug_assert_eq!(self.position() % BLOCK as u64, 0);
        u32::try_from(self.position() / BLOCK as u64)
            .ok()
            .filter(|block| *block < super::NO_BLOCK)
            .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.drain()
    }

    /// Appends everything that the reader has.
    pub(super) fn copy(&mut self, reader: &mut dyn Read) -> Result<u64, StoreError> {
        let before = self.position();
        loop {
            let space = (BUFFER - self.buffer.len()) as u64;
            let mut part: io::Take<&mut dyn Read> = Read::take(&mut *reader, space);
            let read = part
                .read_to_end(&mut self.buffer)
                .map_err(StoreError::Read)?;
            if (read as u64) < space {
                return Ok(self.position() - before);
            }
            self.drain().map_err(StoreError::Write)?;
        }
    }

    /// Fills up with zeros to a multiple of `unit`.
    pub(super) fn pad(&mut self, unit: usize) -> io::Result<()> {
        let length = self.buffer.len().next_multiple_of(unit);
        self.buffer.resize(length, 0);
        self.drain()
    }

    /// Fills up with zeros to `offset` behind `base`.
    pub(super) fn seek_to(&mut self, base: u64, offset: u64) -> io::Result<()> {
        let gap = (base + offset)
            .checked_sub(self.position())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let gap = usize::try_from(gap).map_err(io::Error::other)?;
        self.buffer.resize(self.buffer.len() + gap, 0);
        self.drain()
    }

    /// Makes a hole of bytes that were written.
    pub(super) fn discard(&mut self, offset: u64, size: u64) -> io::Result<()> {
        self.flush_blocks()?;
        let size = size.next_multiple_of(BLOCK as u64);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, size) {
            // Nothing is wrong with the image; it is only larger on this disk.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Writes what is left and the superblock, and gives the file its length.
    pub(super) fn finish(mut self, offset: u64, superblock: &[u8]) -> io::Result<File> {
        self.flush_blocks()?;
        self.file.write_all_at(superblock, offset)?;
        self.file.set_len(self.position())?;
        Ok(self.file)
    }

    fn drain(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.flush_blocks()
        } else {
            Ok(())
        }
    }

    /// Writes all whole blocks of the buffer that are not zero.
    fn flush_blocks(&mut self) -> io::Result<()> {
        let whole = self.buffer.len() - self.buffer.len() % BLOCK;
        let mut run: Option<usize> = None;
        for at in (0..whole).step_by(BLOCK) {
            let zero = self.buffer[at..at + BLOCK].iter().all(|byte| *byte == 0);
            match (zero, run) {
                (false, None) => run = Some(at),
                (true, Some(from)) => {
                    self.file
                        .write_all_at(&self.buffer[from..at], self.start + from as u64)?;
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(from) = run {
            self.file
                .write_all_at(&self.buffer[from..whole], self.start + from as u64)?;
        }
        self.start += whole as u64;
        self.buffer.drain(..whole);
        Ok(())
    }
}
