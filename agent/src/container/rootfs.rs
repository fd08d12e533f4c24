//! The container's root file system: read-only layers from device slots, and
//! a writable layer in guest memory when the request has an `overlay`.
//!
//! The convention is in `protocol::agent`. Layers that are directories of the
//! guest (`bind`) or any other file system are taken too.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use protocol::agent::api::Mount;

use super::mounts::{FileSystem, Source};
use super::paths::c_string;
use crate::error::{Attempt, Failure, Result};

/// How the root is put together.
#[derive(Debug)]
pub(crate) struct RootPlan {
    /// Read-only layers, uppermost first, and where each is mounted.
    pub(crate) layers: Vec<Layer>,
    /// Writes go to guest memory, not to the (only) layer.
    pub(crate) overlay: bool,
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

impl RootPlan {
    /// Checks the request's `rootfs` and finds its devices.
    pub(crate) fn new(rootfs: &[Mount]) -> Result<Self> {
        let (overlay, layers) = match rootfs.split_last() {
            None => return Err(Failure::argument("rootfs is empty")),
            Some((last, layers)) if last.type_ == "overlay" => (true, layers),
            Some(_) => (false, rootfs),
        };
        if let Some(misplaced) = layers.iter().position(|mount| mount.type_ == "overlay") {
            return Err(Failure::argument(format!(
                "rootfs[{misplaced}] is an overlay, but not last"
            )));
        }
        if layers.is_empty() {
            return Err(Failure::argument("rootfs has no layer below its overlay"));
        }
        if !overlay && layers.len() != 1 {
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
        let layers = layers
            .iter()
            .enumerate()
            .map(|(index, mount)| Layer::new(index, mount))
            .collect::<Result<_>>()?;
        Ok(Self { layers, overlay })
    }
}

impl Layer {
    fn new(index: usize, mount: &Mount) -> Result<Self> {
        let field = format!("rootfs[{index}]");
        let source = match mount.type_.as_str() {
            "" => return Err(Failure::argument(format!("{field} has no type"))),
            "bind" => Source::Bind {
                path: c_string(&field, &*mount.source)?,
                recursive: true,
            },
            kind => {
                let mut options = vec![(c"ro".into(), None)];
                let source = match mount.source.strip_prefix("slot:") {
                    Some(slot) => {
                        // A pmem device: the host's page cache is the only copy.
                        options.push((c"dax".into(), Some(c"always".into())));
                        slot_device(&field, slot)?
                    }
                    None => mount.source.clone(),
                };
                Source::New(FileSystem {
                    kind: c_string(&field, kind)?,
                    source: Some(c_string(&field, source)?),
                    options,
                })
            }
        };
        Ok(Self {
            label: mount.source.clone().into_bytes(),
            source,
            directory: c_string(&field, format!("/run/layer{index}"))?,
        })
    }
}

/// The block device behind a virtio-mmio slot, by the device tree in sysfs.
/// Never by name order: the kernel numbers pmem devices as it finds them.
fn slot_device(field: &str, slot: &str) -> Result<String> {
    let number: u8 = slot
        .parse()
        .map_err(|_| Failure::argument(format!("{field}.source \"slot:{slot}\" has no number")))?;
    let platform = format!("/sys/bus/platform/devices/virtio-mmio.{number}");
    let absent = || Failure::not_found(format!("{field}.source: no block device in slot {number}"));
    let device = child_named(Path::new(&platform), "virtio").ok_or_else(absent)?;
    let block = if let Some(bus) = child_named(&device, "ndbus") {
        let region = child_named(&bus, "region").ok_or_else(absent)?;
        let namespace = child_named(&region, "namespace").ok_or_else(absent)?;
        namespace.join("block")
    } else {
        device.join("block")
    };
    let mut entries =
        fs::read_dir(&block).attempt(|| format!("look for the block device of slot {number}"))?;
    let name = entries
        .next()
        .ok_or_else(absent)?
        .attempt(|| format!("read {}", block.display()))?;
    Ok(format!("/dev/{}", name.file_name().to_string_lossy()))
}

/// The first directory in `parent` whose name is `prefix` and a number.
fn child_named(parent: &Path, prefix: &str) -> Option<std::path::PathBuf> {
    fs::read_dir(parent)
        .ok()?
        .filter_map(std::result::Result::ok)
        .find_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?;
            let numbered = number
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.');
            (numbered && !number.is_empty()).then(|| entry.path())
        })
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
        assert!(plan.overlay);
        assert_eq!(plan.layers.len(), 2);
        assert!(!RootPlan::new(&mounts(&["bind"])).unwrap().overlay);
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

    #[test]
    fn slot_without_number_is_refused_and_without_device_not_found() {
        assert!(slot_device("rootfs[0]", "x").is_err());
        assert!(slot_device("rootfs[0]", "250").is_err());
    }
}
