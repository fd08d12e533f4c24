//! Everything that can be wrong with an image, each with the next step.

use std::io;
use std::path::{Path, PathBuf};

/// An image that no layer can be made of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is nothing of that name.
    #[error(
        "no image {}; give a directory, a root tar, a `docker save` archive or an OCI layout",
        path.display()
    )]
    Missing {
        /// What the user named.
        path: PathBuf,
    },
    /// The image, or a file in it, cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Nothing that nerite knows.
    #[error(
        "{} is not an image; give a directory, a root tar, a `docker save` archive or an OCI \
         layout",
        path.display()
    )]
    NotAnImage {
        /// What the user named.
        path: PathBuf,
    },
    /// An image without any file.
    #[error("the image {} is empty", path.display())]
    Empty {
        /// What the user named.
        path: PathBuf,
    },
    /// Another file system within a directory image.
    #[error(
        "{} is a mount point; unmount it, or give a directory without mounts in it",
        path.display()
    )]
    MountPoint {
        /// Which directory.
        path: PathBuf,
    },
    /// A path that no Linux system could open.
    #[error("the path {} is longer than 4096 bytes", path.display())]
    PathTooLong {
        /// Which path.
        path: PathBuf,
    },
    /// No place for layers is known.
    #[error("neither XDG_CACHE_HOME nor HOME is set to an absolute path; set one of them")]
    NoCache,
    /// The disk of the layers is full.
    #[error(
        "no space left in {}; free some, or set XDG_CACHE_HOME to another disk",
        path.display()
    )]
    DiskFull {
        /// The directory.
        path: PathBuf,
    },
    /// A layer cannot be written.
    #[error("write a layer in {}", path.display())]
    Write {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ImageError {
    /// The image itself cannot be opened.
    pub(crate) fn open(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path: path.into() },
            _ => Self::Read {
                path: path.into(),
                source,
            },
        }
    }

    /// Writing in `directory` failed.
    pub(crate) fn write(directory: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: directory.into(),
            },
            _ => Self::Write {
                path: directory.into(),
                source,
            },
        }
    }
}
