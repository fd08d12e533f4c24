//! What a host has that nerite might leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{TEARDOWN, eventually};

/// Processes, mounts, cgroups and temporary files at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostState {
    /// `nerite`, its helpers and shims, by id and name.
    pub processes: BTreeSet<String>,
    /// Mounts of this namespace.
    pub mounts: BTreeSet<String>,
    /// Cgroups.
    pub cgroups: BTreeSet<String>,
    /// Descriptors of virtual machines and processors, whoever has them.
    pub kvm_descriptors: usize,
    /// Entries of the directories for temporary files and run-time state.
    pub files: BTreeSet<String>,
}

impl HostState {
    /// Looks.
    ///
    /// # Panics
    ///
    /// When `/proc` or `/sys/fs/cgroup` cannot be read.
    #[must_use]
    pub fn now() -> Self {
        let mut state = Self {
            processes: BTreeSet::new(),
            mounts: read("/proc/self/mountinfo")
                .lines()
                .map(String::from)
                .collect(),
            cgroups: BTreeSet::new(),
            kvm_descriptors: 0,
            files: BTreeSet::new(),
        };
        for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            // A process may end while it is looked at.
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if name.starts_with("nerite") || name.starts_with("containerd-shim") {
                state.processes.insert(format!("{id} {}", name.trim()));
            }
            for descriptor in fs::read_dir(entry.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let target = fs::read_link(descriptor.path()).unwrap_or_default();
                if target.to_string_lossy().contains("kvm") {
                    state.kvm_descriptors += 1;
                }
            }
        }
        directories(Path::new("/sys/fs/cgroup"), &mut state.cgroups);
        for directory in ["/tmp", "/run", "/dev/shm"] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                state.files.insert(entry.path().display().to_string());
            }
        }
        state
    }

    /// Looks when no machine of an earlier test is being torn down any more.
    ///
    /// # Panics
    ///
    /// When one stays.
    #[must_use]
    pub fn quiet() -> Self {
        assert!(
            eventually(TEARDOWN, || Self::now().processes.is_empty()),
            "processes of an earlier test: {:?}",
            Self::now().processes
        );
        Self::now()
    }

    /// Asserts that the host comes back to this state.
    ///
    /// # Panics
    ///
    /// When something is left.
    pub fn assert_restored(&self) {
        if !eventually(TEARDOWN, || Self::now() == *self) {
            assert_eq!(Self::now(), *self, "something is left behind");
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn directories(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(entry.path().display().to_string());
            directories(&entry.path(), found);
        }
    }
}
