//! What guests and others do with locks, on files of the host.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;

use protocol::fuse::{FileLock, LK_FLOCK, LkIn};
use tempfile::NamedTempFile;

use super::files::Access;
use super::locks::{Locks, Wanted};

const READ: Option<bool> = Some(false);
const WRITE: Option<bool> = Some(true);

/// One file, the locks of a guest on it, and how often it was opened.
struct Rig {
    file: NamedTempFile,
    locks: Locks,
    opened: Cell<usize>,
}

fn wanted(owner: u64, handle: u64, (start, end): (u64, u64), write: Option<bool>) -> LkIn {
    let kind = match write {
        READ => libc::F_RDLCK,
        Some(true) => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    };
    LkIn {
        fh: handle,
        owner,
        lk: FileLock {
            start,
            end,
            kind: kind.cast_unsigned(),
            pid: 100 + u32::try_from(owner).unwrap(),
        },
        ..LkIn::default()
    }
}

impl Rig {
    fn new() -> Self {
        Self {
            file: NamedTempFile::new().unwrap(),
            locks: Locks::default(),
            opened: Cell::new(0),
        }
    }

    fn open(&self, access: Access) -> io::Result<File> {
        self.opened.set(self.opened.get() + 1);
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        options.open(self.file.path())
    }

    fn set_on(&self, node: u64, request: &LkIn) -> Result<(), i32> {
        let wanted = Wanted::parse(node, request).map_err(|error| error.raw_os_error().unwrap())?;
        self.locks
            .set(&wanted, |access| self.open(access))
            .map_err(|error| error.raw_os_error().unwrap())
    }

    fn set(&self, owner: u64, range: (u64, u64), write: Option<bool>) -> Result<(), i32> {
        self.set_on(1, &wanted(owner, owner, range, write))
    }

    fn flock(&self, owner: u64, write: Option<bool>) -> Result<(), i32> {
        let mut request = wanted(owner, owner, (0, 0), write);
        request.lk_flags = LK_FLOCK;
        self.set_on(1, &request)
    }

    fn wait(&self, unique: u64, owner: u64, range: (u64, u64)) -> Result<(), i32> {
        let wanted = Wanted::parse(1, &wanted(owner, owner, range, WRITE)).unwrap();
        let waits = self.locks.wait(unique, &wanted);
        waits.map_err(|error| error.raw_os_error().unwrap())
    }

    fn get(&self, owner: u64, range: (u64, u64), write: Option<bool>) -> FileLock {
        let wanted = Wanted::parse(1, &wanted(owner, owner, range, write)).unwrap();
        self.locks.get(&wanted, |access| self.open(access)).unwrap()
    }
}

const BUSY: Result<(), i32> = Err(libc::EAGAIN);

#[test]
fn owners_of_a_guest_exclude_each_other() {
    let rig = Rig::new();
    assert_eq!(rig.set(1, (0, 9), WRITE), Ok(()));
    assert_eq!(rig.set(2, (5, 20), READ), BUSY);
    assert_eq!(rig.set(2, (10, 20), READ), Ok(()));
    assert_eq!(rig.set(3, (10, 20), READ), Ok(()));
    assert_eq!(rig.set(3, (10, 20), WRITE), BUSY);
    assert_eq!(rig.set(1, (0, 4), None), Ok(()));
    assert_eq!(rig.set(2, (0, 4), WRITE), Ok(()));
    let found = rig.get(3, (0, 100), WRITE);
    assert!(found.pid == 102 || (found.pid, found.start, found.end) == (101, 5, 9));
    assert_eq!(rig.get(1, (5, 9), WRITE).kind.cast_signed(), libc::F_UNLCK);
    // Of another file: the host's, for it is one file here.
    let other = wanted(1, 1, (5, 9), WRITE);
    assert_eq!(rig.set_on(2, &other), BUSY);
    rig.locks.clear();
    assert_eq!(rig.set_on(2, &other), Ok(()));
}

#[test]
fn somebody_else_on_the_host_has_no_process() {
    let rig = Rig::new();
    let host = Rig {
        file: NamedTempFile::new().unwrap(),
        ..Rig::new()
    };
    let other = Locks::default();
    let theirs = Wanted::parse(1, &wanted(9, 9, (3, 4), WRITE)).unwrap();
    other.set(&theirs, |access| rig.open(access)).unwrap();
    assert_eq!(rig.set(1, (0, 9), READ), BUSY);
    let found = rig.get(1, (0, 9), READ);
    assert_eq!((found.pid, found.start, found.end), (0, 3, 4));
    other.closed(1, 9);
    assert_eq!(rig.set(1, (0, 9), READ), Ok(()));
    assert_eq!(host.set(1, (0, 9), READ), Ok(()));
}

#[test]
fn locks_end_as_those_of_processes_and_of_open_files_do() {
    let rig = Rig::new();
    // A process's end when it closes the file, others stay.
    assert_eq!(rig.set(1, (0, 9), WRITE), Ok(()));
    rig.locks.closed(1, 2);
    assert_eq!(rig.set(2, (0, 9), WRITE), BUSY);
    rig.locks.closed(1, 1);
    assert_eq!(rig.set(2, (0, 9), WRITE), Ok(()));
    // An open file's when it is no more.
    assert_eq!(rig.flock(3, WRITE), Ok(()));
    rig.locks.closed(1, 3);
    assert_eq!(rig.flock(4, READ), BUSY);
    rig.locks.released(1, 3);
    assert_eq!(rig.flock(4, READ), Ok(()));
    assert_eq!(rig.flock(5, READ), Ok(()));
    assert_eq!(rig.flock(5, WRITE), BUSY);
    // A name that is forgotten ends nothing.
    rig.locks.forget(1);
    assert_eq!(rig.flock(5, WRITE), BUSY);
    rig.locks.released(1, 4);
    assert_eq!(rig.flock(5, WRITE), Ok(()));
}

