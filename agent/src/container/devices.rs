//! Device nodes of a container: the specification's default ones, and those
//! that its configuration adds.

use std::ffi::CStr;

use protocol::oci;
use rustix::fs::{FileType, Mode, makedev};

use super::paths::InRoot;
use crate::error::{Failure, Result};

/// A device node to make.
#[derive(Debug)]
pub(crate) struct DevicePlan {
    /// Where.
    pub(crate) path: InRoot,
    /// Character or block device, or a FIFO.
    pub(crate) kind: FileType,
    /// Permission bits.
    pub(crate) mode: Mode,
    /// Number.
    pub(crate) number: u64,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// config-linux.md, "Default Devices"; `/dev/console` and `/dev/ptmx` are made
/// where the terminal is.
pub(crate) const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symbolic links in `/dev` and what they say (runtime-linux.md, "Dev symbolic
/// links").
pub(crate) const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// All device nodes of a container.
pub(crate) fn plan(devices: &[oci::Device]) -> Result<Vec<DevicePlan>> {
    let mut plans = Vec::with_capacity(DEFAULT.len());
    for (path, major, minor) in DEFAULT {
        if !devices.iter().any(|device| device.path == path) {
            plans.push(DevicePlan {
                path: InRoot::parse("linux.devices.path", path)?,
                kind: FileType::CharacterDevice,
                mode: Mode::from_raw_mode(0o666),
                number: makedev(major, minor),
                uid: 0,
                gid: 0,
            });
        }
    }
    for device in devices {
        plans.push(DevicePlan::new(device)?);
    }
    Ok(plans)
}

impl DevicePlan {
    fn new(device: &oci::Device) -> Result<Self> {
        let path = InRoot::parse("linux.devices.path", &device.path)?;
        if path.steps.is_empty() {
            return Err(Failure::argument("linux.devices.path names the root"));
        }
        let kind = match device.kind.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            kind => {
                return Err(Failure::argument(format!(
                    "linux.devices.type {kind:?} of {} is none of c, b, u, p",
                    device.path
                )));
            }
        };
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| {
                Failure::argument(format!("linux.devices number {value} of {}", device.path))
            })
        };
        let number = if kind == FileType::Fifo {
            0
        } else {
            makedev(number(device.major)?, number(device.minor)?)
        };
        Ok(Self {
            path,
            kind,
            mode: Mode::from_bits_truncate(device.file_mode.unwrap_or(0o666) & 0o7777),
            number,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_given_replace_default_ones() {
        let null = oci::Device {
            path: "/dev/null".into(),
            kind: "c".into(),
            major: 1,
            minor: 3,
            file_mode: Some(0o600),
            ..oci::Device::default()
        };
        let plans = plan(&[null]).unwrap();
        assert_eq!(plans.len(), DEFAULT.len());
        let null = plans
            .iter()
            .find(|plan| plan.path.clean() == "/dev/null")
            .unwrap();
        assert_eq!(null.mode, Mode::from_raw_mode(0o600));
    }

    #[test]
    fn devices_with_wrong_type_or_number_are_refused() {
        for (kind, major) in [("x", 1), ("c", -1)] {
            let device = oci::Device {
                path: "/dev/a".into(),
                kind: kind.into(),
                major,
                ..oci::Device::default()
            };
            assert!(plan(&[device]).is_err());
        }
    }
}
