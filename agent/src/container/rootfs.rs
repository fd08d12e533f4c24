//! The container's root file system: a file system from a device slot or a
//! share, or several read-only ones below an `overlay` that writes to guest
//! memory or to a file system of its own.
//!
//! The convention is in `protocol::agent`. Layers that are directories of the
//! guest (`bind`) or any other file system are taken too.

use std::ffi::CString;

use protocol::agent::UPPER_TARGET;
use protocol::agent::api::Mount;

use super::mounts::{FileSystem, Source};
use super::paths::c_string;
use super::slots::SlotDevice;
use crate::error::{Failure, Result};

/// How the root is put together.
#[derive(Debug)]
pub(crate) struct RootPlan {
    /// Layers, uppermost first, and where each is mounted.
    pub(crate) layers: Vec<Layer>,
    /// Where writes go, if not to the (only) layer.
    pub(crate) overlay: Option<Upper>,
}

/// Where an overlay keeps what is written.
#[derive(Debug)]
pub(crate) enum Upper {
    /// In guest memory.
    Memory,
    /// In the directories `upper` and `work` of a file system.
    FileSystem(Layer),
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// For messages.
    pub(crate) label: Vec<u8>,
    /// What it shows.
    pub(crate) source: Source,
    /// A directory for it in the child's own tmpfs on `/run`.
    pub(crate) directory: CString,
}

/// Overlayfs takes 500 lower layers (`OVL_MAX_STACK`).
const MOST_LAYERS: usize = 500;

/// Where the file system below an overlay's writes is mounted.
const UPPER_DIRECTORY: &str = "/run/writable";

impl RootPlan {
    /// Checks the request's `rootfs` and finds its devices.
    pub(crate) fn new(rootfs: &[Mount]) -> Result<Self> {
        let (overlaid, layers) = match rootfs.split_last() {
            None => return Err(Failure::argument("rootfs is empty")),
            Some((last, layers)) if last.type_ == "overlay" => (true, layers),
            Some(_) => (false, rootfs),
        };
        let (upper, layers) = match layers.split_last() {
            Some((last, layers)) if overlaid && last.target == UPPER_TARGET => (Some(last), layers),
            _ => (None, layers),
        };
        if let Some(misplaced) = layers.iter().position(|mount| mount.type_ == "overlay") {
            return Err(Failure::argument(format!(
                "rootfs[{misplaced}] is an overlay, but not last"
            )));
        }
        if let Some(misplaced) = layers.iter().position(|mount| !mount.target.is_empty()) {
            return Err(Failure::argument(format!(
                "rootfs[{misplaced}] has a target; only the last before an overlay may"
            )));
        }
        if layers.is_empty() {
            return Err(Failure::argument("rootfs has no layer below its overlay"));
        }
        if !overlaid && layers.len() != 1 {
            return Err(Failure::argument(format!(
                "rootfs has {} layers and no overlay to join them",
                layers.len()
            )));
        }
        if layers.len() > MOST_LAYERS {
            return Err(Failure::argument(format!(
                "rootfs has {} layers, more than {MOST_LAYERS}",
                layers.len()
            )));
        }
        let layer = |(index, mount)| {
            let field = format!("rootfs[{index}]");
            Layer::new(&field, mount, &format!("/run/layer{index}"))
        };
        let overlay = match (overlaid, upper) {
            (false, _) => None,
            (true, None) => Some(Upper::Memory),
            (true, Some(mount)) => {
                let layer = Layer::new("rootfs' upper", mount, UPPER_DIRECTORY)?;
                Some(Upper::FileSystem(layer))
            }
        };
        Ok(Self {
            layers: layers
                .iter()
                .enumerate()
                .map(layer)
                .collect::<Result<_>>()?,
            overlay,
        })
    }
}

impl Layer {
    fn new(field: &str, mount: &Mount, directory: &str) -> Result<Self> {
        let source = match mount.type_.as_str() {
            "" => return Err(Failure::argument(format!("{field} has no type"))),
            "bind" => Source::Bind {
                path: c_string(field, &*mount.source)?,
                recursive: true,
            },
            kind => {
                let writable = mount.options.iter().any(|option| option == "rw");
                let mut options = Vec::new();
                if !writable {
                    options.push((c"ro".into(), None));
                }
                let source = match SlotDevice::named(field, &mount.source)? {
                    Some(device) => {
                        options.extend(device.options());
                        device.path
                    }
                    None => mount.source.clone(),
                };
                Source::New(FileSystem {
                    kind: c_string(field, kind)?,
                    source: Some(c_string(field, source)?),
                    options,
                    copy_up: false,
                })
            }
        };
        Ok(Self {
            label: mount.source.clone().into_bytes(),
            source,
            directory: c_string(field, directory)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(kinds: &[&str]) -> Vec<Mount> {
        kinds
            .iter()
            .map(|kind| Mount {
                type_: (*kind).into(),
                source: "/layer".into(),
                ..Mount::default()
            })
            .collect()
    }

    #[test]
    fn rootfs_takes_layers_and_a_last_overlay() {
        let plan = RootPlan::new(&mounts(&["bind", "bind", "overlay"])).unwrap();
        assert!(matches!(plan.overlay, Some(Upper::Memory)));
        assert_eq!(plan.layers.len(), 2);
        let plan = RootPlan::new(&mounts(&["bind"])).unwrap();
        assert!(plan.overlay.is_none());
    }

    #[test]
    fn upper_is_the_last_before_the_overlay_or_refused() {
        let mut rootfs = mounts(&["bind", "bind", "overlay"]);
        rootfs[1].target = UPPER_TARGET.into();
        let plan = RootPlan::new(&rootfs).unwrap();
        assert_eq!(plan.layers.len(), 1);
        assert!(matches!(plan.overlay, Some(Upper::FileSystem(_))));
        rootfs.swap(0, 1);
        assert!(RootPlan::new(&rootfs).is_err());
        assert!(RootPlan::new(&rootfs[..1]).is_err());
    }

    #[test]
    fn file_system_is_read_only_unless_it_says_otherwise() {
        let mut rootfs = mounts(&["ext4"]);
        let options = |rootfs: &[Mount]| match &RootPlan::new(rootfs).unwrap().layers[0].source {
            Source::New(system) => system.options.len(),
            Source::Bind { .. } | Source::Remount { .. } => panic!("no file system"),
        };
        assert_eq!(options(&rootfs), 1);
        rootfs[0].options = vec!["rw".into()];
        assert_eq!(options(&rootfs), 0);
    }

    #[test]
    fn rootfs_refuses_what_makes_no_root() {
        for kinds in [
            &[][..],
            &["overlay"],
            &["bind", "bind"],
            &["overlay", "bind"],
            &["bind", "overlay", "overlay"],
            &[""],
        ] {
            assert!(RootPlan::new(&mounts(kinds)).is_err(), "{kinds:?}");
        }
    }
}
