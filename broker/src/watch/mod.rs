//! Watches on the host what somebody in the guest watches, and tells the agent
//! what others do there, one piece of news at a time.
//!
//! fanotify(7) rather than inotify: it says which events this process caused
//! itself, on the guest's behalf, of which the guest's kernel has notified its
//! watchers already. What the guest writes is written by the VMM; it is known
//! by the file being open for writing. News are bounded: when too many wait,
//! the newest are dropped.
//!
//! Not told: what others open, read and close without having written; what
//! happens below a mount inside of a volume; on file systems without file
//! handles nothing. A move between directories is told as a name that has gone
//! and one that has come. The host lets a user have so many groups
//! (`fs.fanotify.max_user_groups`, 128 where nothing else is set): that many
//! sandboxes can have something watched at a time.

mod fanotify;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use protocol::fuse::Name;
use protocol::news::{MOST_WATCHES, News, Saying, event, saying};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, read};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::{FromBytes, IntoBytes};

use self::fanotify::{Event, Place};
use crate::caller;
use crate::device::Device;
use crate::news::Happening;
use crate::nodes::NodeId;
use crate::status::Status;
use crate::sys::{self, ProcName};

/// News that wait to be told.
const MOST_NEWS: usize = 256;

/// How long the agent may take for one; it has given up, or the guest is
/// hostile.
const PATIENCE: Duration = Duration::from_secs(10);

const STACK: usize = 128 * 1024;

/// Events that inotify and fanotify both know, by the same bits.
const COMMON: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_CREATE
    | libc::FAN_DELETE;

/// Both names of what is moved, since Linux 5.17.
const RENAME: u64 = 0x1000_0000;

/// Starts the thread.
///
/// # Errors
///
/// When no thread can be had.
pub(crate) fn start(device: Arc<Device>, stream: OwnedFd) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name("news".into())
        .stack_size(STACK)
        .spawn(move || {
            let mut watcher = Watcher {
                device,
                stream,
                group: None,
                watched: HashMap::new(),
                handles: HashMap::new(),
                waiting: VecDeque::new(),
                telling: None,
                sequence: 0,
                complained: false,
            };
            // The guest then hears no more news; its files are as before.
            let _ = caller::prepare_thread().and_then(|()| watcher.run());
            watcher.device.announced.set(None);
        })
}

struct Watch {
    mask: u64,
    /// What fanotify calls the file: of which file system, and its handle.
    handle: Vec<u8>,
    directory: bool,
}

struct Watcher {
    device: Arc<Device>,
    stream: OwnedFd,
    group: Option<OwnedFd>,
    watched: HashMap<NodeId, Watch>,
    handles: HashMap<Vec<u8>, NodeId>,
    waiting: VecDeque<Happening>,
    /// The number of the news being told, and until when.
    telling: Option<(u32, Instant)>,
    sequence: u32,
    /// It has been told that something cannot be watched.
    complained: bool,
}

