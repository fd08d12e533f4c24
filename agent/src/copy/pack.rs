//! A file or a tree of files as an archive.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat,
};
use rustix::io::{Errno, read};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::PIECE;
use super::tar::{END, Entry, Kind, padding};

/// Files with several names that are recognized; further ones are copied once
/// for each name.
const MOST_LINKS: usize = 65_536;

/// Deepest directory, for each has a descriptor open.
const DEEPEST: usize = 1024;

/// Writes `name` in `directory` with all below it, and the archive's end.
pub(super) async fn pack(
    stream: &mut (impl AsyncWrite + Unpin),
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<()> {
    let mut packer = Packer {
        stream,
        links: HashMap::new(),
    };
    let mut open = Vec::new();
    let path = name.to_bytes().to_vec();
    open.extend(packer.add(directory, name, path).await?);
    while let Some(level) = open.last_mut() {
        let Some(name) = level.names.pop() else {
            open.pop();
            continue;
        };
        let path = [&level.path[..], b"/", name.to_bytes()].concat();
        let deeper = match packer.add(level.directory.as_fd(), &name, path).await {
            // Removed since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => result?,
        };
        open.extend(deeper);
        if open.len() > DEEPEST {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
    }
    packer.stream.write_all(&END).await?;
    packer.stream.shutdown().await
}

/// A directory whose entries are being copied.
struct Level {
    directory: OwnedFd,
    path: Vec<u8>,
    /// What is left of it.
    names: Vec<CString>,
}

struct Packer<'a, S> {
    stream: &'a mut S,
    /// Where files with several names have been.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<S: AsyncWrite + Unpin> Packer<'_, S> {
    /// Writes one entry; a directory's content comes next.
    async fn add(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: Vec<u8>,
    ) -> io::Result<Option<Level>> {
        let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut entry = entry(&status, path);
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                if self.is_known(&status, &mut entry) {
                    self.stream.write_all(&entry.encode()).await?;
                } else {
                    let file = openat(directory, name, flags, Mode::empty())?;
                    let status = fstat(&file)?;
                    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                        return Ok(None);
                    }
                    self.file(&file, entry).await?;
                }
            }
            FileType::Directory => {
                entry.kind = Kind::Directory;
                self.stream.write_all(&entry.encode()).await?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat(directory, name, flags, Mode::empty())?;
                let names = names(&directory)?;
                return Ok(Some(Level {
                    directory,
                    path: entry.path,
                    names,
                }));
            }
            kind => {
                entry.kind = match kind {
                    FileType::Symlink => Kind::Symlink,
                    FileType::CharacterDevice => Kind::CharacterDevice,
                    FileType::BlockDevice => Kind::BlockDevice,
                    FileType::Fifo => Kind::Fifo,
                    // Sockets have no form in archives.
                    _ => return Ok(None),
                };
                if kind == FileType::Symlink {
                    entry.link = readlinkat(directory, name, Vec::new())?.into_bytes();
                }
                self.stream.write_all(&entry.encode()).await?;
            }
        }
        Ok(None)
    }

    /// Whether a file has been copied under another name already.
    fn is_known(&mut self, status: &Stat, entry: &mut Entry) -> bool {
        let key = (status.st_dev, status.st_ino);
        if status.st_nlink < 2 {
            return false;
        }
        if let Some(first) = self.links.get(&key) {
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            return true;
        }
        if self.links.len() < MOST_LINKS {
            self.links.insert(key, entry.path.clone());
        }
        false
    }

    /// Writes a file with as many bytes as its header promises, whatever
    /// becomes of it meanwhile.
    async fn file(&mut self, file: &OwnedFd, mut entry: Entry) -> io::Result<()> {
        let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        entry.size = size;
        self.stream.write_all(&entry.encode()).await?;
        let mut room = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let piece = room.get_mut(..wanted).unwrap_or_default();
            let length = match read(file, &mut *piece) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let length = if length == 0 {
                // Shorter than it was.
                piece.fill(0);
                wanted
            } else {
                length
            };
            let piece = room.get(..length).unwrap_or_default();
            self.stream.write_all(piece).await?;
            left = left.saturating_sub(length as u64);
        }
        self.stream.write_all(&vec![0; padding(size)]).await
    }
}

fn entry(status: &Stat, path: Vec<u8>) -> Entry {
    Entry {
        path,
        kind: Kind::File,
        mode: status.st_mode & 0o7777,
        uid: status.st_uid,
        gid: status.st_gid,
        size: 0,
        modified: (
            status.st_mtime,
            u32::try_from(status.st_mtime_nsec).unwrap_or(0),
        ),
        link: Vec::new(),
        device: (major(status.st_rdev), minor(status.st_rdev)),
    }
}

/// The names in a directory, last first.
fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}
