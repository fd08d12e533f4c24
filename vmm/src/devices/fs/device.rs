//! The device: its configuration. Its work is done by the workers.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use protocol::broker::Policy;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::files::Files;
use super::forgets::Forgets;
use super::known::Known;
use super::locks::Locks;
use super::window::FileWindow;
use crate::virtio::{Device, QueueFault, Queues, SharedMemory};

/// The queue of forgets.
pub(super) const FORGETS: usize = 0;
/// The queue of requests.
pub(super) const REQUESTS: usize = 1;

/// The window's number among shared memory regions (5.11.5).
const WINDOW: u32 = 0;

/// Length of the tag in the configuration (5.11.4).
const TAG: usize = 36;

/// One virtio-fs device.
#[derive(Debug)]
pub struct Fs {
    config: [u8; TAG + 4],
    files: Arc<Files>,
    forgets: Arc<Forgets>,
    known: Option<Arc<Known>>,
    locks: Option<Arc<Locks>>,
    window: Option<Arc<FileWindow>>,
}

impl Fs {
    /// A device with the tag of `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let mut config = [0; TAG + 4];
        for (to, from) in config.iter_mut().zip(policy.tag().bytes()) {
            *to = from;
        }
        // One request queue, whatever number of workers takes from it.
        for (to, from) in config.iter_mut().skip(TAG).zip(1_u32.to_le_bytes()) {
            *to = from;
        }
        Self {
            config,
            files: Arc::default(),
            forgets: Arc::default(),
            known: (policy == Policy::Exclusive).then(Arc::default),
            locks: (policy == Policy::Shared).then(Arc::default),
            window: None,
        }
    }

    /// Gives it a window, before it has servers.
    #[must_use]
    pub fn with_window(mut self, window: Arc<FileWindow>) -> Self {
        self.window = Some(window);
        self
    }

    /// Its window.
    pub(super) fn window(&self) -> Option<&Arc<FileWindow>> {
        self.window.as_ref()
    }

    /// The descriptors that its workers share.
    pub(super) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// What its workers know, where only this guest changes the files.
    pub(super) fn known(&self) -> Option<&Arc<Known>> {
        self.known.as_ref()
    }

    /// The locks of its guest, where others have some too.
    pub(super) fn locks(&self) -> Option<&Arc<Locks>> {
        self.locks.as_ref()
    }

    /// The forgets that its workers collect.
    pub(super) fn forgets(&self) -> &Arc<Forgets> {
        &self.forgets
    }
}

impl Device for Fs {
    fn kind(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Forgets; requests, where one of 1 MiB takes 260 descriptors.
        &[256, 1024]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn shared_memory(&self) -> Option<SharedMemory> {
        let (start, bytes) = self.window.as_ref()?.place();
        Some(SharedMemory {
            id: WINDOW,
            start: start.0,
            bytes,
        })
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        Ok(())
    }

    fn retire(&self) {
        if let Some(locks) = &self.locks {
            locks.waits().give_up();
        }
    }

    fn reset(&mut self) {
        if let Some(locks) = &self.locks {
            locks.reset();
        }
        if let Some(window) = &self.window {
            window.clear();
        }
        self.files.clear();
        self.forgets.take();
    }
}
