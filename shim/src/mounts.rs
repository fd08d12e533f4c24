//! What a container sees of the host: its root and its bind mounts become
//! shares, everything else is the guest's own.
//!
//! A share is the mount that the engine has prepared, held by a descriptor
//! from here on: its path is looked up once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use protocol::agent::share_path;
use protocol::broker::Policy;
use protocol::oci::{Mount, Spec};
use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::broker::SharedTree;

/// A mount that cannot be had in a guest.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source cannot be opened.
    #[error("share {} as {destination}", path.display())]
    Open {
        /// The source.
        path: PathBuf,
        /// Where the container wants it.
        destination: String,
        /// The system's error.
        source: io::Error,
    },
    /// The source is of no kind that can be shared.
    #[error(
        "mount {destination}: {} is a {kind}, which belongs to the host's kernel; \
         nerite shares directories and regular files", path.display()
    )]
    Kind {
        /// The source.
        path: PathBuf,
        /// Where the container wants it.
        destination: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file system of the host.
    #[error(
        "mount {destination}: a guest cannot mount {kind:?}; \
         mount it on the host and give the container a bind mount"
    )]
    FileSystem {
        /// Where the container wants it.
        destination: String,
        /// Its type.
        kind: String,
    },
    /// A bind mount from nowhere.
    #[error("mount {destination} is a bind mount without a source")]
    NoSource {
        /// Where the container wants it.
        destination: String,
    },
}

/// File systems that a guest has of its own.
const OWN: [&str; 8] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
];

/// A container's shares, and its configuration with the guest's names of them.
#[derive(Debug)]
pub struct Plan {
    /// What the guest's agent is told.
    pub spec: Spec,
    /// What the broker is told; the first is the root.
    pub trees: Vec<SharedTree>,
}

/// Opens the root and the bind mounts of `spec`.
///
/// # Errors
///
/// [`MountError`] names the mount.
pub fn plan(mut spec: Spec, root: &Path) -> Result<Plan, MountError> {
    let tree = open(root, "/", true)?;
    if kind_of(&tree, root, "/")? != FileType::Directory {
        return Err(MountError::Open {
            path: root.into(),
            destination: "/".into(),
            source: io::ErrorKind::NotADirectory.into(),
        });
    }
    let mut trees = vec![SharedTree {
        policy: Policy::Exclusive,
        tree,
        // Mount points may have to be made in it; the agent closes it then.
        read_only: false,
    }];
    let mut shared = 0;
    for mount in &mut spec.mounts {
        if let Some(tree) = share(mount)? {
            mount.source = Some(share_path(Policy::Shared, shared));
            mount.kind = Some("bind".into());
            shared += 1;
            trees.push(tree);
        }
    }
    Ok(Plan { spec, trees })
}

/// The share behind a mount, `None` if it is the guest's own.
fn share(mount: &Mount) -> Result<Option<SharedTree>, MountError> {
    let has = |word: &str| mount.options.iter().any(|option| option == word);
    let kind = mount.kind.as_deref().unwrap_or_default();
    let recursive = has("rbind");
    if !(recursive || has("bind") || matches!(kind, "bind" | "")) {
        if OWN.contains(&kind) {
            return Ok(None);
        }
        return Err(MountError::FileSystem {
            destination: mount.destination.clone(),
            kind: kind.into(),
        });
    }
    let Some(source) = mount.source.as_deref().filter(|source| !source.is_empty()) else {
        return Err(MountError::NoSource {
            destination: mount.destination.clone(),
        });
    };
    let path = Path::new(source);
    let tree = open(path, &mount.destination, recursive)?;
    let kind = match kind_of(&tree, path, &mount.destination)? {
        FileType::Directory | FileType::RegularFile => None,
        FileType::BlockDevice => Some("block device"),
        FileType::CharacterDevice => Some("character device"),
        FileType::Fifo => Some("named pipe"),
        FileType::Socket => Some("socket"),
        FileType::Symlink | FileType::Unknown => Some("file of unknown kind"),
    };
    if let Some(kind) = kind {
        return Err(MountError::Kind {
            path: path.into(),
            destination: mount.destination.clone(),
            kind,
        });
    }
    // The last word counts, as with mount(8).
    let last = mount
        .options
        .iter()
        .rfind(|option| matches!(option.as_str(), "ro" | "rw"));
    Ok(Some(SharedTree {
        policy: Policy::Shared,
        tree,
        read_only: last.is_some_and(|option| option == "ro"),
    }))
}

/// A clone of the mount at `path`, attached nowhere.
fn open(path: &Path, destination: &str, recursive: bool) -> Result<OwnedFd, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|errno| MountError::Open {
        path: path.into(),
        destination: destination.into(),
        source: errno.into(),
    })
}

fn kind_of(tree: &OwnedFd, path: &Path, destination: &str) -> Result<FileType, MountError> {
    fstat(tree.as_fd())
        .map(|status| FileType::from_raw_mode(status.st_mode))
        .map_err(|errno| MountError::Open {
            path: path.into(),
            destination: destination.into(),
            source: errno.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            destination: "/d".into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: options.iter().map(|&option| option.into()).collect(),
        }
    }

    #[test]
    fn file_systems_of_the_host_are_refused_by_name() {
        assert!(share(&mount("tmpfs", "tmpfs", &[])).unwrap().is_none());
        let error = share(&mount("nfs", "server:/x", &[])).unwrap_err();
        assert!(error.to_string().contains("\"nfs\""), "{error}");
    }

    #[test]
    fn missing_source_is_named() {
        let error = share(&mount("bind", "/nowhere/at/all", &[])).unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/at/all as /d"),
            "{error}"
        );
        assert!(share(&mount("bind", "", &[])).is_err());
    }
}
