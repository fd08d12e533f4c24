//! Locks on files that others may lock too: fcntl(2), of processes and of open
//! files, and flock(2).
//!
//! Each owner that the guest names gets an open file of its own on the host,
//! and its locks there: open file description locks, which meet the host's
//! processes' and other guests' as theirs meet each other, and go when the
//! descriptor does. Nothing waits in here: what is held by somebody else is
//! tried again (`waits`).

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::fuse::{FileLock, LK_FLOCK, LkIn};
use rustix::fs::{FlockOperation, flock};

use super::files::Access;
use super::ranges::{Locked, Range, Ranges};
use super::waits::{Wait, Waits};
use crate::sys;

/// Owners of locks with an open file, at a time.
const MOST_HOLDERS: usize = 1024;

/// Locked ranges in the host's kernel, over all owners.
const MOST_RANGES: usize = 16_384;

/// Whose lock on what.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// The file.
    pub(super) node: u64,
    /// A process or an open file of the guest's, as its kernel calls them.
    pub(super) owner: u64,
    /// By flock(2), whose locks do not meet those of fcntl(2).
    pub(super) whole: bool,
}

/// A lock that the guest asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) range: Range,
    /// Against reading as well; `None` to unlock.
    pub(super) write: Option<bool>,
    /// The guest's open file.
    handle: u64,
    /// The guest's process.
    pid: u32,
}

impl Wanted {
    /// What a request asks for.
    ///
    /// # Errors
    ///
    /// `EINVAL` if that is no lock.
    pub(super) fn parse(node: u64, request: &LkIn) -> io::Result<Self> {
        let write = match request.lk.kind.cast_signed() {
            libc::F_RDLCK => Some(false),
            libc::F_WRLCK => Some(true),
            libc::F_UNLCK => None,
            _ => return Err(errno(libc::EINVAL)),
        };
        let whole = request.lk_flags & LK_FLOCK != 0;
        let range = if whole {
            Range::ALL
        } else {
            Range::of(&request.lk).ok_or_else(|| errno(libc::EINVAL))?
        };
        Ok(Self {
            key: Key {
                node,
                owner: request.owner,
                whole,
            },
            range,
            write,
            handle: request.fh,
            pid: request.lk.pid,
        })
    }
}

/// An owner's open file and what it has locked.
#[derive(Debug)]
struct Holder {
    file: File,
    access: Access,
    ranges: Ranges,
    handle: u64,
    pid: u32,
}

/// Locks the host's file, or unlocks it. At once, or not at all.
fn change(file: &File, whole: bool, range: Range, write: Option<bool>) -> io::Result<()> {
    if !whole {
        return sys::lock_range(file, range.first(), range.length(), write);
    }
    let operation = match write {
        None => FlockOperation::NonBlockingUnlock,
        Some(false) => FlockOperation::NonBlockingLockShared,
        Some(true) => FlockOperation::NonBlockingLockExclusive,
    };
    Ok(flock(file, operation)?)
}

impl Holder {
    fn change(&mut self, whole: bool, range: Range, write: Option<bool>) -> io::Result<()> {
        change(&self.file, whole, range, write)?;
        match write {
            Some(write) => self.ranges.lock(range, write),
            None => self.ranges.unlock(range),
        }
        Ok(())
    }

