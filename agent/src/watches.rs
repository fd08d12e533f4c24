//! inotify over shared directories: what programs here watch is told to the
//! broker, and what others do to it on the host is done here once more, for
//! the kernel to notify the programs (`protocol::news`).
//!
//! Nothing tells the agent that a program has begun to watch something; the
//! kernel lists it in `/proc/PID/fdinfo`. So it looks there, each second, and
//! only if something has run in a container since it looked last. The list has
//! the node's number, which is all that the broker needs, and by which the
//! directory is opened whatever path the program used.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::news::{LONGEST_NAME, MOST_WATCHES, News, Saying, event, saying};
use protocol::stream::HostPort;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, mkdirat, mknodat,
    open, openat, renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until};
use zerocopy::{FromZeros, IntoBytes};

use crate::server::Agent;
use crate::sys::{self, FuseHandle};
use crate::transport::Stream;

/// Between two looks while something runs, and when nothing has for long.
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(4);
/// Looks without anything having run before they become seldom.
const PATIENCE: u32 = 30;

/// How long the guest's kernel may believe what it knows of a shared directory.
const VALIDITY: Duration = Duration::from_millis(1100);

/// What is watched: on which file system, and what the kernel calls it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Watched {
    system: u32,
    handle: FuseHandle,
    mask: u32,
}

/// The task: connects to the broker and serves until either end goes.
pub(crate) async fn run(agent: Arc<Agent>) -> io::Result<()> {
    let mut stream = agent.transport.connect(HostPort::NEWS).await?;
    let mut watched = HashMap::new();
    let mut usage = None;
    let mut unchanged = 0_u32;
    let mut next = Instant::now();
    loop {
        let mut head = News::new_zeroed();
        tokio::select! {
            () = sleep_until(next) => {
                let now = agent.processor_use();
                if usage == Some(now) {
                    unchanged = unchanged.saturating_add(1);
                } else {
                    unchanged = 0;
                    usage = Some(now);
                    let found = look(&agent.shares.systems());
                    tell(&mut stream, &mut watched, found).await?;
                }
                next = Instant::now() + if unchanged < PATIENCE { OFTEN } else { SELDOM };
            }
            readable = stream.readable() => {
                readable?;
                stream.read_exact(head.as_mut_bytes()).await?;
                let name = text(&mut stream, head.name).await?;
                let new_name = text(&mut stream, head.new_name).await?;
                if let Some(watched) = watched.get(&head.node) {
                    repeat(&agent, watched, &head, &name, &new_name).await;
                }
                say(&mut stream, saying::DONE, head.sequence, 0).await?;
            }
        }
    }
}

