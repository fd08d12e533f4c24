//! One layer: a tar whose entries go into the tree and whose contents go
//! straight into the image.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::archive_error::ArchiveError;
use super::compression::decode;
use super::merge::Merge;
use super::tar::{Entry, Kind, Reader, skip_by_reading};
use crate::erofs::{StoreError, Writer};
use crate::tree::{Content, Names};

/// Longest target of a symbolic link: `PATH_MAX` less the final zero.
const MAX_TARGET: usize = 4095;

/// Why a layer was not added.
#[derive(Debug)]
pub(super) enum LayerError {
    /// It is bad.
    Archive(ArchiveError),
    /// The image cannot be written.
    Write(io::Error),
}

impl From<ArchiveError> for LayerError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        Self::Archive(error.into())
    }
}

/// Adds a layer on top. `digest` is that of the decoded tar, if it must have
/// one (`sha256:…`).
pub(super) fn apply(
    source: impl Read,
    digest: Option<&str>,
    merge: &mut Merge,
    writer: &mut Writer,
) -> Result<(), LayerError> {
    let decoded = Hashed {
        source: decode(source)?,
        hash: digest.map(|_| Sha256::new()),
    };
    let mut reader = Reader::new(decoded, skip_by_reading);
    while let Some(entry) = reader.next(&mut merge.budget)? {
        add(entry, &mut reader, merge, writer)?;
    }
    let mut rest = reader.into_rest();
    io::copy(&mut rest, &mut io::sink())?;
    if let (Some(expected), Some(hash)) = (digest, rest.hash)
        && super::hex(&hash.finalize()) != expected.trim_start_matches("sha256:")
    {
        return Err(ArchiveError::Digest {
            expected: expected.to_owned(),
        }
        .into());
    }
    Ok(())
}

fn add(
    entry: Entry,
    reader: &mut Reader<impl Read>,
    merge: &mut Merge,
    writer: &mut Writer,
) -> Result<(), LayerError> {
    if merge.apply_whiteout(&entry.path)? {
        return Ok(());
    }
    let content = match &entry.kind {
        Kind::File => {
            let extent =
                writer
                    .store(&mut reader.contents(&entry))
                    .map_err(|error| match error {
                        StoreError::Read(error) => error.into(),
                        StoreError::Write(error) => LayerError::Write(error),
                    })?;
            Content::File(extent)
        }
        Kind::HardLink(target) => return Ok(merge.link(&entry.path, target)?),
        Kind::Directory => Content::Directory(Names::new()),
        Kind::Symlink(target) => {
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                return Err(ArchiveError::Symlink { path }.into());
            }
            Content::Symlink(target.as_slice().into())
        }
        Kind::Character(device) => Content::Character(*device),
        Kind::Block(device) => Content::Block(*device),
        Kind::Fifo => Content::Fifo,
    };
    Ok(merge.add(&entry.path, entry.meta, content)?)
}

/// Hashes what is read, if asked to.
struct Hashed<R> {
    source: R,
    hash: Option<Sha256>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..read]);
        }
        Ok(read)
    }
}
