//! What the guest needs before its first container: the kernel's file
//! systems, cgroup controllers, loopback, room for descriptors.
//!
//! The kernel has mounted the root (read-only) and devtmpfs. Everything here
//! is on the path of every start: no look before a mount, no mount that a
//! container makes itself.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Attempt, Result};
use crate::sys;

/// Where the guest's cgroup tree is.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Most descriptors of the agent, and the hard limit that containers inherit
/// when nothing else is asked for (systemd's default).
const MOST_DESCRIPTORS: u64 = 524_288;

/// Prepares the guest.
///
/// # Errors
///
/// Names the file system that could not be mounted.
pub(crate) fn prepare() -> Result<()> {
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_on("proc", "/proc", secure, None)?;
    mount_on("sysfs", "/sys", secure, None)?;
    mount_on("cgroup2", CGROUP_ROOT, secure, Some(c"nsdelegate"))?;
    mount_on(
        "tmpfs",
        "/run",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;
    protect_images().attempt(|| "make the images read-only".into())?;
    enable_controllers().attempt(|| "enable the cgroup controllers".into())?;
    sys::loopback_up().attempt(|| "bring the loopback interface up".into())?;
    raise_descriptor_limit();
    Ok(())
}

fn mount_on(
    kind: &str,
    target: &str,
    flags: MountFlags,
    data: Option<&std::ffi::CStr>,
) -> Result<()> {
    match mount(kind, target, kind, flags, data) {
        // Already mounted there, as sysfs and proc are outside of a guest.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno).attempt(|| format!("mount {kind} on {target}")),
    }
}

/// Refuses writes to the images' block devices. They would change nothing, for
/// the host maps images read-only, but a container with CAP_MKNOD should hear
/// an error, and not have its pages thrown away later.
fn protect_images() -> io::Result<()> {
    let devices = match fs::read_dir("/sys/bus/nd/devices") {
        // No such bus outside of a guest.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        devices => devices?,
    };
    for device in devices {
        let device = device?;
        if device.file_name().as_encoded_bytes().starts_with(b"region") {
            fs::write(device.path().join("read_only"), "1")?;
        }
    }
    Ok(())
}

/// Lets containers have every controller that the kernel has.
fn enable_controllers() -> io::Result<()> {
    let controllers = fs::read_to_string(format!("{CGROUP_ROOT}/cgroup.controllers"))?;
    let mut words = String::new();
    for controller in controllers.split_whitespace() {
        words.push('+');
        words.push_str(controller);
        words.push(' ');
    }
    fs::write(format!("{CGROUP_ROOT}/cgroup.subtree_control"), words)
}

/// As far as the kernel lets it: outside of a guest the agent may be limited.
fn raise_descriptor_limit() {
    let present = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: Some(MOST_DESCRIPTORS),
        maximum: Some(MOST_DESCRIPTORS),
    };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let most = Rlimit {
            current: present.maximum,
            ..present
        };
        // Raising the soft limit to the hard one is always allowed.
        let _ = setrlimit(Resource::Nofile, most);
    }
}
