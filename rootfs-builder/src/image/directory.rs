//! A root file system that is a directory.
//!
//! Owners stay as they are when root reads it. For anyone else the reader's
//! own user and group become root's, as in a user namespace: whoever unpacked
//! an image without being root owns all of it, and `su` in it still works.
//!
//! The directory may change, or be changed by somebody hostile, while it is
//! read: every step goes by descriptor and name, follows no link, and opens
//! only what it found to be a regular file.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

use super::cache::{Key, KeyBuilder, nanoseconds};
use super::{ImageError, Progress};
use crate::erofs::{StoreError, Writer, keeps_xattr};
use crate::tree::{Content, Device, Entry, MAX_PATH, Meta, Names, NodeId, Tree};

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// How files are opened: not to hang on a FIFO that took a file's place.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// A directory that is open.
pub(super) struct Directory {
    path: PathBuf,
    root: OwnedFd,
    stat: Stat,
    /// Bytes of all regular files, once the key was made.
    total: Cell<u64>,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let open = || -> io::Result<_> {
            let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&root)?;
            Ok((root, stat))
        };
        let (root, stat) = open().map_err(|error| ImageError::open(path, error))?;
        Ok(Self {
            path: path.into(),
            root,
            stat,
            total: Cell::new(0),
        })
    }

    /// The directory's state: every entry's name and `lstat`.
    pub(super) fn key(&self) -> Result<Key, ImageError> {
        let mut walk = KeyWalk {
            builder: KeyBuilder::new(),
            total: 0,
            device: self.stat.st_dev,
        };
        walk.builder.stat(&self.stat);
        walk.directory(self.root.as_fd(), &mut self.path.clone())?;
        self.total.set(walk.total);
        Ok(walk.builder.finish())
    }

    /// Reads everything: contents into the image, the rest into a tree.
    pub(super) fn read(
        &self,
        writer: &mut Writer,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<Tree, ImageError> {
        let owners = Owners::of_process();
        let mut meta = meta(&self.stat, &owners);
        meta.xattrs = xattrs(self.root.as_fd()).map_err(|e| read_error(&self.path, e))?;
        let mut reader = Reader {
            tree: Tree::new(meta),
            links: HashMap::new(),
            device: self.stat.st_dev,
            done: 0,
            total: self.total.get(),
            owners,
            writer,
            target,
            progress,
        };
        reader.directory(self.root.as_fd(), &mut self.path.clone(), Tree::ROOT)?;
        if reader.tree.len() == 1 {
            return Err(ImageError::Empty {
                path: self.path.clone(),
            });
        }
        Ok(reader.tree)
    }
}

fn read_error(path: &Path, source: impl Into<io::Error>) -> ImageError {
    ImageError::Read {
        path: path.into(),
        source: source.into(),
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A directory's entries, sorted by name.
fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<(CString, Stat)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => found.push((name, stat)),
            // Removed while we looked: it was not there.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// Opens a directory within the image.
fn descend(
    directory: BorrowedFd<'_>,
    name: &CString,
    stat: &Stat,
    device: u64,
    path: &Path,
) -> Result<OwnedFd, ImageError> {
    if stat.st_dev != device {
        return Err(ImageError::MountPoint { path: path.into() });
    }
    if path.as_os_str().len() > MAX_PATH {
        return Err(ImageError::PathTooLong { path: path.into() });
    }
    rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()).map_err(|e| read_error(path, e))
}

/// Appends a name to the path that errors show; `pop` takes it away.
fn push(path: &mut PathBuf, name: &CString) {
    path.push(OsStr::from_bytes(name.as_bytes()));
}

struct KeyWalk {
    builder: KeyBuilder,
    total: u64,
    device: u64,
}

impl KeyWalk {
    fn directory(&mut self, fd: BorrowedFd<'_>, path: &mut PathBuf) -> Result<(), ImageError> {
        for (name, stat) in entries(fd).map_err(|error| read_error(path, error))? {
            self.builder.name(name.as_bytes());
            self.builder.stat(&stat);
            match kind(&stat) {
                FileType::Directory => {
                    push(path, &name);
                    let child = descend(fd, &name, &stat, self.device, path)?;
                    self.directory(child.as_fd(), path)?;
                    path.pop();
                }
                FileType::RegularFile => self.total += u64::try_from(stat.st_size).unwrap_or(0),
                _ => {}
            }
        }
        self.builder.end();
        Ok(())
    }
}

/// How owners are translated.
struct Owners {
    /// Whose things become root's: nobody's if root reads.
    own: Option<(u32, u32)>,
}

impl Owners {
    fn of_process() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self {
            own: (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw())),
        }
    }
}

