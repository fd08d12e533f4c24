//! Reads tars entry by entry: ustar, pax and GNU.
//!
//! The `tar` crate decodes the 512-byte headers. What may stand between them
//! is read here: the crate splits pax records at line ends, but values may be
//! binary (`SCHILY.xattr.security.capability`), and it sets no limit to them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::archive_error::ArchiveError;
use crate::erofs::keeps_xattr;
use crate::tree::{Device, Meta};

const BLOCK: u64 = 512;
/// Longest extension header, as Go's archive/tar has it.
const MAX_EXTENSION: u64 = 1 << 20;

/// Memory that an image's names and attributes may still take: of a few
/// kilobytes, a compressor can make billions of entries.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// Enough for eight million files.
    pub(super) fn new() -> Self {
        Self(2 << 30)
    }

    fn charge(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let link = match &entry.kind {
            Kind::HardLink(target) | Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs = &entry.meta.xattrs;
        let xattrs: usize = xattrs
            .iter()
            .map(|(name, value)| 128 + name.len() + value.len())
            .sum();
        let cost = (256 + entry.path.len() + link + xattrs) as u64;
        self.0 = self.0.checked_sub(cost).ok_or(ArchiveError::TooMany)?;
        Ok(())
    }
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    /// Bytes of contents.
    pub(super) size: u64,
    /// Where the contents are in the tar.
    pub(super) offset: u64,
}

/// What an entry is.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Directory,
    File,
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Character(Device),
    Block(Device),
    Fifo,
}

/// Skips bytes of a source; one that can seek need not read them.
pub(super) type Skip<R> = fn(&mut R, u64) -> io::Result<()>;

/// Skips by reading.
pub(super) fn skip_by_reading<R: Read>(source: &mut R, bytes: u64) -> io::Result<()> {
    if io::copy(&mut source.take(bytes), &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// A tar being read.
#[derive(Debug)]
pub(super) struct Reader<R> {
    source: R,
    skip: Skip<R>,
    /// Where the source is.
    position: u64,
    /// Where the next header is.
    next: u64,
}

/// What extension headers said about the entry after them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: bool,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R, skip: Skip<R>) -> Self {
        Self {
            source,
            skip,
            position: 0,
            next: 0,
        }
    }

    /// The next entry, `None` at the end.
    pub(super) fn next(&mut self, budget: &mut Budget) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let offset = self.position;
            let bad = |_| ArchiveError::Header {
                offset: offset - BLOCK,
            };
            let size = header.entry_size().map_err(bad)?;
            match header.entry_type() {
                EntryType::XHeader => extensions.pax(&self.extension(size)?, offset)?,
                EntryType::GNULongName => extensions.path = Some(trim(self.extension(size)?)),
                EntryType::GNULongLink => extensions.link = Some(trim(self.extension(size)?)),
                // Defaults for all entries; in practice a comment by git. A
                // volume's label.
                EntryType::XGlobalHeader => self.claim(size)?,
                kind if kind.as_byte() == b'V' => self.claim(size)?,
                _ => {
                    let size = extensions.size.unwrap_or(size);
                    let entry = entry(&header, extensions, size, offset)?;
                    budget.charge(&entry)?;
                    self.claim(entry.size)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The contents of the entry that was read last.
    pub(super) fn contents(&mut self, entry: &Entry) -> Contents<'_, R> {
        Contents {
            left: entry.size,
            reader: self,
        }
    }

    /// What is behind the tar's end.
    pub(super) fn into_rest(self) -> R {
        self.source
    }

    fn claim(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.next = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|size| self.position.checked_add(size))
            .ok_or(ArchiveError::Truncated)?;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        (self.skip)(&mut self.source, self.next - self.position)?;
        self.position = self.next;
        let mut header = Header::new_old();
        let read = read_full(&mut self.source, header.as_mut_bytes())?;
        self.position += read as u64;
        // Without the zero blocks that end a tar it is still complete.
        if read == 0 || (read as u64 == BLOCK && header.as_bytes().iter().all(|byte| *byte == 0)) {
            return Ok(None);
        }
        if (read as u64) < BLOCK {
            return Err(self.short_header());
        }
        let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = header.as_bytes()[148..156]
            .iter()
            .map(|byte| u32::from(*byte))
            .sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(ArchiveError::Header { offset: self.next });
        }
        self.next += BLOCK;
        Ok(Some(header))
    }

    fn short_header(&self) -> ArchiveError {
        match self.next {
            0 => ArchiveError::Header { offset: 0 },
            _ => ArchiveError::Truncated,
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::LongHeader);
        }
        self.claim(size)?;
        let mut bytes = Vec::new();
        self.position += (&mut self.source).take(size).read_to_end(&mut bytes)? as u64;
        if (bytes.len() as u64) < size {
            return Err(ArchiveError::Truncated);
        }
        Ok(bytes)
    }
}

/// An entry's contents. Ends with an error where the tar is too short.
#[derive(Debug)]
pub(super) struct Contents<'a, R> {
    reader: &'a mut Reader<R>,
    left: u64,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let read = (&mut self.reader.source).take(self.left).read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        self.reader.position += read as u64;
        Ok(read)
    }
}

fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// GNU names end with a zero byte.
fn trim(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn entry(
    header: &Header,
    extensions: Extensions,
    size: u64,
    offset: u64,
) -> Result<Entry, ArchiveError> {
    let bad = || ArchiveError::Header {
        offset: offset - BLOCK,
    };
    let path = extensions
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let shown = || String::from_utf8_lossy(&path).into_owned();
    let link = extensions
        .link
        .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
        .unwrap_or_default();
    let device = || -> Result<Device, ArchiveError> {
        let number = |field: io::Result<Option<u32>>| {
            field.map_err(|_| bad()).map(Option::unwrap_or_default)
        };
        Ok(Device {
            major: number(header.device_major())?,
            minor: number(header.device_minor())?,
        })
    };
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous if extensions.sparse => {
            return Err(ArchiveError::Sparse { path: shown() });
        }
        EntryType::GNUSparse => return Err(ArchiveError::Sparse { path: shown() }),
        // So did tars before POSIX spell directories.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Link => Kind::HardLink(link),
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Char => Kind::Character(device()?),
        EntryType::Block => Kind::Block(device()?),
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(ArchiveError::Kind {
                path: shown(),
                kind: char::from(other.as_byte()),
            });
        }
    };
    let owner = |id: u64| u32::try_from(id).map_err(|_| bad());
    let seconds = header.mtime().map_err(|_| bad())?;
    let (mtime, mtime_nanoseconds) = extensions
        .mtime
        .unwrap_or((i64::try_from(seconds).unwrap_or(0), 0));
    let uid = extensions
        .uid
        .map_or_else(|| header.uid().map_err(|_| bad()), Ok)?;
    let gid = extensions
        .gid
        .map_or_else(|| header.gid().map_err(|_| bad()), Ok)?;
    let mode = header.mode().map_err(|_| bad())? & 0o7777;
    Ok(Entry {
        meta: Meta {
            mode: u16::try_from(mode).map_err(|_| bad())?,
            uid: owner(uid)?,
            gid: owner(gid)?,
            mtime,
            mtime_nanoseconds,
            xattrs: extensions.xattrs,
        },
        path,
        // Only files have contents; some archivers give links a size, but
        // store nothing.
        size: if matches!(kind, Kind::File) { size } else { 0 },
        kind,
        offset,
    })
}

impl Extensions {
    /// Adds the records of a pax header: `LENGTH KEY=VALUE\n`, where LENGTH
    /// counts the whole record (POSIX.1-2017, pax, "pax Header Block").
    fn pax(&mut self, mut bytes: &[u8], offset: u64) -> Result<(), ArchiveError> {
        let bad = || ArchiveError::Header { offset };
        while !bytes.is_empty() {
            let (key, value, rest) = pax_record(bytes).ok_or_else(bad)?;
            bytes = rest;
            let text = || std::str::from_utf8(value).ok();
            let number = || text().and_then(|text| text.parse().ok()).ok_or_else(bad);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => self.mtime = Some(text().and_then(pax_time).ok_or_else(bad)?),
                _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && keeps_xattr(name)
                    {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Key, value and what follows of the first record.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Seconds and nanoseconds of `-12.345`; digits after the ninth are cut off.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_values_may_be_binary() {
        let value = b"\x01\x00\n\n\x02=\n";
        let mut bytes = b"35 SCHILY.xattr.security.x=".to_vec();
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\n10 size=7\n");
        let mut extensions = Extensions::default();
        extensions.pax(&bytes, 0).unwrap();
        assert_eq!(extensions.xattrs[&b"security.x"[..]], value);
        assert_eq!(extensions.size, Some(7));
    }

    #[test]
    fn pax_records_that_are_none_are_refused() {
        for bytes in [
            "x",
            "1",
            "5 a=b",
            "99 a=b\n",
            "0 a=b\n",
            "5 ab\n",
            "11 size=-7\n",
            "2 \n",
        ] {
            assert!(
                Extensions::default().pax(bytes.as_bytes(), 0).is_err(),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn pax_times_keep_nanoseconds() {
        assert_eq!(pax_time("12"), Some((12, 0)));
        assert_eq!(pax_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(pax_time("1.x"), None);
        assert_eq!(pax_time(""), None);
    }

    #[test]
    fn entries_are_counted_before_they_fill_the_memory() {
        let mut block = Header::new_gnu();
        block.set_size(0);
        block.set_mode(0o644);
        block.set_uid(0);
        block.set_gid(0);
        block.set_mtime(0);
        block.set_cksum();
        let mut reader = Reader::new(io::Cursor::new(block.as_bytes().repeat(3)), skip_by_reading);
        let mut budget = Budget(600);
        assert!(reader.next(&mut budget).unwrap().is_some());
        assert!(reader.next(&mut budget).unwrap().is_some());
        assert!(matches!(
            reader.next(&mut budget),
            Err(ArchiveError::TooMany)
        ));
    }

    #[test]
    fn attributes_that_no_file_system_takes_are_dropped() {
        let mut extensions = Extensions::default();
        extensions
            .pax(b"39 SCHILY.xattr.com.apple.provenance=x\n", 0)
            .unwrap();
        assert_eq!(extensions.xattrs.len(), 0);
    }
}
