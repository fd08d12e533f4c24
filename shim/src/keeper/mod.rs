//! The keeper: one sandbox as an engine sees it.
//!
//! ```text
//!  engine ──ttrpc──▶ task ─▶ Keeper ─┬─▶ Sandbox ══▶ agent
//!    ▲                               ├─ container: processes and their phases
//!    └──── publisher ◀── events ◀────┴─ follow: what the agent reports
//! ```
//!
//! What an engine asks of a container that has ended, or whose machine has
//! died, is answered from here: no question waits for a guest that is gone.

mod container;
mod events;
mod follow;
mod lifecycle;
mod streams;
mod task;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use self::container::Container;
pub use self::events::{Event, EventSink};
pub use self::task::services;
use crate::assets::Assets;
use crate::bundle::BundleError;
use crate::machine::MachineSizeError;
use crate::mounts::MountError;
use crate::rootmount::RootMountError;
use crate::sandbox::SandboxError;

/// A request that cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// There is no such container or process.
    #[error("{0} does not exist")]
    NotFound(String),
    /// There is one already.
    #[error("{0} exists already")]
    Exists(String),
    /// It is not in a state for this.
    #[error("{0}")]
    State(String),
    /// The process has ended, in runc's words, which engines look for.
    #[error("process already finished")]
    Finished,
    /// nerite does not do this.
    #[error("{0}")]
    Unsupported(String),
    /// The root file system cannot be mounted.
    #[error(transparent)]
    Root(#[from] RootMountError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// What it mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// How large it is to be.
    #[error(transparent)]
    Size(#[from] MachineSizeError),
    /// The process's streams.
    #[error("open {what} {}", path.display())]
    Stream {
        /// Which.
        what: &'static str,
        /// What the engine names.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A keeper's answer.
pub type Result<T> = std::result::Result<T, KeeperError>;

/// One keeper. It has at most one container.
pub struct Keeper {
    assets: Assets,
    events: EventSink,
    containers: Mutex<HashMap<String, Slot>>,
    shutdown: Notify,
}

/// A place for a container: `None` while it is being made.
type Slot = Option<Arc<Container>>;

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper without a container, whose events go to `events`.
    #[must_use]
    pub fn new(assets: Assets, events: EventSink) -> Arc<Self> {
        Arc::new(Self {
            assets,
            events,
            containers: Mutex::default(),
            shutdown: Notify::new(),
        })
    }

    /// Waits until somebody has asked for the end and no container is left.
    pub async fn ended(&self) {
        self.shutdown.notified().await;
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| KeeperError::NotFound(format!("container {id:?}")))
    }
}