fn meta(stat: &Stat, owners: &Owners) -> Meta {
    let (mut uid, mut gid) = (stat.st_uid, stat.st_gid);
    if let Some((own_uid, own_gid)) = owners.own {
        uid = if uid == own_uid { 0 } else { uid };
        gid = if gid == own_gid { 0 } else { gid };
    }
    Meta {
        // The lower 12 bits: no loss.
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid,
        gid,
        mtime: stat.st_mtime,
        mtime_nanoseconds: nanoseconds(stat.st_mtime_nsec),
        xattrs: Default::default(),
    }
}

/// Extended attributes of a file or directory, those that an image may have.
/// Other objects have none that matter: `user.` is not allowed on them.
fn xattrs(file: BorrowedFd<'_>) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    use rustix::io::Errno;
    // The kernel's limits, XATTR_LIST_MAX and XATTR_SIZE_MAX.
    let mut list = Vec::new();
    match rustix::fs::flistxattr_query(file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Default::default()),
        Ok(_) => list.reserve(64 << 10),
        Err(error) => return Err(error.into()),
    }
    rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut list))?;
    let mut found = std::collections::BTreeMap::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| keeps_xattr(name))
    {
        let mut value = Vec::with_capacity(64 << 10);
        match rustix::fs::fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => drop(found.insert(name.to_vec(), value)),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

struct Reader<'a> {
    tree: Tree,
    /// Nodes with more than one name, by device and inode number.
    links: HashMap<(u64, u64), NodeId>,
    device: u64,
    owners: Owners,
    done: u64,
    total: u64,
    writer: &'a mut Writer,
    target: &'a Path,
    progress: &'a dyn Progress,
}

impl Reader<'_> {
    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &mut PathBuf,
        id: NodeId,
    ) -> Result<(), ImageError> {
        let mut names = Names::new();
        for (name, stat) in entries(fd).map_err(|error| read_error(path, error))? {
            push(path, &name);
            let node = self.entry(fd, &name, &stat, path)?;
            path.pop();
            names.insert(name.as_bytes().into(), Entry { node, layer: 0 });
        }
        self.tree.node_mut(id).content = Content::Directory(names);
        Ok(())
    }

    fn entry(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        path: &mut PathBuf,
    ) -> Result<NodeId, ImageError> {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(node) = self.links.get(&identity) {
            return Ok(*node);
        }
        let mut meta = meta(stat, &self.owners);
        let device = || Device {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        };
        let content = match kind(stat) {
            FileType::Directory => {
                let child = descend(fd, name, stat, self.device, path)?;
                meta.xattrs = xattrs(child.as_fd()).map_err(|error| read_error(path, error))?;
                let id = self.tree.add(meta, Content::Directory(Names::new()));
                self.directory(child.as_fd(), path, id)?;
                return Ok(id);
            }
            FileType::RegularFile => self.file(fd, name, stat, path, &mut meta)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, name, Vec::new())
                    .map_err(|error| read_error(path, error))?;
                Content::Symlink(target.as_bytes().into())
            }
            FileType::CharacterDevice => Content::Character(device()),
            FileType::BlockDevice => Content::Block(device()),
            FileType::Fifo => Content::Fifo,
            FileType::Socket => Content::Socket,
            FileType::Unknown => {
                return Err(read_error(
                    path,
                    io::Error::from(io::ErrorKind::Unsupported),
                ));
            }
        };
        let node = self.tree.add(meta, content);
        if stat.st_nlink > 1 {
            self.links.insert(identity, node);
        }
        Ok(node)
    }

    fn file(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        path: &Path,
        meta: &mut Meta,
    ) -> Result<Content, ImageError> {
        let open = || -> io::Result<File> {
            let file = rustix::fs::openat(fd, name, FILE, Mode::empty())?;
            if kind(&rustix::fs::fstat(&file)?) != FileType::RegularFile {
                return Err(io::Error::other("it was replaced while it was read"));
            }
            Ok(File::from(file))
        };
        let file = open().map_err(|error| read_error(path, error))?;
        meta.xattrs = xattrs(file.as_fd()).map_err(|error| read_error(path, error))?;
        // One that grows, like a log, ends where it ended when we looked.
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let extent = self
            .writer
            .store(&mut file.take(size))
            .map_err(|error| match error {
                StoreError::Read(error) => read_error(path, error),
                StoreError::Write(error) => ImageError::write(self.target, error),
            })?;
        self.done += size;
        self.progress.update(self.done.min(self.total), self.total);
        Ok(Content::File(extent))
    }
}