    /// Goes on with a file that is open for writing. What is locked is locked
    /// against writing only, for the old one could no more, and the new one
    /// can share that.
    fn renew(&mut self, whole: bool, file: File) -> io::Result<()> {
        for (range, write) in self.ranges.iter() {
            change(&file, whole, range, Some(write))?;
        }
        self.file = file;
        self.access = Access::Write;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Table {
    holders: HashMap<Key, Holder>,
    /// In all holders.
    ranges: usize,
}

/// The locks of a device.
#[derive(Debug, Default)]
pub(super) struct Locks {
    table: Mutex<Table>,
    waits: Waits,
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who waits.
    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Locks or unlocks; `open` opens the file anew.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if somebody else has a lock; `ENOLCK` if the guest has too
    /// many; what the host's file system says.
    pub(super) fn set(
        &self,
        wanted: &Wanted,
        open: impl Fn(Access) -> io::Result<File>,
    ) -> io::Result<()> {
        let mut table = self.table();
        let before = table.ranges;
        let result = table.set(wanted, open);
        let fewer = table.ranges < before;
        drop(table);
        // Unlocked, or locked against less than before.
        if fewer || result.is_ok() && wanted.write != Some(true) {
            self.waits.look_again();
        }
        result
    }

    /// Waits for a lock that somebody else has; `unique` is the request.
    ///
    /// # Errors
    ///
    /// `EDEADLK` if that one waits for this owner in turn; `EINTR` if it is
    /// not to wait any longer; `ENOLCK` if too many do.
    pub(super) fn wait(&self, unique: u64, wanted: &Wanted) -> io::Result<()> {
        let table = self.table();
        let wait = Wait {
            unique,
            key: wanted.key,
            range: wanted.range,
            write: wanted.write == Some(true),
        };
        if !wanted.key.whole && table.is_circle(wait, &self.waits) {
            self.waits.end(unique);
            return Err(errno(libc::EDEADLK));
        }
        self.waits.begin(wait)
    }

    /// What keeps the lock from being had, if anything does. A lock outside of
    /// the guest has no process.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(super) fn get(
        &self,
        wanted: &Wanted,
        open: impl Fn(Access) -> io::Result<File>,
    ) -> io::Result<FileLock> {
        let write = wanted.write.ok_or_else(|| errno(libc::EINVAL))?;
        let (key, range) = (wanted.key, wanted.range);
        let table = self.table();
        if let Some((_, holder, (range, write))) = table.against(key, range, write) {
            return Ok(range.to_lock(write, holder.pid));
        }
        let found = match table.holders.get(&key) {
            Some(holder) => held_by_others(&holder.file, range, write),
            None => held_by_others(&open(Access::Read)?, range, write),
        }?;
        Ok(match found {
            Some((range, write)) => range.to_lock(write, 0),
            None => FileLock {
                kind: libc::F_UNLCK.cast_unsigned(),
                ..wanted.range.to_lock(write, 0)
            },
        })
    }

    /// An owner has closed a file: its locks on it by fcntl(2) end, whatever
    /// else it has of it (close(2)).
    pub(super) fn closed(&self, node: u64, owner: u64) {
        self.end(|key, _| key.node == node && key.owner == owner && !key.whole);
    }

    /// An open file is no more, and with it its own locks. Those of processes
    /// have ended before, with the last of each that had it open.
    pub(super) fn released(&self, node: u64, handle: u64) {
        self.end(|key, holder| key.node == node && holder.handle == handle);
    }

    /// The guest has forgotten a name of a file, perhaps not the last: what is
    /// locked stays so.
    pub(super) fn forget(&self, node: u64) {
        self.end(|key, holder| key.node == node && holder.ranges.len() == 0);
    }

    /// Unlocks everything.
    pub(super) fn clear(&self) {
        self.end(|_, _| true);
        self.waits.clear();
    }

    /// Begins anew, for another driver.
    pub(super) fn reset(&self) {
        self.clear();
        self.waits.go_on();
    }

    fn end(&self, ends: impl Fn(&Key, &Holder) -> bool) {
        let mut table = self.table();
        let before = table.ranges;
        let mut ended = 0_usize;
        table.holders.retain(|key, holder| {
            let ends = ends(key, holder);
            if ends {
                ended = ended.saturating_add(holder.ranges.len());
            }
            !ends
        });
        table.ranges = before.saturating_sub(ended);
        drop(table);
        if ended > 0 {
            self.waits.look_again();
        }
    }
}

impl Table {
    fn set(
        &mut self,
        wanted: &Wanted,
        open: impl Fn(Access) -> io::Result<File>,
    ) -> io::Result<()> {
        let Wanted { key, range, .. } = *wanted;
        // A hole in a range leaves two; a new one may do so and come on top.
        let splits = || {
            let holder = self.holders.get(&key);
            holder.is_some_and(|holder| holder.ranges.are_split_by(range))
        };
        let more = wanted.write.is_some() || splits();
        if more && self.ranges.saturating_add(2) > MOST_RANGES {
            return Err(errno(libc::ENOLCK));
        }
        if !self.holders.contains_key(&key) {
            let Some(write) = wanted.write else {
                return Ok(());
            };
            self.make_room()?;
            // Reading where that will do: opening for writing makes overlayfs
            // copy the file, and keeps a program from being run.
            let access = if write && !key.whole {
                Access::Write
            } else {
                Access::Read
            };
            let holder = Holder {
                file: open(access)?,
                access,
                ranges: Ranges::default(),
                handle: wanted.handle,
                pid: wanted.pid,
            };
            self.holders.insert(key, holder);
        }
        let holder = self.holders.get_mut(&key).ok_or_else(|| errno(libc::EIO))?;
        if wanted.write.is_some() {
            (holder.handle, holder.pid) = (wanted.handle, wanted.pid);
        }
        let before = holder.ranges.len();
        let result = match holder.change(key.whole, range, wanted.write) {
            Err(error) if refuses_reader(&error) && holder.access == Access::Read => {
                holder.renew(key.whole, open(Access::Write)?)?;
                holder.change(key.whole, range, wanted.write)
            }
            result => result,
        };
        let after = holder.ranges.len();
        self.ranges = self.ranges.saturating_sub(before).saturating_add(after);
        result
    }

    /// Closes files that nothing is locked in, if there are too many.
    fn make_room(&mut self) -> io::Result<()> {
        if self.holders.len() >= MOST_HOLDERS {
            self.holders.retain(|_, holder| holder.ranges.len() > 0);
        }
        if self.holders.len() >= MOST_HOLDERS {
            return Err(errno(libc::ENOLCK));
        }
        Ok(())
    }

    /// Who of the guest keeps `key` from locking a range, and by what.
    fn against(&self, key: Key, range: Range, write: bool) -> Option<(Key, &Holder, Locked)> {
        self.holders
            .iter()
            .filter(|(other, _)| {
                (other.node, other.whole) == (key.node, key.whole) && other.owner != key.owner
            })
            .find_map(|(other, holder)| {
                Some((*other, holder, holder.ranges.against(range, write)?))
            })
    }

    /// Whether the one who keeps `wait` from going on waits, perhaps by way of
    /// others, for its owner.
    fn is_circle(&self, wait: Wait, waits: &Waits) -> bool {
        // As deep as Linux looks.
        const DEEPEST: usize = 10;
        let owner = wait.key.owner;
        let mut next = wait;
        for _ in 0..DEEPEST {
            let Some((blocker, ..)) = self.against(next.key, next.range, next.write) else {
                return false;
            };
            if blocker.owner == owner {
                return true;
            }
            match waits.of_owner(blocker.owner) {
                Some(wait) => next = wait,
                None => return false,
            }
        }
        false
    }
}

/// Whether a lock was refused because the file is open for reading only.
fn refuses_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADF)
}

/// The lock of somebody else's on the host that is in the way.
fn held_by_others(file: &File, range: Range, write: bool) -> io::Result<Option<Locked>> {
    let found = sys::find_lock(file, range.first(), range.length(), write)?;
    Ok(found.and_then(|(first, length, write)| Some((Range::from_length(first, length)?, write))))
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
