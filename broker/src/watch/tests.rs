//! What others do to a real directory, as the agent hears it.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;

use protocol::broker::Policy;
use protocol::fuse::{InHeader, MknodIn, Opcode, ROOT};
use protocol::news::{AGENT_PROCESS, News, Saying, event, saying};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::{FromBytes, IntoBytes};

use crate::answer::Answer;
use crate::device::Device;
use crate::serve::handle;

/// The root of the first share.
const SHARE: u64 = ROOT + 1;

struct Agent {
    device: Arc<Device>,
    directory: tempfile::TempDir,
    stream: OwnedFd,
}

impl Agent {
    /// One that watches a share for everything.
    fn new() -> Self {
        std::env::set_current_dir("/proc/self/fd").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let share = open(directory.path(), flags, Mode::empty()).unwrap();
        let device = Arc::new(Device::new(Policy::Shared, vec![share], 100, 16).unwrap());
        let flags = SocketFlags::CLOEXEC;
        let (stream, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        super::start(Arc::clone(&device), theirs).unwrap();
        let agent = Self {
            device,
            directory,
            stream,
        };
        agent.say(saying::WATCH, 0xfff, SHARE);
        // The thread reads in order: an answer to nothing comes after.
        agent.say(saying::DONE, 0, 0);
        agent
    }

    fn say(&self, kind: u32, value: u32, node: u64) {
        let said = Saying { kind, value, node };
        rustix::net::send(&self.stream, said.as_bytes(), SendFlags::empty()).unwrap();
    }

    /// Lets a process of its own do something.
    fn others(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&self.directory);
        assert!(command.status().unwrap().success());
    }

    /// The next news, which are not answered yet.
    fn next(&self) -> (News, String) {
        let mut head = [0; size_of::<News>()];
        self.receive(&mut head);
        let head = News::read_from_bytes(&head).unwrap();
        let mut names = vec![0; usize::from(head.name) + usize::from(head.new_name)];
        self.receive(&mut names);
        (head, String::from_utf8(names).unwrap())
    }

    fn receive(&self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            rustix::net::recv(&self.stream, bytes, RecvFlags::WAITALL).unwrap();
        }
    }

    /// Kinds and names, until something has happened to `last`.
    fn until(&self, last: (u32, &str)) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        loop {
            let (head, names) = self.next();
            self.say(saying::DONE, head.sequence, 0);
            let end = (head.kind, &*names) == last;
            all.push((head.kind, names));
            if end {
                return all;
            }
        }
    }

    /// A request of the process `pid`; its error number and answer.
    fn ask(&self, pid: u32, opcode: Opcode, body: &[u8]) -> (i32, Vec<u8>) {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode: opcode as u32,
            nodeid: SHARE,
            pid,
            ..InHeader::default()
        };
        let message = [header.as_bytes(), body].concat();
        let mut answer = Answer::new();
        let (_, result) = handle(&self.device, &message, &mut answer).unwrap();
        let error = result.err().map_or(0, rustix::io::Errno::raw_os_error);
        let answered = answer.finish(0, Ok(()))[16..].to_vec();
        (error, answered)
    }
}

/// Waits until the thread watches: its first news come from a probe.
fn watching() -> Agent {
    let agent = Agent::new();
    let mut attempts = 0;
    loop {
        agent.others(&format!("echo > probe{attempts}"));
        let mut fds = [rustix::event::PollFd::new(
            &agent.stream,
            rustix::event::PollFlags::IN,
        )];
        let second = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut fds, Some(&second)).unwrap() > 0 {
            break;
        }
        attempts += 1;
        assert!(attempts < 20);
    }
    agent.until((event::CLOSED, &format!("probe{attempts}")));
    agent
}

#[test]
fn changes_by_others_are_told_as_they_happen() {
    let agent = watching();
    for (script, last) in [
        ("echo x > a", (event::CLOSED, "a")),
        ("chmod 600 a", (event::ATTRIBUTES, "a")),
        ("mv a b", (event::MOVED, "ab")),
        ("echo y >> b", (event::MODIFIED, "b")),
        ("rm b", (event::REMOVED, "b")),
        ("mkdir d", (event::CREATED, "d")),
        ("rmdir d", (event::REMOVED, "d")),
        ("touch ../$$ && mv ../$$ in", (event::CREATED, "in")),
    ] {
        agent.others(script);
        agent.until(last);
    }
    // All at once: what is not so any more is told as what it has become.
    agent.others("echo x > a; mv a b; rm b; touch end");
    let told = agent.until((event::CREATED, "end"));
    let gone = told.iter().filter(|(kind, _)| *kind == event::REMOVED);
    assert_eq!(
        gone.map(|(_, name)| &**name).collect::<Vec<_>>(),
        ["a", "b"]
    );
}

#[test]
fn changes_by_the_broker_itself_are_not_told() {
    let agent = watching();
    fs::write(agent.directory.path().join("own"), "x").unwrap();
    agent.others("touch end");
    let told = agent.until((event::CREATED, "end"));
    assert!(told.iter().all(|(_, name)| name != "own"), "{told:?}");
}

#[test]
fn what_the_agent_repeats_changes_nothing() {
    let agent = watching();
    agent.others("echo x > a");
    let (head, name) = agent.next();
    assert_eq!((head.kind, &*name), (event::CREATED, "a"));
    // The name is not there yet for the agent, for everybody else it is.
    let entry = |answer: &[u8]| u64::from_ne_bytes(*answer.first_chunk().unwrap());
    assert_eq!(
        entry(&agent.ask(AGENT_PROCESS, Opcode::Lookup, b"a\0").1),
        0
    );
    assert_ne!(entry(&agent.ask(77, Opcode::Lookup, b"a\0").1), 0);
    let make = MknodIn {
        mode: 0o100_600,
        ..MknodIn::default()
    };
    let body = [make.as_bytes(), b"a\0"].concat();
    let (error, answer) = agent.ask(AGENT_PROCESS, Opcode::Mknod, &body);
    assert_eq!(error, 0);
    assert_ne!(entry(&answer), 0);
    assert_eq!(fs::read(agent.directory.path().join("a")).unwrap(), b"x\n");
    // Another name, another process: those are meant.
    assert_eq!(agent.ask(77, Opcode::Mknod, &body).0, libc::EEXIST);
    let body = [make.as_bytes(), b"b\0"].concat();
    assert_eq!(agent.ask(AGENT_PROCESS, Opcode::Mknod, &body).0, 0);
    assert!(agent.directory.path().join("b").exists());
}
