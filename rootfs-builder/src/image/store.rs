//! Files of an image by name: in a directory, or in a tar.
//!
//! A tar is listed once and then read at any place. One that is compressed as
//! a whole is decoded first, into a file without a name that is gone with the
//! program, whatever ends it.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::archive_error::ArchiveError;
use super::compression::{Compression, decode};
use super::tar::{Budget, Kind, Reader};
use super::{ImageError, Progress};

/// Longest JSON document.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Links from link to link in an archive.
const MAX_LINKS: usize = 8;
const BUFFER: usize = 256 << 10;

/// Where an image's files are.
#[derive(Debug)]
pub(super) struct Store {
    /// The image, for messages.
    pub(super) image: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory,
    Tar {
        file: Arc<File>,
        members: HashMap<Vec<u8>, Member>,
    },
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Store {
    /// Of a directory.
    pub(super) fn directory(image: &Path) -> Self {
        Self {
            image: image.into(),
            place: Place::Directory,
        }
    }

    /// Of an archive. What must be decoded is put into `scratch`.
    pub(super) fn archive(
        image: &Path,
        file: File,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, ImageError> {
        let bad = |source| ImageError::Archive {
            path: image.into(),
            source,
        };
        let read = |source| ImageError::Read {
            path: image.into(),
            source,
        };
        let size = file.metadata().map_err(read)?.len();
        let mut first = [0; 6];
        let length = file.read_at(&mut first, 0).map_err(read)?;
        if length == 0 {
            return Err(ImageError::Empty { path: image.into() });
        }
        let file = Arc::new(file);
        let file = match Compression::of(&first[..length]).map_err(bad)? {
            Compression::None => file,
            _ => {
                let meter = Meter::new(size, progress);
                Arc::new(decode_to_scratch(
                    image,
                    Span::new(file, 0, size),
                    &meter,
                    scratch,
                )?)
            }
        };
        let members = list(Span::whole(&file).map_err(read)?).map_err(|error| match error {
            ArchiveError::Header { offset: 0 } => ImageError::NotAnImage { path: image.into() },
            error => bad(error),
        })?;
        Ok(Self {
            image: image.into(),
            place: Place::Tar { file, members },
        })
    }

    /// The whole tar; `None` for directories.
    pub(super) fn whole(&self) -> Result<Option<Span>, ImageError> {
        let Place::Tar { file, .. } = &self.place else {
            return Ok(None);
        };
        let read = |source| ImageError::Read {
            path: self.image.clone(),
            source,
        };
        Span::whole(file).map(Some).map_err(read)
    }

    /// The file of that name.
    pub(super) fn open(&self, name: &str) -> Result<Span, ImageError> {
        self.find(name)?.ok_or_else(|| ImageError::Incomplete {
            path: self.image.clone(),
            member: name.to_owned(),
        })
    }

    /// The file of that name, if there is one.
    pub(super) fn find(&self, name: &str) -> Result<Option<Span>, ImageError> {
        let name = normal(b"", name.as_bytes());
        match &self.place {
            Place::Directory => self.find_in_directory(&name),
            Place::Tar { file, members } => {
                let mut name = name;
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(Member::File { offset, size }) => {
                            return Ok(Some(Span::new(Arc::clone(file), *offset, *size)));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => break,
                    }
                }
                Ok(None)
            }
        }
    }

    fn find_in_directory(&self, name: &[u8]) -> Result<Option<Span>, ImageError> {
        use std::os::unix::ffi::OsStrExt;
        let path = self.image.join(std::ffi::OsStr::from_bytes(name));
        let read = |source| ImageError::Read {
            path: path.clone(),
            source,
        };
        // Neither to follow a link out of the layout nor to hang on a FIFO.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
        };
        let found = file.metadata().map_err(read)?;
        Ok(found
            .is_file()
            .then(|| Span::new(Arc::new(file), 0, found.len())))
    }

    /// The bytes of a document.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut span = self.open(name)?;
        if span.size() > MAX_DOCUMENT {
            return Err(ImageError::LongDocument {
                path: self.image.clone(),
                member: name.to_owned(),
            });
        }
        let mut bytes = Vec::new();
        span.read_to_end(&mut bytes)
            .map_err(|source| ImageError::Read {
                path: self.image.clone(),
                source,
            })?;
        Ok(bytes)
    }
}

/// A name without `.`, `..` and empty parts; `..` above the top is ignored.
/// A relative name counts from `base`.
fn normal(base: &[u8], name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let base = if name.starts_with(b"/") { b"" } else { base };
    for part in base
        .split(|byte| *byte == b'/')
        .chain(name.split(|byte| *byte == b'/'))
    {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// All files of a tar.
fn list(tar: Span) -> Result<HashMap<Vec<u8>, Member>, ArchiveError> {
    let size = tar.size();
    let mut reader = Reader::new(tar, Span::skip);
    let mut budget = Budget::new();
    let mut members = HashMap::new();
    while let Some(entry) = reader.next(&mut budget)? {
        let name = normal(b"", &entry.path);
        let member = match entry.kind {
            Kind::File if entry.offset.saturating_add(entry.size) > size => {
                return Err(ArchiveError::Truncated);
            }
            Kind::File => Member::File {
                offset: entry.offset,
                size: entry.size,
            },
            Kind::HardLink(target) => Member::Link(normal(b"", &target)),
            Kind::Symlink(target) => {
                let end = name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                Member::Link(normal(&name[..end], &target))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

fn decode_to_scratch(
    image: &Path,
    source: Span,
    meter: &Meter<'_>,
    scratch: &Path,
) -> Result<File, ImageError> {
    let write = |error| ImageError::write(scratch, error);
    let bad = |error: ArchiveError| ImageError::Archive {
        path: image.into(),
        source: error,
    };
    let mut decoded = decode(meter.read(source)).map_err(bad)?;
    let mut file = tempfile::tempfile_in(scratch).map_err(write)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match decoded.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(read) => file.write_all(&buffer[..read]).map_err(write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(bad(error.into())),
        }
    }
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct Span {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Span {
    fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            file,
            at: offset,
            end: offset.saturating_add(size),
        }
    }

    fn whole(file: &Arc<File>) -> io::Result<Self> {
        Ok(Self::new(Arc::clone(file), 0, file.metadata()?.len()))
    }

    /// Bytes that are left.
    pub(super) fn size(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self
            .at
            .checked_add(bytes)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.size()).map_or(buffer.len(), |s| s.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Counts what is read, for a progress bar.
pub(super) struct Meter<'a> {
    done: Cell<u64>,
    total: u64,
    progress: &'a dyn Progress,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: u64, progress: &'a dyn Progress) -> Self {
        Self {
            done: Cell::new(0),
            total,
            progress,
        }
    }

    /// The same data, counted.
    pub(super) fn read<R: Read>(&self, source: R) -> impl Read + use<'_, 'a, R> {
        Metered {
            meter: self,
            source,
        }
    }
}

struct Metered<'m, 'a, R> {
    meter: &'m Meter<'a>,
    source: R,
}

impl<R: Read> Read for Metered<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        let meter = self.meter;
        meter
            .done
            .set((meter.done.get() + read as u64).min(meter.total));
        meter.progress.update(meter.done.get(), meter.total);
        Ok(read)
    }
}
