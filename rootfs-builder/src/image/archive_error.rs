//! What can be wrong inside an archive.

use std::io;

/// An archive, or a layer in one, that cannot be used.
///
/// Names are shown as far as they are text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The data stops too early.
    #[error("it ends too early; copy or save it again")]
    Truncated,
    /// A decoder or the disk failed.
    #[error("its data cannot be decoded; copy or save it again")]
    Data {
        /// The decoder's or the system's error.
        source: io::Error,
    },
    /// There is no tar header where one must be.
    #[error("there is no valid tar header at byte {offset}; copy or save it again")]
    Header {
        /// Bytes from the begin of the tar.
        offset: u64,
    },
    /// A compression that is not supported.
    #[error("it is compressed with {format}; recompress it with gzip, xz or zstd")]
    Compression {
        /// Its name.
        format: &'static str,
    },
    /// An extension header longer than any that makes sense.
    #[error("a header of it is longer than 1 MiB")]
    LongHeader,
    /// More entries than the memory should hold.
    #[error("it lists more than eight million files, or too much about them")]
    TooMany,
    /// A name that leads out of the archive.
    #[error("the name {path:?} in it contains `..`")]
    Outside {
        /// The name.
        path: String,
    },
    /// A name that no Linux file system takes.
    #[error("the name {path:?} in it is too long for Linux")]
    LongName {
        /// The name.
        path: String,
    },
    /// A name that stands for nothing.
    #[error("the name {path:?} in it is not valid")]
    BadName {
        /// The name.
        path: String,
    },
    /// Something below a thing that is no directory.
    #[error("{path:?} in it lies below something that is not a directory")]
    NotADirectory {
        /// The name.
        path: String,
    },
    /// Links that lead to each other.
    #[error("{path:?} in it leads through more than 40 links")]
    LinkLoop {
        /// The name.
        path: String,
    },
    /// A hard link to nothing, or to a directory.
    #[error("{path:?} in it is a hard link to {target:?}, which is not a file in it")]
    LinkTarget {
        /// The link's name.
        path: String,
        /// Where it should lead.
        target: String,
    },
    /// A symbolic link without target or with one too long.
    #[error("the symbolic link {path:?} in it has no valid target")]
    Symlink {
        /// The link's name.
        path: String,
    },
    /// A file with holes in tar's own notation.
    #[error("{path:?} in it is stored as a sparse file; make the archive without --sparse")]
    Sparse {
        /// The name.
        path: String,
    },
    /// An entry of a type that no file system has.
    #[error("{path:?} in it has the unknown type {kind:?}")]
    Kind {
        /// The name.
        path: String,
        /// The type's letter.
        kind: char,
    },
    /// A layer that is not what the image's configuration lists.
    #[error("its contents do not match their digest {expected}; copy or save it again")]
    Digest {
        /// The digest that the image lists.
        expected: String,
    },
}

impl From<io::Error> for ArchiveError {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Data { source },
        }
    }
}
