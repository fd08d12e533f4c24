//! The root file system that an engine hands over as a list of mounts.
//!
//! The keeper mounts it in a mount namespace of its own, so that nothing stays
//! mounted when it dies, and takes it away again when it holds what it needs.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use protocol::agent::api::Mount;

/// A root that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootMountError {
    /// The directory for it.
    #[error("make the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A mount of it.
    #[error("mount the root file system ({kind}, {}) on {}", options.join(","), path.display())]
    Mount {
        /// Its type.
        kind: String,
        /// Its options.
        options: Vec<String>,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A mounted root; dropping it unmounts.
#[derive(Debug)]
pub struct RootMount {
    path: PathBuf,
    mounted: usize,
}

impl RootMount {
    /// Mounts `mounts` on `path`, the first at the bottom. None: the bundle has
    /// its root already.
    ///
    /// # Errors
    ///
    /// [`RootMountError`]; nothing stays mounted then.
    pub fn new(mounts: &[Mount], path: &Path) -> Result<Self, RootMountError> {
        let mut root = Self {
            path: path.into(),
            mounted: 0,
        };
        if mounts.is_empty() {
            return Ok(root);
        }
        std::fs::create_dir_all(path).map_err(|source| RootMountError::Directory {
            path: path.into(),
            source,
        })?;
        for wanted in mounts {
            one(wanted, path).map_err(|source| RootMountError::Mount {
                kind: wanted.type_.clone(),
                options: wanted.options.clone(),
                path: path.into(),
                source: source.into(),
            })?;
            root.mounted += 1;
        }
        Ok(root)
    }
}

impl Drop for RootMount {
    fn drop(&mut self) {
        for _ in 0..self.mounted {
            // What is still in use goes with its last user.
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}

fn one(wanted: &Mount, path: &Path) -> nix::Result<()> {
    let options = Options::parse(&wanted.options);
    let source = Some(wanted.source.as_str());
    if !options.flags.contains(MsFlags::MS_BIND) {
        let data = options.data.join(",");
        return mount(
            source,
            path,
            Some(wanted.type_.as_str()),
            options.flags,
            Some(data.as_str()),
        );
    }
    let none = None::<&str>;
    let bind = options.flags & (MsFlags::MS_BIND | MsFlags::MS_REC);
    mount(source, path, none, bind, none)?;
    let rest = options.flags - bind;
    if !rest.is_empty() {
        // Flags of a bind mount count only when it is mounted again.
        let again = mount(none, path, none, bind | rest | MsFlags::MS_REMOUNT, none);
        if let Err(error) = again {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            return Err(error);
        }
    }
    Ok(())
}

/// What mount(8) writes behind `-o`, as the kernel wants it.
struct Options<'a> {
    flags: MsFlags,
    data: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(options: &'a [String]) -> Self {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            data: Vec::new(),
        };
        for option in options {
            let flag = match option.as_str() {
                "bind" => MsFlags::MS_BIND,
                "rbind" => MsFlags::MS_BIND | MsFlags::MS_REC,
                "ro" => MsFlags::MS_RDONLY,
                "nosuid" => MsFlags::MS_NOSUID,
                "nodev" => MsFlags::MS_NODEV,
                "noexec" => MsFlags::MS_NOEXEC,
                "noatime" => MsFlags::MS_NOATIME,
                "nodiratime" => MsFlags::MS_NODIRATIME,
                "relatime" => MsFlags::MS_RELATIME,
                "sync" => MsFlags::MS_SYNCHRONOUS,
                "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "async" => MsFlags::empty(),
                other => {
                    parsed.data.push(other);
                    continue;
                }
            };
            parsed.flags |= flag;
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let options = ["rbind", "ro", "lowerdir=/a:/b", "rw", "index=off"].map(String::from);
        let parsed = Options::parse(&options);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY;
        assert_eq!(parsed.flags, flags);
        assert_eq!(parsed.data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn bundle_with_a_root_needs_no_directory() {
        RootMount::new(&[], Path::new("/nowhere/rootfs")).unwrap();
        assert!(!Path::new("/nowhere").exists());
    }
}
