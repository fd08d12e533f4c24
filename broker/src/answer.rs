//! An answer on its way to the guest: a header and what the request asked for.

use protocol::broker::Changed;
use protocol::fuse::{MAX_ANSWER, OutHeader};
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

const HEADER: usize = size_of::<OutHeader>();

/// The buffer that answers are written into, one after the other.
#[derive(Debug)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// What the VMM is told beside it, if it is a success.
    pub(crate) changed: Option<Changed>,
}

impl Answer {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; HEADER],
            changed: None,
        }
    }

    /// Begins a new answer.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(HEADER);
        self.changed = None;
    }

    /// Bytes after the header so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER)
    }

    /// Takes back what came after the first `length` bytes.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(HEADER.saturating_add(length));
    }

    /// Adds a structure.
    pub(crate) fn push<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Adds bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Fills up to a multiple of 8.
    pub(crate) fn align(&mut self) {
        let length = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(length, 0);
    }

    /// The finished answer to request `unique`, and what follows it.
    pub(crate) fn finish(&mut self, unique: u64, result: Result<(), Errno>) -> &[u8] {
        let error = match result {
            Ok(()) if self.bytes.len() <= MAX_ANSWER => 0,
            Ok(()) => -Errno::RANGE.raw_os_error(),
            Err(errno) => -errno.raw_os_error(),
        };
        if error != 0 {
            self.clear();
        }
        let header = OutHeader {
            len: u32::try_from(self.bytes.len()).unwrap_or(u32::MAX),
            error,
            unique,
        };
        if let Some(room) = self.bytes.first_chunk_mut::<HEADER>() {
            room.copy_from_slice(header.as_bytes());
        }
        if let Some(changed) = self.changed.take() {
            self.bytes.extend_from_slice(changed.as_bytes());
        }
        &self.bytes
    }
}
