//! Everything that can be wrong with an image, each with the next step.

use std::io;
use std::path::{Path, PathBuf};

use super::ArchiveError;

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
    /// An archive that cannot be read.
    #[error("read {}", path.display())]
    Archive {
        /// What the user named.
        path: PathBuf,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// A layer that cannot be read.
    #[error("read the layer {layer} of {}", path.display())]
    Layer {
        /// What the user named.
        path: PathBuf,
        /// The layer's file in it.
        layer: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// A file that the image refers to is not in it.
    #[error("the image {} lacks its file {member}; save it again", path.display())]
    Incomplete {
        /// What the user named.
        path: PathBuf,
        /// The file.
        member: String,
    },
    /// A file's contents are not those that the image refers to.
    #[error("{member} in the image {} is damaged; save it again", path.display())]
    Damaged {
        /// What the user named.
        path: PathBuf,
        /// The file.
        member: String,
    },
    /// A document that is no such document.
    #[error("read {member} in the image {}", path.display())]
    Document {
        /// What the user named.
        path: PathBuf,
        /// The document.
        member: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A document longer than any that makes sense.
    #[error("{member} in the image {} is longer than 8 MiB", path.display())]
    LongDocument {
        /// What the user named.
        path: PathBuf,
        /// The document.
        member: String,
    },
    /// More layers than digests, or fewer.
    #[error(
        "the image {} has {found} layers, but {member} in it lists {listed}; save it again",
        path.display()
    )]
    LayerCount {
        /// What the user named.
        path: PathBuf,
        /// The image's configuration.
        member: String,
        /// Digests there.
        listed: usize,
        /// Layers of the manifest.
        found: usize,
    },
    /// More than one image.
    #[error("{} holds several images ({}); save one alone", path.display(), names.join(", "))]
    Several {
        /// What the user named.
        path: PathBuf,
        /// The images' names.
        names: Vec<String>,
    },
    /// Something that is no image, or a layer that is no tar.
    #[error(
        "{} holds something of the type {media_type}, which nerite does not know",
        path.display()
    )]
    MediaType {
        /// What the user named.
        path: PathBuf,
        /// The type.
        media_type: String,
    },
    /// Indexes within indexes, too many.
    #[error("the indexes in the image {} are nested too deep", path.display())]
    Nested {
        /// What the user named.
        path: PathBuf,
    },
    /// A digest other than SHA-256.
    #[error("the digest {digest} in the image {} is not a sha256 one", path.display())]
    DigestForm {
        /// What the user named.
        path: PathBuf,
        /// The digest.
        digest: String,
    },
    /// An image for other machines.
    #[error("the image {} is for {found}; get the one for {wanted}", path.display())]
    Platform {
        /// What the user named.
        path: PathBuf,
        /// What it is for.
        found: String,
        /// What this host is.
        wanted: String,
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
