//! An archive as files.
//!
//! A file that is in the way is replaced, a directory is kept and gets the
//! entry's owner and mode; a file never replaces a directory, nor a directory
//! a file. Missing directories are made.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, Uid, chmodat,
    chownat, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::{Errno, write};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::tar::{self, Entry, Kind, padding};
use super::{INSIDE, PIECE, REFERENCE, components};
use crate::sys;

/// Directories whose times are set at the end, for what is made in them
/// changes those; of further ones the times are set at once.
const MOST_DIRECTORIES: usize = 65_536;

/// Reads an archive to its end and makes what it has below `base`.
pub(super) async fn unpack(
    stream: &mut (impl AsyncRead + Unpin),
    root: BorrowedFd<'_>,
    base: &CStr,
) -> io::Result<()> {
    let place = Place { root, base };
    let mut directories = Vec::new();
    while let Some(entry) = tar::next(stream).await? {
        let said = |error: io::Error| {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        let names = components(&entry.path)
            .ok_or_else(|| said(io::Error::other("the path leads out of the archive")))?;
        let Some((name, above)) = names.split_last() else {
            // The directory itself.
            continue;
        };
        let parent = place.directory(above).map_err(said)?;
        make(stream, &place, parent.as_fd(), name, &entry)
            .await
            .map_err(said)?;
        if entry.kind == Kind::Directory && directories.len() < MOST_DIRECTORIES {
            directories.push((names.clone(), entry));
        }
    }
    for (names, entry) in directories.iter().rev() {
        let Some((name, above)) = names.split_last() else {
            continue;
        };
        let parent = place.directory(above)?;
        set_times(parent.as_fd(), name, entry)?;
    }
    Ok(())
}

/// Where an archive is unpacked.
struct Place<'a> {
    root: BorrowedFd<'a>,
    base: &'a CStr,
}

impl Place<'_> {
    fn path(&self, names: &[CString]) -> io::Result<CString> {
        let mut path = self.base.to_bytes().to_vec();
        for name in names {
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
        }
        CString::new(path).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    /// The directory that `names` lead to, made with all above it if absent.
    fn directory(&self, names: &[CString]) -> io::Result<OwnedFd> {
        let flags = REFERENCE | OFlags::DIRECTORY;
        let open = |path: &CStr| openat2(self.root, path, flags, Mode::empty(), INSIDE);
        match open(&self.path(names)?) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        let mut here = open(self.base)?;
        for (index, name) in names.iter().enumerate() {
            let path = self.path(names.get(..=index).unwrap_or_default())?;
            here = match open(&path) {
                Err(Errno::NOENT) => {
                    mkdirat(&here, &**name, Mode::from_raw_mode(0o755))?;
                    open(&path)?
                }
                result => result?,
            };
        }
        Ok(here)
    }
}

async fn make(
    stream: &mut (impl AsyncRead + Unpin),
    place: &Place<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
    entry: &Entry,
) -> io::Result<()> {
    let present = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => Some(FileType::from_raw_mode(status.st_mode)),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno.into()),
    };
    let directory = entry.kind == Kind::Directory;
    match present {
        Some(FileType::Directory) if !directory => return Err(Errno::ISDIR.into()),
        Some(FileType::Directory) | None => {}
        Some(_) if directory => return Err(Errno::NOTDIR.into()),
        Some(_) => unlinkat(parent, name, AtFlags::empty())?,
    }
    let private = Mode::RUSR | Mode::WUSR;
    let device = makedev(entry.device.0, entry.device.1);
    match entry.kind {
        Kind::Directory if present.is_some() => {}
        Kind::Directory => mkdirat(parent, name, Mode::RWXU)?,
        Kind::File => file(stream, parent, name, entry.size).await?,
        Kind::Symlink => symlinkat(&*entry.link, parent, name)?,
        Kind::HardLink => {
            // Nothing of its own: owner and mode are the other name's.
            return link(place, parent, name, &entry.link);
        }
        Kind::Fifo => mknodat(parent, name, FileType::Fifo, private, 0)?,
        Kind::CharacterDevice => {
            mknodat(parent, name, FileType::CharacterDevice, private, device)?;
        }
        Kind::BlockDevice => mknodat(parent, name, FileType::BlockDevice, private, device)?,
    }
    let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(parent, name, Some(owner.0), Some(owner.1), flags)?;
    if entry.kind != Kind::Symlink {
        // After the owner, whose change takes set-id bits away. Followed it
        // would be in the mode of what has taken the name meanwhile.
        let flags = REFERENCE | OFlags::NOFOLLOW;
        let file = openat(parent, name, flags, Mode::empty())?;
        let mode = Mode::from_raw_mode(entry.mode);
        chmodat(
            CWD,
            sys::descriptor_path(file.as_fd()),
            mode,
            AtFlags::empty(),
        )?;
    }
    set_times(parent, name, entry)
}