async fn text(stream: &mut Stream, length: u16) -> io::Result<CString> {
    let length = usize::from(length);
    if length > LONGEST_NAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn say(stream: &mut Stream, kind: u32, value: u32, node: u64) -> io::Result<()> {
    let said = Saying { kind, value, node };
    stream.write_all(said.as_bytes()).await
}

/// Tells the broker what differs from before.
async fn tell(
    stream: &mut Stream,
    watched: &mut HashMap<u64, Watched>,
    found: HashMap<u64, Watched>,
) -> io::Result<()> {
    for node in watched.keys().filter(|node| !found.contains_key(node)) {
        say(stream, saying::UNWATCH, 0, *node).await?;
    }
    for (node, new) in &found {
        if watched.get(node) != Some(new) {
            say(stream, saying::WATCH, new.mask, *node).await?;
        }
    }
    *watched = found;
    Ok(())
}

/// Everything on `systems` that a process watches.
fn look(systems: &BTreeMap<u32, String>) -> HashMap<u64, Watched> {
    let mut found = HashMap::new();
    for process in entries(Path::new("/proc")) {
        // Whoever ends meanwhile watches nothing.
        if !process.bytes().all(|byte| byte.is_ascii_digit()) || process == "1" {
            continue;
        }
        let descriptors = format!("/proc/{process}/fd");
        for descriptor in entries(Path::new(&descriptors)) {
            let target = fs::read_link(format!("{descriptors}/{descriptor}"));
            if !target.is_ok_and(|target| target.as_os_str() == "anon_inode:inotify") {
                continue;
            }
            let path = format!("/proc/{process}/fdinfo/{descriptor}");
            let text = fs::read_to_string(path).unwrap_or_default();
            for watched in text.lines().filter_map(parse) {
                if !systems.contains_key(&watched.system) {
                    continue;
                }
                let node = watched.handle.node();
                if found.len() < MOST_WATCHES || found.contains_key(&node) {
                    let all = found.entry(node).or_insert(watched);
                    all.mask |= watched.mask;
                }
            }
        }
    }
    found
}

fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A line of an inotify descriptor's fdinfo (proc_pid_fdinfo(5)).
fn parse(line: &str) -> Option<Watched> {
    let mut words = line.split(' ');
    (words.next() == Some("inotify")).then_some(())?;
    let (mut system, mut mask, mut handle) = (None, None, None);
    for word in words {
        match word.split_once(':') {
            Some(("sdev", number)) => system = u32::from_str_radix(number, 16).ok(),
            Some(("mask", number)) => mask = u32::from_str_radix(number, 16).ok(),
            Some(("f_handle", bytes)) => handle = FuseHandle::parse(bytes),
            _ => {}
        }
    }
    Some(Watched {
        system: system?,
        handle: handle?,
        mask: mask?,
    })
}

/// Does in the guest what has been done on the host.
async fn repeat(agent: &Agent, watched: &Watched, head: &News, name: &CStr, new_name: &CStr) {
    let Some(share) = agent.shares.systems().remove(&watched.system) else {
        return;
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(system) = open(share, flags, Mode::empty()) else {
        return;
    };
    let Ok(object) = sys::open_by_handle(system.as_fd(), watched.handle) else {
        return;
    };
    let doing = Repetition {
        object,
        name,
        new_name,
        file: FileType::from_raw_mode(head.kind_of_file),
    };
    // The kernel may believe for a moment longer that a name leads nowhere; a
    // second attempt is after that moment. Any other failure means that the
    // news are old.
    if doing.perform(head.kind) == Err(Errno::NOENT) {
        sleep(VALIDITY).await;
        let _ = doing.perform(head.kind);
    }
}

struct Repetition<'a> {
    object: OwnedFd,
    name: &'a CStr,
    new_name: &'a CStr,
    file: FileType,
}

impl Repetition<'_> {
    fn perform(&self, kind: u32) -> Result<(), Errno> {
        let here = self.object.as_fd();
        let private = Mode::RUSR | Mode::WUSR;
        match kind {
            event::CREATED => match self.file {
                FileType::Directory => mkdirat(here, self.name, private),
                FileType::Symlink => symlinkat(c"-", here, self.name),
                file => mknodat(here, self.name, file, private, 0),
            },
            event::REMOVED if self.file == FileType::Directory => {
                unlinkat(here, self.name, AtFlags::REMOVEDIR)
            }
            event::REMOVED => unlinkat(here, self.name, AtFlags::empty()),
            event::MOVED => renameat(here, self.name, here, self.new_name),
            event::MODIFIED => self.touch(UTIME_OMIT),
            event::ATTRIBUTES => self.touch(UTIME_NOW),
            event::CLOSED if self.file == FileType::RegularFile => self.close(),
            _ => Ok(()),
        }
    }

    /// Of the modification time alone the kernel tells as of a modification.
    fn touch(&self, access: i64) -> Result<(), Errno> {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: time(access),
            last_modification: time(UTIME_NOW),
        };
        let flags = if self.name.is_empty() {
            AtFlags::EMPTY_PATH
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        utimensat(&self.object, self.name, &times, flags)
    }

    fn close(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.name.is_empty() {
            let path = sys::descriptor_path(self.object.as_fd());
            return open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map(drop);
        }
        openat(&self.object, self.name, flags, Mode::empty()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_is_read_from_the_kernels_list() {
        let line = "inotify wd:1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 \
                    fhandle-bytes:c fhandle-type:81 f_handle:010000002a00000007000000";
        let watched = parse(line).unwrap();
        assert_eq!((watched.system, watched.mask), (0x0080_0013, 0x0800_afce));
        assert_eq!(watched.handle.node(), (1 << 32) + 42);
        assert!(parse("pos:\t0").is_none());
        assert!(parse("inotify wd:1 ino:1 sdev:1 mask:1 ignored_mask:0 ").is_none());
    }
}
