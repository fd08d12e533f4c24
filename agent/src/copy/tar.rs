//! The tar format (POSIX.1-2001 pax, with the extensions of GNU that archives
//! in the wild have), as far as files are copied with it.
//!
//! Own code instead of a crate: the known ones block their thread, and the
//! agent has only one.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Everything in an archive comes in units of this.
pub(super) const BLOCK: usize = 512;

/// Longest extended header; names of the longest path and link fit many times.
const LONGEST_EXTENSION: u64 = 64 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File,
    /// The same file as another entry.
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharacterDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }

    fn from_flag(flag: u8) -> Option<Self> {
        Some(match flag {
            // Contiguous files are files.
            b'0' | 0 | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => return None,
        })
    }
}

/// An entry without its content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes of content, which is padded to whole blocks.
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Of a link: where it leads.
    pub(super) link: Vec<u8>,
    /// Of a device: major and minor number.
    pub(super) device: (u32, u32),
}

/// Bytes that follow content of `size` bytes.
pub(super) fn padding(size: u64) -> usize {
    let unit = BLOCK as u64;
    usize::try_from((unit - size % unit) % unit).unwrap_or(0)
}

/// The two blocks of zeros at the end.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

impl Entry {
    /// The headers.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut extension = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            // "length key=value\n", where the length counts itself.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            extension.extend_from_slice(format!("{length} {key}=").as_bytes());
            extension.extend_from_slice(value);
            extension.push(b'\n');
        };
        let fits = |value: u64, digits: u32| value < 8_u64.pow(digits);
        let (seconds, nanoseconds) = self.modified;
        let plain_time = u64::try_from(seconds).is_ok_and(|time| fits(time, 11));
        for (key, value, fits) in [
            ("path", &self.path, self.path.len() <= 100),
            ("linkpath", &self.link, self.link.len() <= 100),
        ] {
            if !fits {
                add(key, value);
            }
        }
        for (key, value, digits) in [
            ("uid", u64::from(self.uid), 7),
            ("gid", self.gid.into(), 7),
            ("size", self.size, 11),
        ] {
            if !fits(value, digits) {
                add(key, value.to_string().as_bytes());
            }
        }
        if nanoseconds != 0 || !plain_time {
            let time = decimal(seconds, nanoseconds);
            add("mtime", time.as_bytes());
        }
        let mut bytes = Vec::new();
        if !extension.is_empty() {
            let size = extension.len() as u64;
            bytes.extend_from_slice(&header(b'x', size, &Self::extension()));
            bytes.extend_from_slice(&extension);
            bytes.resize(bytes.len() + padding(size), 0);
        }
        bytes.extend_from_slice(&header(self.kind.flag(), self.size, self));
        bytes
    }

    fn extension() -> Self {
        Self {
            path: b"pax".to_vec(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (0, 0),
            link: Vec::new(),
            device: (0, 0),
        }
    }
}

/// A time as pax has it; the fraction counts upwards before 1970 too.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// One header block. Values that do not fit are in an extension before it.
fn header(flag: u8, size: u64, entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], room: usize| {
        for (to, from) in block.iter_mut().skip(at).take(room).zip(bytes) {
            *to = *from;
        }
    };
    let octal = |value: u64, digits: usize| {
        let most = 8_u64.saturating_pow(u32::try_from(digits).unwrap_or(0)) - 1;
        format!("{:0digits$o}", value.min(most))
    };
    put(0, &entry.path, 100);
    put(100, octal(entry.mode.into(), 7).as_bytes(), 7);
    put(108, octal(entry.uid.into(), 7).as_bytes(), 7);
    put(116, octal(entry.gid.into(), 7).as_bytes(), 7);
    put(124, octal(size, 11).as_bytes(), 11);
    let modified = u64::try_from(entry.modified.0).unwrap_or(0);
    put(136, octal(modified, 11).as_bytes(), 11);
    put(148, b"        ", 8);
    put(156, &[flag], 1);
    put(157, &entry.link, 100);
    put(257, b"ustar\x0000", 8);
    put(329, octal(entry.device.0.into(), 7).as_bytes(), 7);
    put(337, octal(entry.device.1.into(), 7).as_bytes(), 7);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn bad(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the archive has {what}"),
    )
}