impl Watcher {
    fn run(&mut self) -> Result<(), Errno> {
        loop {
            let timeout = self.telling.map(|(_, until)| {
                let left = until.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
            if let Some(group) = &self.group {
                fds.push(PollFd::new(group, PollFlags::IN));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let said = fds.first().is_some_and(|fd| !fd.revents().is_empty());
            let happened = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            if said && !self.listen()? {
                return Ok(());
            }
            if happened {
                self.collect()?;
            }
            if self
                .telling
                .is_some_and(|(_, until)| until <= Instant::now())
            {
                self.told();
            }
            self.tell()?;
        }
    }

    /// Reads one saying; `false` at the end.
    fn listen(&mut self) -> Result<bool, Errno> {
        let mut bytes = [0; size_of::<Saying>()];
        match recv(&self.stream, bytes.as_mut_slice(), RecvFlags::WAITALL) {
            Ok((_, 0)) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            result => result?,
        };
        let Ok(said) = Saying::read_from_bytes(&bytes) else {
            return Ok(true);
        };
        let node = NodeId(said.node);
        match said.kind {
            saying::WATCH => {
                let watched = self.watch(node, u64::from(said.value) & COMMON);
                // A file that has gone has no news.
                if let Err(errno) = watched
                    && errno != Errno::STALE
                {
                    self.complain(errno);
                }
            }
            saying::UNWATCH => self.unwatch(node),
            saying::DONE if self.telling.is_some_and(|(now, _)| now == said.value) => self.told(),
            _ => {}
        }
        Ok(true)
    }

    /// Says once that a program in the guest waits in vain.
    fn complain(&mut self, errno: Errno) {
        if !self.complained {
            self.complained = true;
            // Nobody is left to tell if this fails too.
            let _ = writeln!(
                io::stderr(),
                "nerite-fs: watch files for a program in the guest: {errno}; \
                 it is not notified of what others do (see fs.fanotify.max_user_groups)"
            );
        }
    }

    fn told(&mut self) {
        self.telling = None;
        self.device.announced.set(None);
    }

    fn watch(&mut self, node: NodeId, mask: u64) -> Result<(), Errno> {
        self.unwatch(node);
        if mask == 0 || self.watched.len() >= MOST_WATCHES {
            return Ok(());
        }
        let file = self.device.nodes.descriptor(node)?;
        let directory = match self.device.nodes.kind(node)? {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Ok(()),
        };
        let handle = handle_of(file.as_fd())?;
        let group = match &mut self.group {
            Some(group) => group,
            none => none.insert(sys::new_watch_group()?),
        };
        let path = ProcName::new(file.as_fd());
        let extra = libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
        let mark = |mask| sys::mark(group.as_fd(), true, mask, path.as_c_str());
        let (names, content) = (mask & NAMES, mask & !NAMES);
        let mask = if !directory {
            mark(content)?;
            content
        } else if mask & MOVES == 0 {
            mark(mask | extra)?;
            mask | extra
        } else {
            // Both names at once, or one after the other on an old host.
            let both = (names & !MOVES) | content | RENAME | extra;
            match mark(both) {
                Err(Errno::INVAL) => {
                    mark(mask | extra)?;
                    mask | extra
                }
                result => {
                    result?;
                    both
                }
            }
        };
        self.handles.insert(handle.clone(), node);
        self.watched.insert(
            node,
            Watch {
                mask,
                handle,
                directory,
            },
        );
        Ok(())
    }

    fn unwatch(&mut self, node: NodeId) {
        let Some(watch) = self.watched.remove(&node) else {
            return;
        };
        self.handles.remove(&watch.handle);
        // A file that has gone has taken its mark along.
        if let (Some(group), Ok(file)) = (&self.group, self.device.nodes.descriptor(node)) {
            let path = ProcName::new(file.as_fd());
            let _ = sys::mark(group.as_fd(), false, watch.mask, path.as_c_str());
        }
    }

    /// Reads what has happened.
    fn collect(&mut self) -> Result<(), Errno> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        let mut room = vec![0; 16 << 10];
        let length = match read(group, &mut room) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            result => result?,
        };
        let mut rest = room.get(..length).unwrap_or_default();
        while let Some((event, after)) = Event::parse(rest) {
            rest = after;
            if event.process != i32::try_from(std::process::id()).unwrap_or(0) {
                self.note(&event);
            }
        }
        Ok(())
    }

    /// Turns an event into news.
    fn note(&mut self, event: &Event<'_>) {
        let find = |place: &Option<Place<'_>>| {
            let place = place.as_ref()?;
            let node = self.handles.get(place.handle)?;
            let watch = self.watched.get(node)?;
            watch.directory.then(|| (*node, CString::from(place.name)))
        };
        let file_of = |mask: u64| {
            if mask & libc::FAN_ONDIR != 0 {
                FileType::Directory
            } else {
                FileType::RegularFile
            }
        };
        let mut found = Vec::new();
        if event.mask & RENAME != 0 {
            match (find(&event.old), find(&event.new)) {
                (Some((old, name)), Some((new, new_name))) if old == new => {
                    found.push((event::MOVED, old, name, new_name));
                }
                (old, new) => {
                    found.extend(old.map(|(node, name)| (event::REMOVED, node, name, c"".into())));
                    found.extend(new.map(|(node, name)| (event::CREATED, node, name, c"".into())));
                }
            }
        }
        let itself = event
            .file
            .and_then(|handle| self.handles.get(handle))
            .map(|node| (*node, c"".into()));
        // Who watches the directory is told, and with it who watches the file.
        let place = match find(&event.place) {
            Some((node, name)) if !name.is_empty() && &*name != c"." => Some((node, name)),
            Some((node, _)) => Some((node, c"".into())),
            None => itself,
        };
        if let Some((node, name)) = place {
            for (bits, kind) in [
                (libc::FAN_CREATE | libc::FAN_MOVED_TO, event::CREATED),
                (libc::FAN_MODIFY, event::MODIFIED),
                (libc::FAN_CLOSE_WRITE, event::CLOSED),
                (libc::FAN_ATTRIB, event::ATTRIBUTES),
                (libc::FAN_DELETE | libc::FAN_MOVED_FROM, event::REMOVED),
            ] {
                if event.mask & bits != 0 {
                    found.push((kind, node, name.clone(), c"".into()));
                }
            }
        }
        for (kind, node, name, new_name) in found {
            let happening = Happening {
                kind,
                node,
                name,
                new_name,
                kind_of_file: file_of(event.mask).as_raw_mode(),
            };
            if self.waiting.len() < MOST_NEWS && self.waiting.back() != Some(&happening) {
                self.waiting.push_back(happening);
            }
        }
    }

