//! Directories of the host: each virtio-fs device is mounted once, below
//! [`SHARES`], when the first container needs it. Containers get bind mounts
//! of what is in there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use protocol::agent::SHARES;
use protocol::agent::api::Mount;
use protocol::broker::Policy;
use protocol::oci;
use rustix::fs::{Mode, OFlags, fstat, major, minor, open, stat};
use rustix::mount::{MountFlags, mount};

use crate::error::{Attempt, Failure, Result};

/// The devices that are mounted, by tag.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    mounted: Mutex<BTreeSet<String>>,
    /// Where each file system of the shared device is, by its number as
    /// `/proc/PID/fdinfo` has it.
    systems: Mutex<BTreeMap<u32, String>>,
}

impl Shares {
    /// Makes every share that a container wants reachable.
    pub(crate) fn prepare(&self, rootfs: &[Mount], spec: &oci::Spec) -> Result<()> {
        let root = rootfs.iter().map(|mount| mount.source.as_str());
        let mounts = spec
            .mounts
            .iter()
            .filter_map(|mount| mount.source.as_deref());
        for source in root.chain(mounts) {
            if let Some(share) = source
                .strip_prefix(SHARES)
                .and_then(|rest| rest.strip_prefix('/'))
            {
                self.reach(source, share)?;
            }
        }
        Ok(())
    }

    fn reach(&self, source: &str, share: &str) -> Result<()> {
        let (tag, _) = share
            .split_once('/')
            .ok_or_else(|| Failure::argument(format!("source {source:?} names no share")))?;
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !mounted.contains(tag) {
            let point = format!("{SHARES}/{tag}");
            // Flags that a container may need otherwise are set on its own
            // mount.
            mount(tag, &*point, "virtiofs", MountFlags::empty(), None)
                .attempt(|| format!("mount the shared directories {tag:?}"))?;
            read_ahead(&point)?;
            mounted.insert(tag.into());
        }
        drop(mounted);
        // A directory is a file system of its own, mounted when it is first
        // entered: here and now, so that all containers have the same one.
        let mut system = format!("{SHARES}/{tag}");
        if Path::new(source).is_dir() {
            source.clone_into(&mut system);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let entered = || open(&*system, flags, Mode::empty()).and_then(fstat);
        let status = entered().attempt(|| format!("enter {system}"))?;
        if tag == Policy::Shared.tag() {
            // The kernel's own form of a device number.
            let number = major(status.st_dev) << 20 | minor(status.st_dev);
            let mut systems = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
            systems.insert(number, system);
        }
        Ok(())
    }

    /// Where each file system of the shared device is, by its number.
    pub(crate) fn systems(&self) -> BTreeMap<u32, String> {
        let systems = self.systems.lock();
        systems.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// KiB that the kernel reads ahead: a request each, which costs as much as it
/// takes to copy this much. Linux would take 128.
const READ_AHEAD: &str = "1024";

/// Lets the kernel read ahead in long requests in the file system at `point`,
/// and in all that are mounted below it.
fn read_ahead(point: &str) -> Result<()> {
    let device = stat(point).attempt(|| format!("look at {point}"))?.st_dev;
    let setting = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        major(device),
        minor(device)
    );
    std::fs::write(&setting, READ_AHEAD).attempt(|| format!("write {setting}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_without_a_share_is_refused() {
        let mount = Mount {
            source: "/shares/exclusive".into(),
            ..Mount::default()
        };
        let error = Shares::default()
            .prepare(&[mount], &oci::Spec::default())
            .unwrap_err();
        assert!(error.to_string().contains("names no share"), "{error}");
    }

    #[test]
    fn other_sources_are_left_alone() {
        let mount = Mount {
            source: "/sharesandmore/x".into(),
            ..Mount::default()
        };
        Shares::default()
            .prepare(&[mount], &oci::Spec::default())
            .unwrap();
    }
}
