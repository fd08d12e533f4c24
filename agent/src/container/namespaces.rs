//! A container's namespaces: which are new, which are joined, and the
//! descriptors by which later processes join them.
//!
//! The descriptors are taken before the container's program runs and held as
//! long as the container exists: what an exec joins is never read from what
//! the workload may have changed since.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::oci;

use crate::error::{Attempt, Failure, Result};

/// A kind of namespace that the agent handles.
#[derive(Debug, Eq, PartialEq)]
struct Kind {
    /// As the configuration names it.
    name: &'static str,
    /// Its `CLONE_` flag.
    flag: c_int,
    /// Its file in `/proc/PID/ns`.
    file: &'static str,
}

/// In the order in which a process joins them: the mount namespace last, as
/// it takes the guest's files out of sight.
const KINDS: [Kind; 6] = [
    Kind {
        name: "ipc",
        flag: libc::CLONE_NEWIPC,
        file: "ipc",
    },
    Kind {
        name: "uts",
        flag: libc::CLONE_NEWUTS,
        file: "uts",
    },
    Kind {
        name: "network",
        flag: libc::CLONE_NEWNET,
        file: "net",
    },
    Kind {
        name: "cgroup",
        flag: libc::CLONE_NEWCGROUP,
        file: "cgroup",
    },
    Kind {
        name: "pid",
        flag: libc::CLONE_NEWPID,
        file: "pid",
    },
    Kind {
        name: "mount",
        flag: libc::CLONE_NEWNS,
        file: "mnt",
    },
];

/// What a new container asks for.
#[derive(Debug)]
pub(crate) struct NamespacePlan {
    /// `CLONE_` flags of the new ones.
    pub(crate) new: c_int,
    /// The joined ones, in order.
    pub(crate) join: Vec<(c_int, OwnedFd)>,
    /// The joined pid namespace, which a process enters by being born in it.
    pub(crate) pid: Option<OwnedFd>,
}

impl NamespacePlan {
    /// Checks the configuration and opens what is to be joined.
    pub(crate) fn new(namespaces: &[oci::Namespace]) -> Result<Self> {
        let mut plan = Self {
            new: 0,
            join: Vec::new(),
            pid: None,
        };
        for namespace in namespaces {
            if !KINDS.iter().any(|kind| kind.name == namespace.kind) {
                return Err(Failure::argument(format!(
                    "linux.namespaces type {:?} is not supported",
                    namespace.kind
                )));
            }
        }
        for kind in &KINDS {
            let mut found = namespaces
                .iter()
                .filter(|namespace| namespace.kind == kind.name);
            let Some(namespace) = found.next() else {
                continue;
            };
            if found.next().is_some() {
                return Err(Failure::argument(format!(
                    "linux.namespaces has {} twice",
                    kind.name
                )));
            }
            match namespace.path.as_deref().filter(|path| !path.is_empty()) {
                None => plan.new |= kind.flag,
                Some(path) => plan.open(kind, path)?,
            }
        }
        if plan.new & libc::CLONE_NEWNS == 0 {
            return Err(Failure::argument(
                "linux.namespaces has no new mount namespace",
            ));
        }
        Ok(plan)
    }

    fn open(&mut self, kind: &Kind, path: &str) -> Result<()> {
        let file = File::open(path).attempt(|| format!("open {} namespace {path}", kind.name))?;
        match kind.flag {
            libc::CLONE_NEWNS => {}
            libc::CLONE_NEWPID => self.pid = Some(file.into()),
            flag => self.join.push((flag, file.into())),
        }
        Ok(())
    }

    /// Kinds that are the container's own or another's, but not the guest's.
    pub(crate) fn kinds(&self) -> c_int {
        let pid = if self.pid.is_some() {
            libc::CLONE_NEWPID
        } else {
            0
        };
        self.join
            .iter()
            .fold(self.new | pid, |kinds, (kind, _)| kinds | kind)
    }
}

/// The namespaces of an existing container.
#[derive(Debug)]
pub(crate) struct Namespaces {
    joinable: Vec<(c_int, OwnedFd)>,
    pid: Option<OwnedFd>,
}

impl Namespaces {
    /// Takes the given kinds (`CLONE_` flags) of `process`.
    pub(crate) fn of(process: u32, kinds: c_int) -> Result<Self> {
        let mut namespaces = Self {
            joinable: Vec::new(),
            pid: None,
        };
        for kind in KINDS.iter().filter(|kind| kinds & kind.flag != 0) {
            let path = format!("/proc/{process}/ns/{}", kind.file);
            let file: OwnedFd = File::open(&path).attempt(|| format!("open {path}"))?.into();
            if kind.flag == libc::CLONE_NEWPID {
                namespaces.pid = Some(file);
            } else {
                namespaces.joinable.push((kind.flag, file));
            }
        }
        Ok(namespaces)
    }

    /// Descriptors for one more process that joins.
    pub(crate) fn join(&self) -> Result<Vec<(c_int, OwnedFd)>> {
        self.joinable
            .iter()
            .map(|(flag, fd)| Ok((*flag, fd.try_clone().attempt(|| "join namespaces".into())?)))
            .collect()
    }

    /// The pid namespace that processes are to be born in.
    pub(crate) fn pid(&self) -> Option<BorrowedFd<'_>> {
        self.pid.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(namespaces: &[(&str, Option<&str>)]) -> Result<NamespacePlan> {
        let namespaces: Vec<_> = namespaces
            .iter()
            .map(|&(kind, path)| oci::Namespace {
                kind: kind.into(),
                path: path.map(Into::into),
            })
            .collect();
        NamespacePlan::new(&namespaces)
    }

    #[test]
    fn namespaces_without_path_are_new_and_others_joined() {
        let plan = plan(&[
            ("mount", None),
            ("pid", Some("/proc/self/ns/pid")),
            ("network", Some("/proc/self/ns/net")),
            ("uts", Some("")),
        ])
        .unwrap();
        assert_eq!(plan.new, libc::CLONE_NEWNS | libc::CLONE_NEWUTS);
        assert!(plan.pid.is_some());
        assert_eq!(plan.join.len(), 1);
        assert_eq!(
            plan.kinds(),
            plan.new | libc::CLONE_NEWPID | libc::CLONE_NEWNET
        );
    }

    #[test]
    fn namespaces_that_cannot_be_given_are_refused() {
        for namespaces in [
            &[("pid", None)][..],
            &[("mount", Some("/proc/self/ns/mnt"))],
            &[("mount", None), ("user", None)],
            &[("mount", None), ("time", None)],
            &[("mount", None), ("ipc", None), ("ipc", None)],
            &[("mount", None), ("network", Some("/nowhere"))],
        ] {
            assert!(plan(namespaces).is_err(), "{namespaces:?}");
        }
    }
}
