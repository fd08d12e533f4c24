//! A container: its cgroup, its namespaces, its processes.

pub(crate) mod capabilities;
pub(crate) mod cgroup;
pub(crate) mod child;
pub(crate) mod devices;
pub(crate) mod identity;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod oom;
pub(crate) mod paths;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod rlimits;
pub(crate) mod rootfs;
pub(crate) mod shares;
pub(crate) mod slots;
pub(crate) mod spawn;
pub(crate) mod stats;
pub(crate) mod stdio;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::cgroup::Cgroup;
use self::namespaces::Namespaces;
use self::oom::OomCounter;
use self::process::Process;
use crate::error::{Failure, Result};

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: String,
    /// As the request named it; nothing in the guest.
    pub(crate) bundle: String,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Its namespaces.
    pub(crate) namespaces: Namespaces,
    /// Its root directory.
    pub(crate) root: OwnedFd,
    /// Its first process.
    pub(crate) init: Arc<Process>,
    /// Stopped by Pause.
    pub(crate) paused: AtomicBool,
    /// Processes that ran out of memory.
    pub(crate) oom: OomCounter,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Container {
    /// A container whose first process is prepared.
    pub(crate) fn new(
        bundle: &str,
        cgroup: Cgroup,
        namespaces: Namespaces,
        root: OwnedFd,
        init: Arc<Process>,
    ) -> Self {
        Self {
            id: init.container.clone(),
            bundle: bundle.into(),
            oom: OomCounter::default(),
            cgroup,
            namespaces,
            root,
            init,
            paused: AtomicBool::new(false),
            execs: Mutex::default(),
        }
    }

    /// Its added processes; never held over an await.
    pub(crate) fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process by its id; the empty one is the first's.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        self.execs().get(exec).cloned().ok_or_else(|| {
            Failure::not_found(format!(
                "process {exec:?} of container {:?} does not exist",
                self.id
            ))
        })
    }
}

/// Longest id: it becomes a file name, with a prefix.
const LONGEST_ID: usize = 200;

/// Checks an id that becomes the name of files.
pub(crate) fn check_id(field: &str, id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-+".contains(&byte);
    if id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(plain) || id.starts_with('.') {
        return Err(Failure::argument(format!(
            "{field} {id:?} is not 1 to {LONGEST_ID} letters, digits or any of _.-+"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_file_names_are_refused() {
        for id in ["", ".", "..", "a/b", "a b", "a\0", "ä", &"a".repeat(201)] {
            assert!(check_id("id", id).is_err(), "{id:?}");
        }
        for id in ["a", "A_b.c-1+2", &"a".repeat(200)] {
            assert!(check_id("id", id).is_ok(), "{id:?}");
        }
    }
}
