//! Disks: images and block devices of the host, given to a guest whole.
//!
//! What a file holds is what the bundle declares, never what its first bytes
//! look like: a guest may have written those. A disk is locked (`flock`) before
//! a guest gets it: one writer, or any number of readers. The lock lies on the
//! descriptor, so it lasts exactly as long as something can use the disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use protocol::agent::{DISK_FORMATS, is_disk_format};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How long a virtual machine may take to let go of its disks after its keeper
/// has gone.
const DYING: Duration = Duration::from_secs(10);

/// Disk image formats of other programs: refused by name.
const CONTAINERS: [&str; 8] = [
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vhd",
    "vhdx",
    "vdi",
    "parallels",
];

/// A disk that a guest cannot have.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("open {}", path.display())]
    Open {
        /// The image or device.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is no disk.
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind {
        /// What was named.
        path: PathBuf,
    },
    /// Nobody has said what it holds.
    #[error(
        "{} is {kind}: say what it holds with {setting}, one of {}", path.display(),
        DISK_FORMATS.join(", ")
    )]
    Undeclared {
        /// The image or device.
        path: PathBuf,
        /// Which it is.
        kind: &'static str,
        /// Where to say it.
        setting: &'static str,
    },
    /// A format of another program.
    #[error(
        "{setting}: {word:?} is a disk format that nerite does not read; make a raw image of it \
         (`qemu-img convert -O raw`) and name the file system in it, one of {}",
        DISK_FORMATS.join(", ")
    )]
    Container {
        /// Where it was said.
        setting: String,
        /// What was said.
        word: String,
    },
    /// No format that a guest mounts.
    #[error("{setting}: a guest cannot mount {word:?}, only {}", DISK_FORMATS.join(", "))]
    Format {
        /// Where it was said.
        setting: String,
        /// What was said.
        word: String,
    },
    /// Somebody else uses it.
    #[error("{} is in use by {holder}", path.display())]
    Busy {
        /// The image or device.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
}

/// Who holds a disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// A process that runs.
    Process {
        /// Its id.
        id: u32,
        /// Its name.
        name: String,
    },
    /// A process that has ended, its virtual machine not yet.
    Ended(u32),
    /// The host's kernel: it is mounted, or part of another device.
    Kernel,
    /// Nobody that could be found.
    Unknown,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { id, name } => write!(f, "process {id} ({name})"),
            Self::Ended(id) => write!(f, "what process {id} has left behind"),
            Self::Kernel => write!(f, "the host, see `lsblk`"),
            Self::Unknown => write!(f, "another program"),
        }
    }
}

/// The file system on a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Format(&'static str);

impl Format {
    /// The read-only file system whose pages are mapped.
    pub const EROFS: Self = Self("erofs");

    /// The format that `word` names, said at `setting`.
    ///
    /// # Errors
    ///
    /// [`DiskError::Container`] or [`DiskError::Format`], with what is allowed.
    pub fn parse(setting: &str, word: &str) -> Result<Self, DiskError> {
        let known = DISK_FORMATS.iter().find(|known| **known == word);
        if let Some(known) = known.filter(|word| is_disk_format(word)) {
            return Ok(Self(known));
        }
        let (setting, word) = (setting.to_owned(), word.to_owned());
        if CONTAINERS.contains(&word.as_str()) {
            return Err(DiskError::Container { setting, word });
        }
        Err(DiskError::Format { setting, word })
    }

    /// As the guest's kernel calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.0
    }

    /// Whether nothing can be written to it.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        self == Self::EROFS
    }
}

/// What is at a path, as far as disks go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// A directory: shared, no disk.
    Directory,
    /// A regular file.
    Image,
    /// A block device.
    Device,
}

impl FileKind {
    /// What is at `path`.
    ///
    /// # Errors
    ///
    /// [`DiskError`], also for what is neither.
    pub fn of(path: &Path) -> Result<Self, DiskError> {
        let found = fs::metadata(path).map_err(|source| open_error(path, source))?;
        let kind = found.file_type();
        if kind.is_dir() {
            Ok(Self::Directory)
        } else if kind.is_file() {
            Ok(Self::Image)
        } else if kind.is_block_device() {
            Ok(Self::Device)
        } else {
            Err(DiskError::Kind { path: path.into() })
        }
    }

    /// For messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::Image => "a regular file",
            Self::Device => "a block device",
        }
    }
}

/// A disk for a guest.
#[derive(Debug)]
pub struct Disk {
    /// Opened and locked.
    pub image: File,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest reads as its serial.
    pub identity: String,
}

impl Disk {
    /// Opens and locks the image or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn open(path: &Path, read_only: bool, identity: &str) -> Result<Self, DiskError> {
        let kind = FileKind::of(path)?;
        if kind == FileKind::Directory {
            return Err(DiskError::Kind { path: path.into() });
        }
        let mut image = open(path, read_only, false)?;
        lock(path, &image, read_only)?;
        if kind == FileKind::Device && !read_only {
            // The kernel's own claim keeps mounts and other devices off. The
            // lock moves to the descriptor that has it.
            let claimed = claim(path, &image)?;
            drop(image);
            image = claimed;
            lock(path, &image, read_only)?;
        }
        Ok(Self {
            image,
            read_only,
            identity: identity.into(),
        })
    }
}

