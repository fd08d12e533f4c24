//! A copy of a directory's content, for a tmpfs that covers it (`tmpcopyup`).
//!
//! Owners, modes, times, links and nodes are kept. It allocates nothing, as
//! nothing here may; what is open of the source is opened without following
//! links.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, chmodat,
    chownat, mkdirat, mknodat, openat, readlinkat_raw, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, read, write};

/// Deepest directory: each level has its own buffer on the stack.
const DEEPEST: usize = 64;
const LIST: usize = 2048;
const DATA: usize = 16 << 10;
const LONGEST_TARGET: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Copies what is in `from` into `to`, both open directories.
pub(super) fn content(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    directory(from, to, DEEPEST)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, deeper: usize) -> Result<(), Errno> {
    let deeper = deeper.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let mut room = [MaybeUninit::uninit(); LIST];
    let mut entries = RawDir::new(from, &mut room);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy(from, to, name, deeper)?;
        }
    }
    Ok(())
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, deeper: usize) -> Result<(), Errno> {
    let status = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let inner = openat(from, name, DIRECTORY, Mode::empty())?;
            let made = openat(to, name, DIRECTORY, Mode::empty())?;
            directory(inner.as_fd(), made.as_fd(), deeper)?;
        }
        FileType::RegularFile => file(from, to, name)?,
        FileType::Symlink => link(from, to, name)?,
        _ => mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, status.st_rdev)?,
    }
    attributes(to, name, &status, kind)
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let made = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut room = [0_u8; DATA];
    loop {
        let length = read(&source, &mut room)?;
        let mut rest = room.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let written = write(&made, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut room = [MaybeUninit::uninit(); LONGEST_TARGET];
    // One byte stays for the end.
    let space = room
        .get_mut(..LONGEST_TARGET - 1)
        .ok_or(Errno::NAMETOOLONG)?;
    let (target, _) = readlinkat_raw(from, name, space)?;
    let mut text = [0_u8; LONGEST_TARGET];
    for (to, from) in text.iter_mut().zip(target.iter()) {
        *to = *from;
    }
    let target = CStr::from_bytes_until_nul(&text).map_err(|_| Errno::NAMETOOLONG)?;
    symlinkat(target, to, name)
}

fn attributes(to: BorrowedFd<'_>, name: &CStr, status: &Stat, kind: FileType) -> Result<(), Errno> {
    let owner = Uid::from_raw(status.st_uid);
    let group = Gid::from_raw(status.st_gid);
    chownat(
        to,
        name,
        Some(owner),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if kind != FileType::Symlink {
        // After the owner, whose change takes set-id bits away.
        chmodat(
            to,
            name,
            Mode::from_raw_mode(status.st_mode),
            AtFlags::empty(),
        )?;
    }
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(status.st_atime, status.st_atime_nsec),
        last_modification: time(status.st_mtime, status.st_mtime_nsec),
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn copy_has_content_links_modes_and_times() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inner = from.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), vec![7; DATA + 1]).unwrap();
        symlink("../nowhere", inner.join("link")).unwrap();
        fs::set_permissions(inner.join("file"), Permissions::from_mode(0o751)).unwrap();
        for number in 0..300 {
            fs::write(from.path().join(format!("file-{number}")), "x").unwrap();
        }
        let open = |directory: &tempfile::TempDir| File::open(directory.path()).unwrap();
        content(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 301);
        let copy = to.path().join("a/b/file");
        assert_eq!(fs::read(&copy).unwrap(), vec![7; DATA + 1]);
        let (old, new) = (fs::metadata(inner.join("file")), fs::metadata(&copy));
        let (old, new) = (old.unwrap(), new.unwrap());
        assert_eq!(
            (new.mode(), new.mtime_nsec()),
            (old.mode(), old.mtime_nsec())
        );
        let target = fs::read_link(to.path().join("a/b/link")).unwrap();
        assert_eq!(target.to_str(), Some("../nowhere"));
    }
}
