//! A container and its processes, as far as the host has to know them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;

use super::streams::Streams;
use super::{KeeperError, Result};
use crate::sandbox::Sandbox;

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exit {
    /// 0–255, or 128 plus the signal.
    pub(super) status: u32,
    /// When.
    pub(super) at: SystemTime,
}

impl Exit {
    /// Of what its machine has taken with it.
    pub(super) fn killed() -> Self {
        Self {
            status: 137,
            at: SystemTime::now(),
        }
    }

    /// When, for an engine.
    pub(super) fn timestamp(self) -> Timestamp {
        self.at.into()
    }
}

/// What a process is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Ended.
    Stopped(Exit),
}

/// A process of a container.
pub(super) struct Process {
    /// Empty for the first.
    pub(super) exec: String,
    /// The streams that the engine named.
    pub(super) streams: Streams,
    pub(super) terminal: bool,
    /// What engines hear as its id.
    pid: AtomicU32,
    phase: watch::Sender<Phase>,
}

impl Process {
    pub(super) fn new(exec: &str, streams: Streams, terminal: bool, pid: u32) -> Self {
        Self {
            exec: exec.into(),
            streams,
            terminal,
            pid: AtomicU32::new(pid),
            phase: watch::Sender::new(Phase::Created),
        }
    }

    pub(super) fn is_init(&self) -> bool {
        self.exec.is_empty()
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// A process beside the first has an id in the guest only.
    pub(super) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to `phase`, unless it has ended.
    pub(super) fn advance(&self, phase: Phase) -> bool {
        self.phase.send_if_modified(|now| {
            let goes_on = match (*now, phase) {
                (Phase::Stopped(_), _) => false,
                (_, Phase::Stopped(_)) => true,
                (now, next) => now != next,
            };
            if goes_on {
                *now = phase;
            }
            goes_on
        })
    }

    /// Waits for its end; `None`: it is deleted before.
    pub(super) fn ended(&self) -> impl Future<Output = Option<Exit>> + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            let phase = phase.wait_for(|phase| matches!(phase, Phase::Stopped(_)));
            match *phase.await.ok()? {
                Phase::Stopped(exit) => Some(exit),
                Phase::Created | Phase::Running => None,
            }
        }
    }
}

/// A container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) init: Arc<Process>,
    /// Its disks want to be unmounted before the machine goes.
    pub(super) writes_to_disks: bool,
    pub(super) paused: AtomicBool,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Until it has ended.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    given_up: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl Container {
    pub(super) fn new(
        id: &str,
        bundle: PathBuf,
        init: Process,
        sandbox: Arc<Sandbox>,
        writes_to_disks: bool,
    ) -> Self {
        Self {
            id: id.into(),
            bundle,
            init: Arc::new(init),
            writes_to_disks,
            paused: AtomicBool::new(false),
            execs: Mutex::default(),
            sandbox: Mutex::new(Some(sandbox)),
            given_up: watch::Sender::new(false),
            over: watch::Sender::new(false),
        }
    }

    pub(super) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process by its exec id; the first without one.
    pub(super) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let process = self.execs().get(exec).cloned();
        process.ok_or_else(|| {
            KeeperError::NotFound(format!("process {exec:?} in container {:?}", self.id))
        })
    }

    /// Its sandbox, as long as there is one.
    pub(super) fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.sandbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its sandbox, for what takes a running guest.
    pub(super) fn running(&self) -> Result<Arc<Sandbox>> {
        self.sandbox().ok_or(KeeperError::Finished)
    }

    /// Nobody waits for its output, or for its start, any longer.
    pub(super) fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    /// Waits until that is so.
    pub(super) async fn given_up(&self) {
        wait(&self.given_up).await;
    }

    /// Ends the machine, with which everything in the guest ends.
    pub(super) fn end(&self) {
        let sandbox = self
            .sandbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(sandbox) = sandbox {
            // Others may still be asking it something.
            sandbox.kill();
        }
        self.over.send_replace(true);
    }

    /// Waits until the machine has ended.
    pub(super) async fn over(&self) {
        wait(&self.over).await;
    }
}

async fn wait(sign: &watch::Sender<bool>) {
    // The sender is the container's own: it does not go meanwhile.
    let _ = sign.subscribe().wait_for(|given| *given).await;
}