fn open_error(path: &Path, source: io::Error) -> DiskError {
    DiskError::Open {
        path: path.into(),
        source,
    }
}

fn open(path: &Path, read_only: bool, claim: bool) -> Result<File, DiskError> {
    let flags = if claim { OFlags::EXCL } else { OFlags::empty() };
    File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|source| open_error(path, source))
}

/// A descriptor that claims a block device for itself.
fn claim(path: &Path, locked: &File) -> Result<File, DiskError> {
    /// Who let go of the lock a moment ago lets go of its claim next, in the
    /// same call, and nothing tells of that.
    const NEXT: Duration = Duration::from_secs(1);
    let start = Instant::now();
    loop {
        match open(path, false, true) {
            Err(DiskError::Open { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                if start.elapsed() > NEXT {
                    let holder = match holder(locked) {
                        // The lock is ours, the claim somebody else's.
                        Holder::Process { id, .. } if id == std::process::id() => Holder::Kernel,
                        holder => holder,
                    };
                    let path = path.into();
                    return Err(DiskError::Busy { path, holder });
                }
                std::thread::yield_now();
            }
            result => return result,
        }
    }
}

/// Takes the lock; where only a dying virtual machine holds it, waits for that.
fn lock(path: &Path, image: &File, read_only: bool) -> Result<(), DiskError> {
    let (attempt, wait) = if read_only {
        (
            FlockOperation::NonBlockingLockShared,
            FlockOperation::LockShared,
        )
    } else {
        (
            FlockOperation::NonBlockingLockExclusive,
            FlockOperation::LockExclusive,
        )
    };
    match flock(image.as_fd(), attempt) {
        Ok(()) => return Ok(()),
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(open_error(path, errno.into())),
    }
    let holder = holder(image);
    let busy = || DiskError::Busy {
        path: path.into(),
        holder: holder.clone(),
    };
    if !matches!(holder, Holder::Ended(_)) {
        return Err(busy());
    }
    // The lock of a copy is the lock of the original.
    let copy = image
        .try_clone()
        .map_err(|source| open_error(path, source))?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = tell.send(flock(copy.as_fd(), wait));
    });
    match told.recv_timeout(DYING) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => Err(open_error(path, errno.into())),
        Err(_) => Err(busy()),
    }
}

/// Who has locked a file, by the kernel's list of locks.
fn holder(image: &File) -> Holder {
    let (Ok(found), Ok(locks)) = (image.metadata(), fs::read_to_string("/proc/locks")) else {
        return Holder::Unknown;
    };
    let device = found.dev();
    let name = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        found.ino()
    );
    let Some(id) = locks.lines().find_map(|line| lock_owner(line, &name)) else {
        return Holder::Unknown;
    };
    match fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => Holder::Process {
            id,
            name: name.trim_end().into(),
        },
        Err(_) => Holder::Ended(id),
    }
}

/// The process in a line of `/proc/locks`, if it is about the file `name` and
/// no waiter's.
fn lock_owner(line: &str, name: &str) -> Option<u32> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    match *words.as_slice() {
        [_, "FLOCK", _, _, id, file, ..] if file == name => id.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_file_systems_and_others_are_refused_by_name() {
        assert_eq!(Format::parse("type", "ext4").unwrap().word(), "ext4");
        let error = Format::parse("type", "qcow2").unwrap_err().to_string();
        assert!(error.contains("\"qcow2\" is a disk format"), "{error}");
        let error = Format::parse("type", "btrfs").unwrap_err().to_string();
        assert!(
            error.contains("cannot mount \"btrfs\", only erofs, ext2"),
            "{error}"
        );
    }

    #[test]
    fn second_writer_is_refused_and_the_first_named() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path();
        let first = Disk::open(path, false, "first").unwrap();
        let error = Disk::open(path, false, "second").unwrap_err();
        let expected = format!("in use by process {} (", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
        assert!(Disk::open(path, true, "reader").is_err());
        drop(first);
        let _reader = Disk::open(path, true, "reader").unwrap();
        let _another = Disk::open(path, true, "reader").unwrap();
        assert!(Disk::open(path, false, "writer").is_err());
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(Disk::open(Path::new("/dev/null"), true, "").is_err());
        assert!(Disk::open(Path::new("/tmp"), true, "").is_err());
        let error = Disk::open(Path::new("/nowhere"), true, "").unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }

    #[test]
    fn lock_owner_is_found_among_other_locks() {
        let line = "3: FLOCK  ADVISORY  WRITE 4711 fd:01:99 0 EOF";
        assert_eq!(lock_owner(line, "fd:01:99"), Some(4711));
        assert_eq!(lock_owner(line, "fd:01:9"), None);
        let waiter = "3: -> FLOCK  ADVISORY  WRITE 4712 fd:01:99 0 EOF";
        assert_eq!(lock_owner(waiter, "fd:01:99"), None);
        let other = "4: OFDLCK ADVISORY  WRITE -1 fd:01:99 0 EOF";
        assert_eq!(lock_owner(other, "fd:01:99"), None);
    }
}
