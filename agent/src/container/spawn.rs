//! Makes a process from a [`Plan`] and talks to it until its program runs.

use std::io::{IoSliceMut, Result as IoResult};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::child;
use super::child::fault::{FaultKind, RECORD_ROOM, Report};
use super::identity::Identity;
use super::plan::Plan;
use crate::error::{Attempt, Failure, Result};
use crate::sys::{self, Cloned};

/// A process that prepares itself.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its id as the agent sees it.
    pub(crate) pid: Pid,
    /// Refers to it even when its id is used again.
    pub(crate) pidfd: OwnedFd,
}

/// The two ends of a conversation.
pub(crate) fn conversation() -> Result<(Conversation, OwnedFd)> {
    let act = || "make a socketpair".into();
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .attempt(act)?;
    // Only this end: the child waits with its own.
    rustix::io::ioctl_fionbio(&ours, true).attempt(act)?;
    Ok((
        Conversation(sys::asynchronous(ours, Interest::READABLE).attempt(act)?),
        theirs,
    ))
}

/// Makes the process. Afterwards the plan, and with it every descriptor that
/// was meant for the child, is gone from the agent.
pub(crate) fn spawn(
    mut plan: Plan,
    new_namespaces: std::ffi::c_int,
    cgroup: BorrowedFd<'_>,
) -> std::io::Result<Spawned> {
    let descriptors = plan.descriptors();
    // A new cgroup namespace is made by the child, see there.
    let flags = u64::from((new_namespaces & !libc::CLONE_NEWCGROUP).cast_unsigned());
    match sys::clone3(flags, cgroup)? {
        Cloned::Child => child::run(&mut plan, &descriptors),
        Cloned::Parent { pid, pidfd } => Ok(Spawned { pid, pidfd }),
    }
}

/// The agent's end of the conversation with a child that prepares itself.
#[derive(Debug)]
pub(crate) struct Conversation(AsyncFd<OwnedFd>);

/// Why a program does not run.
#[derive(Debug)]
pub(crate) enum StartFailure {
    /// There is none; the shell's 127.
    NotFound(Failure),
    /// It cannot be executed; the shell's 126.
    NotExecutable(Failure),
    /// Something before it failed.
    Setup(Failure),
}

impl StartFailure {
    /// The exit status of the process that could not become the program.
    pub(crate) fn status(&self) -> u32 {
        match self {
            Self::NotExecutable(_) => 126,
            Self::NotFound(_) | Self::Setup(_) => 127,
        }
    }

    /// The answer to the request.
    pub(crate) fn into_error(self) -> Failure {
        match self {
            Self::NotFound(error) | Self::NotExecutable(error) | Self::Setup(error) => error,
        }
    }
}

/// What a child has said.
enum Record {
    Ready(Option<OwnedFd>),
    Fault(Report),
    End,
}

impl Conversation {
    /// Waits until the child is prepared; gives its terminal's master, if it
    /// has a terminal.
    pub(crate) async fn ready(&self) -> Result<Option<OwnedFd>> {
        match self.record().await? {
            Record::Ready(master) => Ok(master),
            Record::Fault(report) => Err(failure(&report).into_error()),
            Record::End => Err(died()),
        }
    }

    /// Lets the child go on; returns when the program runs.
    pub(crate) async fn start(&self, identity: &Identity) -> std::result::Result<(), StartFailure> {
        let message = identity.encode().map_err(StartFailure::Setup)?;
        // A message this small fits into an empty socket.
        match send(&self.0, &message, SendFlags::NOSIGNAL) {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(StartFailure::Setup(died())),
            Err(errno) => {
                return Err(StartFailure::Setup(Failure::os("start the process", errno)));
            }
        }
        match self.record().await.map_err(StartFailure::Setup)? {
            Record::End => Ok(()),
            Record::Fault(report) => Err(failure(&report)),
            Record::Ready(_) => Err(StartFailure::Setup(Failure::internal("ready twice"))),
        }
    }

    async fn record(&self) -> Result<Record> {
        let act = || "hear from the container's process".into();
        loop {
            let mut guard = self.0.readable().await.attempt(act)?;
            if let Ok(result) = guard.try_io(|fd| receive(fd.as_fd())) {
                return result.attempt(act);
            }
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> IoResult<Record> {
    let mut bytes = [0_u8; RECORD_ROOM + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let length = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        // A child that was killed with our message unread.
        Err(Errno::CONNRESET) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let record = bytes.get(..length).unwrap_or_default();
    match record.split_first() {
        None => Ok(Record::End),
        Some((&child::READY, _)) => Ok(Record::Ready(descriptors.pop())),
        Some((&child::FAULT, report)) => Report::decode(report)
            .map(Record::Fault)
            .ok_or_else(|| std::io::ErrorKind::InvalidData.into()),
        Some(_) => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

fn died() -> Failure {
    Failure::internal("the container's process ended while it was being prepared")
}

/// A report as an answer, in the words that people know from runc.
fn failure(report: &Report) -> StartFailure {
    if report.kind == FaultKind::Setup {
        let object = if report.object.is_empty() {
            String::new()
        } else {
            format!(" {}", report.object)
        };
        let act = format!("{}{object}", report.act);
        return StartFailure::Setup(Failure::os(act, report.errno));
    }
    let program = &report.object;
    let searched = !program.contains('/');
    match report.errno {
        Errno::NOENT | Errno::NOTDIR | Errno::ISDIR if searched => {
            StartFailure::NotFound(Failure::not_found(format!(
                "exec {program:?}: executable file not found in $PATH"
            )))
        }
        Errno::NOENT | Errno::NOTDIR => StartFailure::NotFound(Failure::not_found(format!(
            "exec {program:?}: no such file or directory"
        ))),
        Errno::ISDIR => StartFailure::NotExecutable(Failure::denied(format!(
            "exec {program:?}: is a directory"
        ))),
        Errno::NOEXEC => StartFailure::NotExecutable(Failure::denied(format!(
            "exec {program:?}: exec format error"
        ))),
        Errno::ACCESS | Errno::PERM => StartFailure::NotExecutable(Failure::denied(format!(
            "exec {program:?}: permission denied"
        ))),
        errno => StartFailure::NotExecutable(Failure::denied(format!(
            "exec {program:?}: {}",
            std::io::Error::from(errno)
        ))),
    }
}