/// What an extension says of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<(i64, u32)>,
}

impl Extension {
    /// Records of pax.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let broken = || bad("a broken extended header");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ');
            let (digits, _) = bytes.split_at(space.ok_or_else(broken)?);
            let text = std::str::from_utf8(digits).map_err(|_| broken())?;
            let length: usize = text.parse().map_err(|_| broken())?;
            let (record, rest) = bytes.split_at_checked(length).ok_or_else(broken)?;
            let record = record.get(digits.len() + 1..).ok_or_else(broken)?;
            let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(broken)?);
            let value = value.get(1..).unwrap_or_default();
            let number = || {
                let text = std::str::from_utf8(value).map_err(|_| broken())?;
                text.parse::<u64>().map_err(|_| broken())
            };
            let id = || u32::try_from(number()?).map_err(|_| broken());
            match key {
                b"path" => self.path = Some(value.into()),
                b"linkpath" => self.link = Some(value.into()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(id()?),
                b"gid" => self.gid = Some(id()?),
                b"mtime" => {
                    let text = std::str::from_utf8(value).map_err(|_| broken())?;
                    self.modified = Some(time(text).ok_or_else(broken)?);
                }
                _ => {}
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Reads the next entry's headers, `None` at the end. Its content follows.
pub(super) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Entry>> {
    let mut extension = Extension::default();
    loop {
        let mut block = [0; BLOCK];
        stream.read_exact(&mut block).await?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check(&block)?;
        let size = number(&block, 124, 12).ok_or_else(|| bad("an entry of no size"))?;
        let flag = block.get(156).copied().unwrap_or(0);
        if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
            return finish(&block, flag, size, extension).map(Some);
        }
        if size > LONGEST_EXTENSION {
            return Err(bad("an extended header that is too long"));
        }
        let length = usize::try_from(size).unwrap_or(0);
        let mut content = vec![0; length + padding(size)];
        stream.read_exact(&mut content).await?;
        content.truncate(length);
        let name = || -> Vec<u8> {
            let bytes = content.iter().copied();
            bytes.take_while(|byte| *byte != 0).collect()
        };
        match flag {
            b'x' => extension.take(&content)?,
            b'L' => extension.path = Some(name()),
            b'K' => extension.link = Some(name()),
            // What holds for all entries is comments, mostly.
            _ => {}
        }
    }
}

fn finish(block: &[u8; BLOCK], flag: u8, size: u64, extension: Extension) -> io::Result<Entry> {
    let kind = Kind::from_flag(flag).ok_or_else(|| bad("an entry of unknown type"))?;
    let mut path = text(block, 0, 100);
    let prefix = text(block, 345, 155);
    if field(block, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        path = [&prefix, &b"/"[..], &path].concat();
    }
    let number = |at, room| number(block, at, room).ok_or_else(|| bad("a broken number"));
    let id = |at| u32::try_from(number(at, 8)?).map_err(|_| bad("an owner that cannot be"));
    let device = |at| Ok::<u32, io::Error>(u32::try_from(number(at, 8)?).unwrap_or(u32::MAX));
    let seconds = i64::try_from(number(136, 12)?).unwrap_or(i64::MAX);
    let mut entry = Entry {
        path: extension.path.unwrap_or(path),
        kind,
        mode: u32::try_from(number(100, 8)? & 0o7777).unwrap_or(0),
        uid: extension.uid.map_or_else(|| id(108), Ok)?,
        gid: extension.gid.map_or_else(|| id(116), Ok)?,
        size: extension.size.unwrap_or(size),
        modified: extension.modified.unwrap_or((seconds, 0)),
        link: extension.link.unwrap_or_else(|| text(block, 157, 100)),
        device: (device(329)?, device(337)?),
    };
    if entry.path.ends_with(b"/") {
        // So old archives name directories.
        while entry.path.len() > 1 && entry.path.last() == Some(&b'/') {
            entry.path.pop();
        }
        if entry.kind == Kind::File {
            entry.kind = Kind::Directory;
        }
    }
    if entry.kind != Kind::File {
        entry.size = 0;
    }
    Ok(entry)
}

fn check(block: &[u8; BLOCK]) -> io::Result<()> {
    let said = number(block, 148, 8);
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            let blank = (148..156).contains(&at);
            u64::from(if blank { b' ' } else { *byte })
        })
        .sum();
    if said != Some(sum) {
        return Err(bad("a header with a wrong checksum: it is no tar archive"));
    }
    Ok(())
}

