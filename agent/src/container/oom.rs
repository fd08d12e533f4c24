//! Tells when the kernel has killed something in a container for want of
//! memory.
//!
//! The counter `oom_kill` of `memory.events` is watched, and looked at once
//! more before an exit is reported, so that the cause comes before the effect.
//! The kernel may hold notifications back by 10 ms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::Container;
use super::cgroup::{Watch, field};

/// How many kills have been told.
#[derive(Debug, Default)]
pub(crate) struct OomCounter(AtomicU64);

impl Container {
    /// Whether something has been killed since the last time this was asked.
    pub(crate) fn new_oom_kills(&self) -> bool {
        self.cgroup
            .read("memory.events")
            .is_some_and(|text| self.count_oom_kills(&text))
    }

    fn count_oom_kills(&self, text: &str) -> bool {
        let kills = field(text, "oom_kill")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        self.oom.0.fetch_max(kills, Ordering::Relaxed) < kills
    }
}

/// Calls `told` when something is killed, until the container is gone. A
/// kernel without the memory controller has nothing to tell.
pub(crate) async fn watch(container: Weak<Container>, told: impl Fn(&Container)) {
    let file = container
        .upgrade()
        .and_then(|this| this.cgroup.open("memory.events").ok());
    let Some(mut events) = file.and_then(|file| Watch::new(file).ok()) else {
        return;
    };
    // Reading fails when the cgroup has been removed.
    while let Ok(text) = events.next().await {
        let Some(container): Option<Arc<Container>> = container.upgrade() else {
            return;
        };
        if container.count_oom_kills(&text) {
            told(&container);
        }
    }
}
