//! Checks, and how their results are told.

use std::io::Write;

use crate::errno::Errno;
use crate::sys::{self, Fd, Res};

/// A value as a check tells it: nothing that differs from run to run.
pub(crate) trait Show {
    fn show(&self) -> String;
}

impl Show for () {
    fn show(&self) -> String {
        "ok".into()
    }
}

impl Show for Fd {
    fn show(&self) -> String {
        "ok".into()
    }
}

impl Show for sys::memory::Map {
    fn show(&self) -> String {
        "ok".into()
    }
}

impl Show for str {
    fn show(&self) -> String {
        self.into()
    }
}

impl Show for [u8] {
    fn show(&self) -> String {
        format!("\"{}\"", self.escape_ascii())
    }
}

impl Show for Vec<u8> {
    fn show(&self) -> String {
        self.as_slice().show()
    }
}

impl<T: Show + ?Sized> Show for &T {
    fn show(&self) -> String {
        (*self).show()
    }
}

impl<T: Show> Show for Res<T> {
    fn show(&self) -> String {
        match self {
            Ok(value) => value.show(),
            Err(errno) => errno.to_string(),
        }
    }
}

macro_rules! show_as_text {
    ($($kind:ty)*) => {
        $(impl Show for $kind {
            fn show(&self) -> String {
                self.to_string()
            }
        })*
    };
}

show_as_text! { bool i32 u32 i64 u64 usize String Errno }

/// Several values, joined.
macro_rules! all {
    ($($value:expr),* $(,)?) => {
        [$($crate::suite::Show::show(&$value)),*].join(" ")
    };
}
pub(crate) use all;

/// Runs checks below one directory, each in a directory of its own.
#[derive(Debug)]
pub(crate) struct Suite {
    root: Fd,
    topic: &'static str,
    only: Vec<String>,
    count: u32,
}

impl Suite {
    /// A suite in the working directory. `only`: what a check's name has to
    /// contain one of, if there are any.
    pub(crate) fn new(only: Vec<String>) -> Res<Self> {
        Ok(Self {
            root: sys::open(".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?,
            topic: "",
            only,
            count: 0,
        })
    }

    /// Begins a topic.
    pub(crate) fn topic(&mut self, name: &'static str, run: impl FnOnce(&mut Self)) {
        self.topic = name;
        run(self);
    }

    /// One check: `body` runs in a new, empty directory. A call in it that has
    /// to succeed for the rest to make sense ends it with that call's error.
    pub(crate) fn check(&mut self, name: impl AsRef<str>, body: impl FnOnce() -> Res<String>) {
        let name = format!("{}/{}", self.topic, name.as_ref());
        if !self.only.is_empty() && !self.only.iter().any(|only| name.contains(only)) {
            return;
        }
        self.count += 1;
        let directory = self.count.to_string();
        let prepared = sys::fchdir(self.root.raw())
            .and_then(|()| sys::mkdir(&directory, 0o755))
            .and_then(|()| sys::chdir(&directory));
        let result = match prepared.and_then(|()| body()) {
            Ok(result) => result,
            Err(errno) => format!("cannot: {errno}"),
        };
        // Whoever reads this needs every line: nothing else can be done here
        // when nobody does.
        let _ = writeln!(std::io::stdout(), "{name}: {result}");
    }
}

/// Makes a file with seven bytes.
pub(crate) fn file(name: impl AsRef<[u8]>) -> Res<()> {
    file_with(name, b"content", 0o644)
}

/// Makes a file with bytes and a mode, whatever the umask.
pub(crate) fn file_with(name: impl AsRef<[u8]>, bytes: &[u8], mode: u32) -> Res<()> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    let file = sys::open(&name, flags, 0o600)?;
    sys::write(file.raw(), bytes)?;
    sys::fchmod(file.raw(), mode)
}

/// Opens a new file for reading and writing.
pub(crate) fn new_file(name: impl AsRef<[u8]>) -> Res<Fd> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    sys::open(name, flags, 0o644)
}

/// Type, permissions, links; and length, of anything but a directory.
pub(crate) fn look(name: impl AsRef<[u8]>) -> Res<String> {
    sys::lstat(name).map(|status| describe(&status))
}

/// [`look`] at what was found already.
pub(crate) fn describe(status: &libc::stat) -> String {
    let mode = mode_text(status.st_mode);
    if status.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return format!("{mode},links={}", status.st_nlink);
    }
    format!("{mode},links={},size={}", status.st_nlink, status.st_size)
}