fn field(block: &[u8; BLOCK], at: usize, room: usize) -> &[u8] {
    block.get(at..at + room).unwrap_or_default()
}

fn text(block: &[u8; BLOCK], at: usize, room: usize) -> Vec<u8> {
    let field = field(block, at, room).iter().copied();
    field.take_while(|byte| *byte != 0).collect()
}

/// Octal digits, or GNU's binary form for what does not fit.
fn number(block: &[u8; BLOCK], at: usize, room: usize) -> Option<u64> {
    let field = field(block, at, room);
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let first = u64::from(first & 0x7f);
        return rest.iter().try_fold(first, |value, byte| {
            Some(value.checked_mul(256)? | u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|character| matches!(character, '\0' | ' '));
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn entry(path: &[u8]) -> Entry {
        Entry {
            path: path.into(),
            modified: (1, 5),
            ..Entry::extension()
        }
    }

    async fn read(mut bytes: &[u8]) -> io::Result<Option<Entry>> {
        next(&mut bytes).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn entries_survive_their_bytes() {
        let long = vec![b'n'; 3000];
        for entry in [
            entry(b"a/b"),
            entry(&long),
            Entry {
                kind: Kind::Symlink,
                link: long.clone(),
                modified: (-3, 500),
                ..entry(b"l")
            },
            Entry {
                uid: u32::MAX - 1,
                gid: 1 << 21,
                size: 1 << 40,
                mode: 0o6751,
                ..entry(b"f")
            },
            Entry {
                kind: Kind::BlockDevice,
                device: (8, 17),
                modified: (0, 0),
                ..entry(b"d")
            },
        ] {
            assert_eq!(read(&entry.encode()).await.unwrap(), Some(entry));
        }
        assert_eq!(read(&END).await.unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn archives_of_gnu_tar_are_read_and_ours_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let name = "n".repeat(200);
        std::fs::write(directory.path().join(&name), "content").unwrap();
        for format in ["gnu", "pax", "v7", "ustar"] {
            let name = if format == "v7" || format == "ustar" {
                "."
            } else {
                &*name
            };
            let output = Command::new("tar")
                .args(["-c", "--format", format, "-C"])
                .arg(directory.path())
                .args(["--no-recursion", name])
                .output()
                .unwrap();
            let entry = read(&output.stdout).await.unwrap().unwrap();
            assert_eq!(entry.path, name.as_bytes(), "{format}");
        }
        let mut list = Command::new("tar")
            .args(["-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let bytes = [entry(&[b'x'; 300]).encode(), END.to_vec()].concat();
        list.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = list.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&"x".repeat(300)), "{text}");
        assert!(output.stderr.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_archive_is_refused() {
        assert!(read(&[b'x'; BLOCK]).await.is_err());
        assert!(read(b"short").await.is_err());
        let mut bytes = entry(b"f").encode();
        bytes[BLOCK] = b'9';
        assert!(read(&bytes).await.is_err());
    }
}