fn set_times(parent: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        last_modification: Timespec {
            tv_sec: entry.modified.0,
            tv_nsec: entry.modified.1.into(),
        },
    };
    Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

async fn file(
    stream: &mut (impl AsyncRead + Unpin),
    parent: BorrowedFd<'_>,
    name: &CStr,
    size: u64,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut room = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        let piece = room.get_mut(..wanted).unwrap_or_default();
        let length = stream.read(piece).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut piece = room.get(..length).unwrap_or_default();
        while !piece.is_empty() {
            let written = match write(&file, piece) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            piece = piece.get(written..).unwrap_or_default();
        }
        left = left.saturating_sub(length as u64);
    }
    stream.read_exact(&mut vec![0; padding(size)]).await?;
    Ok(())
}

fn link(place: &Place<'_>, parent: BorrowedFd<'_>, name: &CStr, target: &[u8]) -> io::Result<()> {
    let outside = || io::Error::other("the link leads out of the archive");
    let names = components(target).ok_or_else(outside)?;
    let flags = REFERENCE | OFlags::NOFOLLOW;
    let path = place.path(&names)?;
    let target = openat2(place.root, path, flags, Mode::empty(), INSIDE)?;
    let path = sys::descriptor_path(target.as_fd());
    Ok(linkat(CWD, path, parent, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::super::pack;
    use super::*;

    async fn packed(directory: &Path, name: &CStr) -> Vec<u8> {
        let mut bytes = Vec::new();
        let directory = File::open(directory).unwrap();
        pack::pack(&mut bytes, directory.as_fd(), name)
            .await
            .unwrap();
        bytes
    }

    async fn unpacked(mut bytes: &[u8], root: &Path, base: &CStr) -> io::Result<()> {
        let root = File::open(root).unwrap();
        unpack(&mut bytes, root.as_fd(), base).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn tree_survives_the_copy() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| from.path().join("tree").join(name);
        fs::create_dir_all(path("a/empty")).unwrap();
        fs::write(path("a/file"), vec![7; PIECE + 1]).unwrap();
        fs::hard_link(path("a/file"), path("twin")).unwrap();
        symlink("../nowhere", path("a/link")).unwrap();
        fs::write(path(&"n".repeat(255)), "").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        File::open(path("a")).unwrap().set_modified(old).unwrap();
        fs::create_dir(to.path().join("base")).unwrap();
        let bytes = packed(from.path(), c"tree").await;
        unpacked(&bytes, to.path(), c"base").await.unwrap();
        let copy = |name: &str| to.path().join("base/tree").join(name);
        assert_eq!(fs::read(copy("a/file")).unwrap(), vec![7; PIECE + 1]);
        let file = fs::metadata(copy("a/file")).unwrap();
        assert_eq!(
            (file.nlink(), file.ino()),
            (2, fs::metadata(copy("twin")).unwrap().ino())
        );
        assert_eq!(
            fs::read_link(copy("a/link")).unwrap(),
            Path::new("../nowhere")
        );
        assert_eq!(fs::metadata(copy("a")).unwrap().modified().unwrap(), old);
        assert!(copy("a/empty").is_dir() && copy(&"n".repeat(255)).exists());
        // Again over what is there.
        unpacked(&bytes, to.path(), c"base").await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_is_made_outside_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "x").unwrap();
        let target = outside.path().to_str().unwrap();
        symlink(target, root.path().join("out")).unwrap();
        symlink("../../../../..", root.path().join("up")).unwrap();
        let entry = |path: &str| Entry {
            path: path.into(),
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (0, 0),
            link: Vec::new(),
            device: (0, 0),
        };
        let archive = |entry: &Entry| [entry.encode(), tar::END.to_vec()].concat();
        for path in ["../x", "a/../../x", "out/x"] {
            let result = unpacked(&archive(&entry(path)), root.path(), c".").await;
            assert!(result.is_err(), "{path}");
        }
        // What leads upwards ends at the root, as for the container itself.
        unpacked(&archive(&entry("up/x")), root.path(), c".")
            .await
            .unwrap();
        assert!(root.path().join("x").is_dir());
        unpacked(&archive(&entry("/absolute")), root.path(), c".")
            .await
            .unwrap();
        assert!(root.path().join("absolute").is_dir());
        let hard = Entry {
            kind: Kind::HardLink,
            link: b"out/file".to_vec(),
            ..entry("stolen")
        };
        assert!(unpacked(&archive(&hard), root.path(), c".").await.is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn archive_that_breaks_off_is_an_error() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("file"), vec![1; 2000]).unwrap();
        let bytes = packed(from.path(), c"file").await;
        let root = tempfile::tempdir().unwrap();
        for length in [100, 512, 1000, 2512] {
            let part = bytes.get(..length).unwrap();
            assert!(unpacked(part, root.path(), c".").await.is_err(), "{length}");
        }
    }
}
