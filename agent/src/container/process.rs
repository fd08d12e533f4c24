//! A process of a container: its first one, or one added later (exec).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use protobuf::well_known_types::timestamp::Timestamp;
use protocol::oci;
use rustix::io::Errno;
use rustix::process::Pid;
use tokio::sync::watch;

use super::identity::Identity;
use super::spawn::Conversation;
use super::stdio::{Stdio, StdioRequest};
use crate::error::{Failure, Result};
use crate::sys;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exit {
    /// 0–255, or 128 plus the signal.
    pub(crate) status: u32,
    /// When.
    pub(crate) at: SystemTime,
}

impl Exit {
    /// An exit now.
    pub(crate) fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }

    /// The time for a message.
    pub(crate) fn timestamp(&self) -> Timestamp {
        self.at.into()
    }
}

/// What a process can be.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Asked for, not made.
    Added(Box<oci::Process>),
    /// Prepared, and waiting to become its program.
    Waiting {
        /// Where it waits.
        conversation: Conversation,
        /// Who it will be.
        identity: Identity,
    },
    /// On its way from the one to the other; a process that ends meanwhile
    /// leaves its exit here, since its start has to be told first.
    Starting(Option<Exit>),
    /// Its program runs.
    Running,
    /// It has ended.
    Stopped(Exit),
}

impl Phase {
    /// In the words of messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Added(_) => "not started",
            Self::Waiting { .. } => "created",
            Self::Starting(_) => "starting",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// What exists of a process only while it does.
#[derive(Debug)]
pub(crate) struct Live {
    /// Its id as the agent sees it.
    pub(crate) pid: Pid,
    /// Refers to it.
    pub(crate) pidfd: OwnedFd,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its container.
    pub(crate) container: String,
    /// Its own id; empty for a container's first process.
    pub(crate) exec: String,
    /// Its streams as asked for.
    pub(crate) request: StdioRequest,
    phase: Mutex<Phase>,
    live: OnceLock<Live>,
    stdio: OnceLock<Stdio>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// A process in its first phase.
    pub(crate) fn new(container: &str, exec: &str, request: StdioRequest, phase: Phase) -> Self {
        Self {
            container: container.into(),
            exec: exec.into(),
            request,
            phase: Mutex::new(phase),
            live: OnceLock::new(),
            stdio: OnceLock::new(),
            exit: watch::Sender::new(None),
        }
    }

    /// Whether it is a container's first.
    pub(crate) fn is_init(&self) -> bool {
        self.exec.is_empty()
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        if self.is_init() {
            format!("container {:?}", self.container)
        } else {
            format!("process {:?} of container {:?}", self.exec, self.container)
        }
    }

    /// Its phase; never held over an await.
    pub(crate) fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it exists now.
    pub(crate) fn set_live(&self, live: Live) {
        // Made once: only Added and new processes are spawned.
        let _ = self.live.set(live);
    }

    /// Notes its streams.
    pub(crate) fn set_stdio(&self, stdio: Stdio) {
        let _ = self.stdio.set(stdio);
    }

    /// Its id as the agent sees it; 0 before it exists.
    pub(crate) fn pid(&self) -> u32 {
        self.live
            .get()
            .map_or(0, |live| live.pid.as_raw_nonzero().get().cast_unsigned())
    }

    /// Its streams, once it exists.
    pub(crate) fn stdio(&self) -> Option<&Stdio> {
        self.stdio.get()
    }

    /// Sends a signal; a process that has ended is not found.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let finished = || Failure::not_found(format!("{}: process already finished", self.name()));
        match &*self.phase() {
            Phase::Stopped(_) => return Err(finished()),
            Phase::Added(_) => {
                return Err(Failure::state(format!("{} is not started", self.name())));
            }
            _ => {}
        }
        let live = self.live.get().ok_or_else(finished)?;
        match sys::send_signal(live.pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(finished()),
            Err(Errno::INVAL) => Err(Failure::argument(format!("signal {signal} does not exist"))),
            Err(errno) => Err(Failure::os(
                format!("send signal {signal} to {}", self.name()),
                errno,
            )),
        }
    }

    /// Notes its end and tells those who wait.
    pub(crate) fn set_stopped(&self, exit: Exit) {
        *self.phase() = Phase::Stopped(exit);
        if let Some(stdio) = self.stdio() {
            stdio.process_exited();
        }
        self.exit.send_replace(Some(exit));
    }

    /// Waits for its end. `None`: it was deleted without ever having run.
    pub(crate) fn exited(&self) -> impl Future<Output = Option<Exit>> + Send + use<> {
        let mut exit = self.exit.subscribe();
        async move { *exit.wait_for(Option::is_some).await.ok()? }
    }
}