/// A mode as a letter for the type and permissions.
pub(crate) fn mode_text(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG => '-',
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '?',
    };
    format!("{kind}{:04o}", mode & 0o7777)
}

/// Type and permissions.
pub(crate) fn mode(name: impl AsRef<[u8]>) -> Res<String> {
    sys::lstat(name).map(|status| mode_text(status.st_mode))
}

/// Owner, group and mode.
pub(crate) fn owner(name: impl AsRef<[u8]>) -> Res<String> {
    sys::lstat(name).map(|status| {
        format!(
            "{}:{},{}",
            status.st_uid,
            status.st_gid,
            mode_text(status.st_mode)
        )
    })
}

/// Length.
pub(crate) fn size(name: impl AsRef<[u8]>) -> Res<i64> {
    sys::stat(name).map(|status| status.st_size)
}

/// Hard links.
pub(crate) fn links(name: impl AsRef<[u8]>) -> Res<u64> {
    sys::lstat(name).map(|status| status.st_nlink)
}

/// The first bytes of a file, as many as one reads.
pub(crate) fn content(name: impl AsRef<[u8]>) -> Res<Vec<u8>> {
    let file = sys::open(name, libc::O_RDONLY, 0)?;
    sys::pread(file.raw(), 4096, 0)
}

/// Names in a directory, sorted, `.` and `..` left out.
pub(crate) fn names(directory: impl AsRef<[u8]>) -> Res<Vec<Vec<u8>>> {
    let directory = sys::open(directory, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut names: Vec<_> = entries(&directory)?
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| name != b"." && name != b"..")
        .collect();
    names.sort();
    Ok(names)
}

/// [`names`] in one word.
pub(crate) fn listing(directory: impl AsRef<[u8]>) -> Res<String> {
    let names = names(directory)?;
    let names: Vec<_> = names
        .iter()
        .map(|name| name.escape_ascii().to_string())
        .collect();
    Ok(format!("[{}]", names.join(",")))
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) inode: u64,
    /// Where the directory is read on after it.
    pub(crate) next: i64,
    pub(crate) kind: u8,
    pub(crate) name: Vec<u8>,
}

/// All entries from where an open directory is read next.
pub(crate) fn entries(directory: &Fd) -> Res<Vec<Entry>> {
    let mut all = Vec::new();
    loop {
        let some = some_entries(directory, 32_768)?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}

/// The entries that one call reads into so many bytes.
pub(crate) fn some_entries(directory: &Fd, room: usize) -> Res<Vec<Entry>> {
    let mut bytes = vec![0; room];
    let length = sys::getdents(directory.raw(), &mut bytes)?;
    let mut rest = bytes.get(..length).unwrap_or_default();
    let mut entries = Vec::new();
    while let Some((entry, after)) = parse(rest) {
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

/// `struct linux_dirent64`: inode, cookie, length, type, name.
fn parse(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let inode = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
    let next = i64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?);
    let kind = *bytes.get(18)?;
    let name = bytes.get(19..usize::from(length))?;
    let end = name.iter().position(|&byte| byte == 0)?;
    let entry = Entry {
        inode,
        next,
        kind,
        name: name.get(..end)?.into(),
    };
    Some((entry, bytes.get(usize::from(length)..)?))
}

/// Long enough for any file system's clock to go on, on the host and in a
/// guest.
pub(crate) fn tick() {
    sys::process::pause(60);
}

/// The three times of a file.
pub(crate) fn times(name: impl AsRef<[u8]>) -> Res<[(i64, i64); 3]> {
    sys::lstat(name).map(|status| {
        [
            (status.st_atime, status.st_atime_nsec),
            (status.st_mtime, status.st_mtime_nsec),
            (status.st_ctime, status.st_ctime_nsec),
        ]
    })
}

/// Which times of a file `act` changes: `a`, `m` and `c`, each only if later.
pub(crate) fn changes(name: &str, act: impl FnOnce() -> Res<()>) -> Res<String> {
    let before = times(name)?;
    tick();
    act()?;
    let after = times(name)?;
    Ok(compare(before, after))
}

/// As [`changes`] of times that were taken already.
pub(crate) fn compare(before: [(i64, i64); 3], after: [(i64, i64); 3]) -> String {
    let mut changed = String::new();
    for ((before, after), letter) in before.into_iter().zip(after).zip(["a", "m", "c"]) {
        match after.cmp(&before) {
            std::cmp::Ordering::Less => changed.push_str(&letter.to_uppercase()),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => changed.push_str(letter),
        }
    }
    if changed.is_empty() {
        changed.push_str("none");
    }
    changed
}