#[test]
fn reader_becomes_a_writer_without_letting_go() {
    let rig = Rig::new();
    assert_eq!(rig.set(1, (0, 9), READ), Ok(()));
    assert_eq!(rig.set(2, (20, 29), READ), Ok(()));
    assert_eq!(rig.set(1, (30, 39), WRITE), Ok(()));
    assert_eq!(rig.opened.get(), 3);
    assert_eq!(rig.set(2, (0, 9), WRITE), BUSY);
    assert_eq!(rig.set(1, (20, 29), WRITE), BUSY);
    assert_eq!(rig.set(1, (0, 9), WRITE), Ok(()));
    assert_eq!(rig.set(2, (0, 9), READ), BUSY);
    rig.locks.closed(1, 1);
    assert_eq!(rig.set(2, (0, 100), WRITE), Ok(()));
}

#[test]
fn nonsense_is_refused() {
    let rig = Rig::new();
    let invalid = Err(libc::EINVAL);
    for range in [(1, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (1 << 63, 1)] {
        assert_eq!(rig.set(1, range, WRITE), invalid);
    }
    let mut request = wanted(1, 1, (0, 1), WRITE);
    for kind in [3, 9, u32::MAX] {
        request.lk.kind = kind;
        assert_eq!(rig.set_on(1, &request), invalid);
    }
    let unlock = Wanted::parse(1, &wanted(1, 1, (0, 1), None)).unwrap();
    assert!(rig.locks.get(&unlock, |_| unreachable!()).is_err());
    // Nothing to unlock takes no file.
    assert_eq!(rig.set(1, (0, 1), None), Ok(()));
    assert_eq!(rig.opened.get(), 0);
}

#[test]
fn what_a_guest_has_is_bounded() {
    let rig = Rig::new();
    let refused = |result| result == Err(libc::ENOLCK);
    let owners = (0..).find(|owner| refused(rig.set(*owner, (*owner, *owner), WRITE)));
    assert_eq!(owners, Some(1024));
    // Those that hold nothing make room.
    for owner in 0..1024 {
        assert_eq!(rig.set(owner, (0, 10_000), None), Ok(()));
    }
    assert_eq!(rig.set(5000, (0, 0), WRITE), Ok(()));
    rig.locks.clear();
    let ranges = (0..).find(|byte| refused(rig.set(1, (2 * byte, 2 * byte), WRITE)));
    assert!(ranges.is_some_and(|ranges| (16_000..17_000).contains(&ranges)));
    // What makes no more of them is possible still, and makes room.
    assert_eq!(rig.set(1, (0, 9), None), Ok(()));
    assert_eq!(rig.set(1, (1, 1), WRITE), Ok(()));
    rig.locks.clear();
    for byte in 0..20_000 {
        assert_eq!(rig.set(1, (byte, byte), WRITE), Ok(()));
    }
}

#[test]
fn waiting_ends_by_interrupt_deadlock_and_reset() {
    let rig = Rig::new();
    for owner in 1..=3 {
        assert_eq!(rig.set(owner, (owner, owner), WRITE), Ok(()));
    }
    assert_eq!(rig.wait(10, 1, (2, 2)), Ok(()));
    assert_eq!(rig.wait(11, 2, (3, 3)), Ok(()));
    // Who waits for the last of them would wait for ever; others do not.
    assert_eq!(rig.wait(12, 3, (1, 1)), Err(libc::EDEADLK));
    assert_eq!(rig.wait(13, 4, (1, 1)), Ok(()));
    // Again, and after a signal.
    assert_eq!(rig.wait(10, 1, (2, 2)), Ok(()));
    rig.locks.waits().interrupt(10);
    assert_eq!(rig.wait(10, 1, (2, 2)), Err(libc::EINTR));
    assert_eq!(rig.wait(12, 3, (1, 1)), Ok(()));
    // A signal may be there first.
    rig.locks.waits().interrupt(14);
    assert_eq!(rig.wait(14, 5, (1, 1)), Err(libc::EINTR));
    assert_eq!(rig.wait(14, 5, (1, 1)), Ok(()));
    rig.locks.waits().give_up();
    assert_eq!(rig.wait(11, 2, (3, 3)), Err(libc::EINTR));
    // A new session of the same driver is none of another.
    rig.locks.clear();
    assert_eq!(rig.wait(11, 2, (3, 3)), Err(libc::EINTR));
    rig.locks.reset();
    assert_eq!(rig.wait(11, 2, (3, 3)), Ok(()));
    let refused = (100..).find(|unique| rig.wait(*unique, 9, (1, 1)) == Err(libc::ENOLCK));
    assert_eq!(refused, Some(291));
}

#[test]
fn worker_is_told_when_something_is_unlocked() {
    let rig = Rig::new();
    let bell = rig.locks.waits().join().unwrap();
    assert_eq!(rig.set(1, (0, 0), WRITE), Ok(()));
    assert_eq!(rig.set(1, (0, 0), None), Ok(()));
    assert!(bell.read().is_err(), "nobody waits");
    assert_eq!(rig.set(1, (0, 0), WRITE), Ok(()));
    assert_eq!(rig.wait(1, 2, (0, 0)), Ok(()));
    assert_eq!(rig.set(2, (7, 7), WRITE), Ok(()));
    assert!(bell.read().is_err(), "nothing is unlocked");
    assert_eq!(rig.set(2, (0, 0), READ), BUSY);
    assert!(bell.read().is_err(), "nor by who only tries");
    rig.locks.closed(1, 1);
    assert!(bell.read().is_ok());
}
