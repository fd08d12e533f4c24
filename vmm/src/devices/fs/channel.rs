//! A worker's line to the broker: one request, one answer.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use protocol::broker::{Changed, DATA, DataIn};
use protocol::fuse::{InHeader, OutHeader};
use zerocopy::{FromBytes, IntoBytes};

use super::files::Access;
use crate::sys;
use crate::virtio::queue::GuestSlice;

/// The part of an answer that the VMM reads before the guest can change it:
/// the header and, where the answer names a node, its number.
pub(super) const HEAD: usize = size_of::<OutHeader>() + size_of::<u64>();

/// An answer; what follows its head is in the guest's memory.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its first bytes, as many as there are.
    pub(super) head: [u8; HEAD],
    /// Bytes in all.
    pub(super) length: usize,
    /// A descriptor beside it.
    pub(super) file: Option<File>,
    /// What follows it.
    pub(super) changed: Option<Changed>,
}

impl Answer {
    /// Its header.
    pub(super) fn header(&self) -> OutHeader {
        OutHeader::read_from_prefix(&self.head)
            .map_or_else(|_| OutHeader::default(), |(header, _)| header)
    }

    /// The node that it names first.
    pub(super) fn node(&self) -> u64 {
        match self.head.last_chunk::<8>() {
            Some(bytes) if self.length >= HEAD => u64::from_le_bytes(*bytes),
            _ => 0,
        }
    }
}

/// One end of a channel.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a request: a header that the VMM has read, and what follows it.
    pub(super) fn send(&self, header: &InHeader, body: &[GuestSlice<'_>]) -> io::Result<()> {
        sys::send_message(self.0.as_fd(), header.as_bytes(), body)
    }

    /// Sends a request that comes from the VMM.
    pub(super) fn send_own(&self, header: &InHeader, body: &[u8]) -> io::Result<()> {
        let mut message = header.as_bytes().to_vec();
        message.extend_from_slice(body);
        sys::send_message(self.0.as_fd(), &message, &[])
    }

    /// Receives the answer; what follows its head goes to `room`. `entry`: it
    /// may end with what has become of a directory, when it is as long as this
    /// behind its header and fits into the head and `room`.
    ///
    /// # Errors
    ///
    /// The broker is gone, or its answer does not fit.
    pub(super) fn receive(
        &self,
        room: &[GuestSlice<'_>],
        entry: Option<usize>,
    ) -> io::Result<Answer> {
        const HEADER: usize = size_of::<OutHeader>();
        let mut head = [0; HEAD];
        let mut changed = Changed::default();
        let used = entry.map_or(HEAD, |entry| HEADER.saturating_add(entry).min(HEAD));
        let tail = match entry {
            Some(_) => changed.as_mut_bytes(),
            None => &mut [],
        };
        let (received, file) = sys::receive_message(
            self.0.as_fd(),
            head.get_mut(..used).unwrap_or_default(),
            room,
            tail,
        )?;
        let mut answer = Answer {
            head,
            length: received,
            file: file.map(File::from),
            changed: None,
        };
        let told = usize::try_from(answer.header().len).unwrap_or(usize::MAX);
        if let Some(entry) = entry
            && told == HEADER.saturating_add(entry)
            && received == told.saturating_add(size_of::<Changed>())
        {
            answer.length = told;
            answer.changed = Some(changed);
        }
        if answer.length < HEADER || told != answer.length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(answer)
    }

    /// Receives an answer that is a `T` and goes to nobody else's memory; or
    /// the number of an error.
    ///
    /// # Errors
    ///
    /// The broker is gone, or its answer is none.
    pub(super) fn receive_value<T: FromBytes + IntoBytes>(&self) -> io::Result<Result<T, i32>> {
        const HEADER: usize = size_of::<OutHeader>();
        let mut header = OutHeader::default();
        let mut value = T::new_zeroed();
        let (received, _) = sys::receive_message(
            self.0.as_fd(),
            header.as_mut_bytes(),
            &[],
            value.as_mut_bytes(),
        )?;
        let expected = match header.error {
            0 => HEADER.saturating_add(size_of::<T>()),
            _ => HEADER,
        };
        if received != expected || usize::try_from(header.len) != Ok(received) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(match header.error {
            0 => Ok(value),
            error => Err(error.saturating_neg()),
        })
    }

    /// Asks for a descriptor of a node's data.
    pub(super) fn open(&self, node: u64, access: Access) -> io::Result<File> {
        let wanted = DataIn {
            write: u32::from(access == Access::Write),
            padding: 0,
        };
        let length = size_of::<InHeader>().saturating_add(size_of::<DataIn>());
        let header = InHeader {
            len: u32::try_from(length).unwrap_or(0),
            opcode: DATA,
            nodeid: node,
            ..InHeader::default()
        };
        self.send_own(&header, wanted.as_bytes())?;
        let answer = self.receive(&[], None)?;
        match (answer.header().error, answer.file) {
            (0, Some(file)) => Ok(file),
            (0, None) => Err(io::ErrorKind::InvalidData.into()),
            (error, _) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        }
    }
}
