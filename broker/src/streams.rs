//! Directories being read.
//!
//! The guest opens no directory (that would be two more requests for each):
//! it names the node and the cookie at which it goes on. A few open streams
//! are kept, so that going on costs nothing; a cookie is the host file
//! system's own, opaque, and good for a stream that was opened anew.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use crate::nodes::NodeId;

/// Streams that are kept.
const KEPT: usize = 32;
/// Bytes of entries read from the host at a time.
const BUFFER: usize = 32 * 1024;

/// The kept streams of a device, least recently used first.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    kept: Mutex<VecDeque<(NodeId, Arc<Stream>)>>,
}

impl Streams {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(NodeId, Arc<Stream>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clear(&self) {
        self.kept().clear();
    }

    /// The stream of a directory.
    pub(crate) fn get(&self, id: NodeId, directory: &OwnedFd) -> Result<Arc<Stream>, Errno> {
        let mut kept = self.kept();
        if let Some(at) = kept.iter().position(|(other, _)| *other == id)
            && let Some(entry) = kept.remove(at)
        {
            let stream = Arc::clone(&entry.1);
            kept.push_back(entry);
            return Ok(stream);
        }
        drop(kept);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let stream = Arc::new(Stream {
            position: Mutex::new(Position {
                directory: openat(directory.as_fd(), c".", flags, Mode::empty())?,
                entries: Vec::new(),
                at: 0,
                last: 0,
                cookie: None,
            }),
        });
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((id, Arc::clone(&stream)));
        Ok(stream)
    }
}

/// One directory being read, by one request at a time.
#[derive(Debug)]
pub(crate) struct Stream {
    position: Mutex<Position>,
}

impl Stream {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry as it was read.
#[derive(Clone, Debug)]
struct Raw {
    name: std::ffi::CString,
    inode: u64,
    next: u64,
    kind: u8,
}

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) inode: u64,
    /// Cookie of the entry after it.
    pub(crate) next: u64,
    /// `DT_…`.
    pub(crate) kind: u8,
}

/// Where in a directory.
#[derive(Debug)]
pub(crate) struct Position {
    directory: OwnedFd,
    /// What has been read from the host, and how much of it was given away.
    entries: Vec<Raw>,
    at: usize,
    /// Cookie of the entry before `at`.
    last: u64,
    /// Cookie of the next entry, if that is known.
    cookie: Option<u64>,
}

impl Position {
    /// Goes to a cookie; 0 is the beginning, seen afresh.
    pub(crate) fn seek(&mut self, cookie: u64) -> Result<(), Errno> {
        if cookie != 0 && self.cookie == Some(cookie) {
            return Ok(());
        }
        // Cookies of network file systems may be negative: no number is wrong.
        seek(&self.directory, SeekFrom::Start(cookie))?;
        self.entries.clear();
        self.at = 0;
        self.cookie = Some(cookie);
        Ok(())
    }

    /// The next entry.
    pub(crate) fn next(&mut self) -> Result<Option<Entry<'_>>, Errno> {
        if self.at >= self.entries.len() {
            self.fill()?;
        }
        let Some(entry) = self.entries.get(self.at) else {
            return Ok(None);
        };
        self.at = self.at.saturating_add(1);
        self.last = self.cookie.unwrap_or(0);
        self.cookie = Some(entry.next);
        Ok(Some(Entry {
            name: &entry.name,
            inode: entry.inode,
            next: entry.next,
            kind: entry.kind,
        }))
    }

    /// The entry taken last will be taken again.
    pub(crate) fn put_back(&mut self) {
        self.at = self.at.saturating_sub(1);
        self.cookie = Some(self.last);
    }

    fn fill(&mut self) -> Result<(), Errno> {
        self.entries.clear();
        self.at = 0;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut listing = RawDir::new(&self.directory, &mut buffer);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            self.entries.push(Raw {
                name: entry.file_name().into(),
                inode: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: kind_number(entry.file_type()),
            });
            if listing.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn kind_number(kind: rustix::fs::FileType) -> u8 {
    use rustix::fs::FileType;
    match kind {
        FileType::Fifo => libc::DT_FIFO,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::Directory => libc::DT_DIR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        FileType::Socket => libc::DT_SOCK,
        FileType::Unknown => libc::DT_UNKNOWN,
    }
}