    /// Tells the next news, unless others are being told.
    fn tell(&mut self) -> Result<(), Errno> {
        while self.telling.is_none() {
            let Some(mut happening) = self.waiting.pop_front() else {
                return Ok(());
            };
            if !self.is_true(&mut happening) {
                continue;
            }
            self.sequence = self.sequence.wrapping_add(1);
            let (name, new_name) = (happening.name.as_bytes(), happening.new_name.as_bytes());
            let length = |name: &[u8]| u16::try_from(name.len()).unwrap_or(0);
            let head = News {
                kind: happening.kind,
                sequence: self.sequence,
                node: happening.node.0,
                kind_of_file: happening.kind_of_file,
                name: length(name),
                new_name: length(new_name),
            };
            let bytes = [head.as_bytes(), name, new_name].concat();
            // A few hundred bytes, and nothing else is on its way: an agent
            // that leaves no room for them does not read.
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            if send(&self.stream, &bytes, flags)? != bytes.len() {
                return Err(Errno::MSGSIZE);
            }
            self.telling = Some((self.sequence, Instant::now() + PATIENCE));
            self.device.announced.set(Some(happening));
        }
        Ok(())
    }

    /// Whether something is still so, and not the guest's own doing; finds out
    /// what kind of file it is.
    fn is_true(&self, happening: &mut Happening) -> bool {
        let nodes = &self.device.nodes;
        if !self.watched.contains_key(&happening.node) {
            return false;
        }
        let Ok(watched) = nodes.descriptor(happening.node) else {
            return false;
        };
        let there = match happening.kind {
            event::REMOVED => return true,
            event::MOVED => &happening.new_name,
            _ => &happening.name,
        };
        let status = if there.is_empty() {
            Status::of(watched.as_fd())
        } else {
            Status::at(watched.as_fd(), there)
        };
        let Ok(status) = status else {
            // Where it has moved to, it has gone from meanwhile.
            let moved = happening.kind == event::MOVED;
            if moved {
                happening.kind = event::REMOVED;
                happening.new_name = CString::default();
            }
            return moved;
        };
        happening.kind_of_file = status.kind().as_raw_mode();
        if !matches!(happening.kind, event::MODIFIED | event::CLOSED) {
            return true;
        }
        let node = match Name::new(there) {
            Ok(_) => nodes.known(&status),
            Err(_) => Some(happening.node),
        };
        !node.is_some_and(|node| self.device.files.writes_to(node))
    }
}

const MOVES: u64 = libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
const NAMES: u64 = MOVES | libc::FAN_CREATE | libc::FAN_DELETE;

/// File system and handle, as in fanotify's events.
fn handle_of(file: std::os::fd::BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    // Two numbers, the first in the lower half.
    let system = rustix::fs::fstatvfs(file)?.f_fsid;
    let handle = sys::file_handle(file)?;
    Ok([&system.to_le_bytes()[..], &handle].concat())
}
