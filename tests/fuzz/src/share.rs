//! A tree to be shared, what lies beside it, and the real broker for it.
//!
//! ```text
//!  directory/ ─┬─ secret    what no request may read or change
//!              ├─ outside/
//!              └─ share/    what the broker's device shows
//! ```
//!
//! The broker's threads run without the right to make device nodes, and no
//! file grows beyond [`LARGEST`]: the fuzzer's own host is not to be hurt.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, Once};
use std::thread::{self, JoinHandle};

use ::broker::{Device, serve};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use protocol::broker::Policy;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Largest file.
const LARGEST: u64 = 16 << 20;

/// Nodes that a device may know, its share included.
pub(crate) const NODES: usize = 32;
/// Descriptors that a device may keep without need.
pub(crate) const DESCRIPTORS: usize = 6;

const SECRET: &[u8] = b"not for guests";

/// What tells whether somebody has touched a file.
#[derive(Debug, Eq, PartialEq)]
struct Stamp {
    mode: u32,
    owner: (u32, u32),
    names: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let data = fs::symlink_metadata(path).expect("what is outside is still there");
        Self {
            mode: data.mode(),
            owner: (data.uid(), data.gid()),
            names: data.nlink(),
            bytes: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

/// A tree, fresh for each run.
#[derive(Debug)]
pub(crate) struct Tree {
    directory: tempfile::TempDir,
    outside: [Stamp; 2],
}

impl Tree {
    pub(crate) fn new() -> Self {
        limit_files();
        // Where a sync costs nothing.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() {
            memory.into()
        } else {
            std::env::temp_dir()
        };
        let directory = tempfile::tempdir_in(parent).unwrap();
        let path = directory.path();
        let share = path.join("share");
        fs::write(path.join("secret"), SECRET).unwrap();
        fs::create_dir(path.join("outside")).unwrap();
        fs::create_dir(&share).unwrap();
        fs::write(share.join("file"), "content").unwrap();
        fs::create_dir(share.join("directory")).unwrap();
        fs::write(share.join("directory/file"), "deeper").unwrap();
        symlink("../secret", share.join("upwards")).unwrap();
        symlink(path.join("outside"), share.join("absolute")).unwrap();
        symlink("/proc/self/cwd", share.join("magic")).unwrap();
        mkfifo(&share.join("pipe"), Mode::from_bits_truncate(0o666)).unwrap();
        drop(UnixListener::bind(share.join("socket")).unwrap());
        let outside = [
            Stamp::of(&path.join("secret")),
            Stamp::of(&path.join("outside")),
        ];
        Self { directory, outside }
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// The broker's device for it.
    pub(crate) fn device(&self, policy: Policy) -> Arc<Device> {
        let flags = nix::fcntl::OFlag::O_PATH
            | nix::fcntl::OFlag::O_DIRECTORY
            | nix::fcntl::OFlag::O_CLOEXEC;
        let share = nix::fcntl::open(&self.share(), flags, Mode::empty()).unwrap();
        Arc::new(Device::new(policy, vec![share], NODES, DESCRIPTORS).unwrap())
    }

    /// Asserts that nothing outside of the share has been touched.
    pub(crate) fn check(&self) {
        let path = self.directory.path();
        let secret = path.join("secret");
        assert_eq!(fs::read(&secret).unwrap(), SECRET, "the secret was changed");
        let outside = [Stamp::of(&secret), Stamp::of(&path.join("outside"))];
        assert_eq!(outside, self.outside, "something outside was touched");
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "secret", "share"]);
    }

    /// Asserts that a descriptor is of a regular file below the share.
    pub(crate) fn check_descriptor(&self, descriptor: &OwnedFd) {
        let data = fs::File::from(descriptor.try_clone().unwrap())
            .metadata()
            .unwrap();
        assert!(data.is_file(), "a descriptor of {:?}", data.file_type());
        let name = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let path = fs::read_link(name).unwrap();
        assert!(
            path.starts_with(self.share()),
            "a descriptor of {}",
            path.display()
        );
    }
}

/// Files end early, and whoever makes one longer gets `EFBIG`, no signal.
fn limit_files() {
    static PROCESS: Once = Once::new();
    PROCESS.call_once(|| setrlimit(Resource::RLIMIT_FSIZE, LARGEST, LARGEST).unwrap());
    thread_local! {
        static THREAD: () = SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
    }
    THREAD.with(|()| ());
}

type Job = (Arc<Device>, OwnedFd, Sender<JoinHandle<()>>);

/// A thread that starts channels' threads: they inherit what it is. Its
/// working directory is where the broker's is, and nobody else's.
static LAUNCHER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = channel::<Job>();
    thread::spawn(move || {
        limit_files();
        unshare(CloneFlags::CLONE_FS).unwrap();
        std::env::set_current_dir("/proc/self/fd").unwrap();
        let mut sets = capabilities(None).unwrap();
        sets.permitted &= KEPT;
        sets.effective &= KEPT;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets).unwrap();
        for (device, channel, answer) in jobs {
            let _ = answer.send(serve::start(device, channel).unwrap());
        }
    });
    Mutex::new(sender)
});

/// What the broker keeps in its jail, but for device nodes.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);

/// A channel to a broker's thread that serves `device`, and the thread, which
/// ends when the channel is closed.
pub(crate) fn serve_channel(device: &Arc<Device>) -> (OwnedFd, JoinHandle<()>) {
    let (ours, theirs) = pair();
    let (sender, answer) = channel();
    LAUNCHER
        .lock()
        .unwrap()
        .send((Arc::clone(device), theirs, sender))
        .unwrap();
    (ours, answer.recv().unwrap())
}

/// A channel's two ends.
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
}

/// Asserts that a device keeps within its limits. `opened`: files that it has
/// been asked to open, each of which may hold a descriptor.
pub(crate) fn check_census(device: &Device, opened: usize) {
    let census = device.census();
    assert!(census.nodes <= NODES, "{census:?}");
    assert!(
        census.descriptors <= DESCRIPTORS + opened,
        "{census:?} after {opened} openings"
    );
}

/// Open descriptors of this process; only the fuzzer has no other threads
/// that open some.
pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Receives one message of a channel and the descriptors beside it; no bytes
/// at its end.
pub(crate) fn receive(channel: &OwnedFd, room: &mut [u8]) -> (usize, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let mut room = [IoSliceMut::new(room)];
        match recvmsg(channel.as_fd(), &mut room, &mut control, flags) {
            // The fuzzer's own clock.
            Err(Errno::INTR) => {}
            received => break received,
        }
    };
    let length = received.map_or(0, |message| message.bytes);
    let files = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    (length, files)
}

/// Sends one message of a channel with descriptors beside it, unless there is
/// no room for it.
pub(crate) fn send(channel: &OwnedFd, bytes: &[u8], beside: &[OwnedFd]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
    if !beside.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&beside));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(channel, &[IoSlice::new(bytes)], &mut control, flags).is_ok()
}
