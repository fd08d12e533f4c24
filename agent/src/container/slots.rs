//! Devices by the number of their slot, in the device tree of sysfs. Never by
//! name order: the kernel numbers devices as it finds them.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Attempt, Failure, Result};

/// The block device behind a virtio-mmio slot.
#[derive(Debug)]
pub(crate) struct SlotDevice {
    /// Its node.
    pub(crate) path: String,
    /// It is memory: the host's page cache is the only copy.
    mapped: bool,
}

impl SlotDevice {
    /// The device that a source `slot:N` names; `None` for any other source.
    pub(crate) fn named(field: &str, source: &str) -> Result<Option<Self>> {
        let Some(slot) = source.strip_prefix("slot:") else {
            return Ok(None);
        };
        let number: u8 = slot
            .parse()
            .map_err(|_| Failure::argument(format!("{field}: {source:?} has no number")))?;
        let platform = format!("/sys/bus/platform/devices/virtio-mmio.{number}");
        let absent = || Failure::not_found(format!("{field}: no block device in slot {number}"));
        let device = child_named(Path::new(&platform), "virtio").ok_or_else(absent)?;
        let bus = child_named(&device, "ndbus");
        let mapped = bus.is_some();
        let block = match bus {
            Some(bus) => {
                let region = child_named(&bus, "region").ok_or_else(absent)?;
                let namespace = child_named(&region, "namespace").ok_or_else(absent)?;
                namespace.join("block")
            }
            None => device.join("block"),
        };
        let mut entries = fs::read_dir(&block)
            .attempt(|| format!("look for the block device of slot {number}"))?;
        let name = entries
            .next()
            .ok_or_else(absent)?
            .attempt(|| format!("read {}", block.display()))?;
        Ok(Some(Self {
            path: format!("/dev/{}", name.file_name().to_string_lossy()),
            mapped,
        }))
    }

    /// Mount options that the device asks for.
    pub(crate) fn options(&self) -> Option<(CString, Option<CString>)> {
        self.mapped.then(|| (c"dax".into(), Some(c"always".into())))
    }
}

/// The first directory in `parent` whose name is `prefix` and a number.
fn child_named(parent: &Path, prefix: &str) -> Option<PathBuf> {
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

    #[test]
    fn slot_without_number_is_refused_and_without_device_not_found() {
        assert!(SlotDevice::named("rootfs[0]", "slot:x").is_err());
        assert!(SlotDevice::named("rootfs[0]", "slot:250").is_err());
        assert!(SlotDevice::named("rootfs[0]", "/dev/x").unwrap().is_none());
    }
}
