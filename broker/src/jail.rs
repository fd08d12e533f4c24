//! The broker's walls: a mount namespace with the shares and nothing else, no
//! capability that is not about files, no way to gain one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, getrlimit, pivot_root, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::sys;

/// Descriptors: nodes, streams, files on their way to the VMM.
const DESCRIPTORS: u64 = 16_384;

/// What it takes to be the owner of anybody's file.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// A wall that could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{act}")]
pub struct JailError {
    act: &'static str,
    source: io::Error,
}

fn failed(act: &'static str) -> impl Fn(Errno) -> JailError {
    move |errno| JailError {
        act,
        source: errno.into(),
    }
}

/// A tree to be shared.
#[derive(Debug)]
pub struct Tree {
    /// A detached mount.
    pub mount: OwnedFd,
    /// No writes.
    pub read_only: bool,
    /// What the host mounts below later appears.
    pub follows: bool,
}

/// Where the broker is after [`enter`].
#[derive(Debug)]
pub struct Jail {
    /// References to the roots of the trees, in order.
    pub shares: Vec<OwnedFd>,
    /// Descriptors that it may have.
    pub descriptors: usize,
}

/// Attaches `trees` in a namespace of this process's own and leaves
/// everything else behind.
///
/// # Errors
///
/// [`JailError`] names the step.
pub fn enter(trees: Vec<Tree>) -> Result<Jail, JailError> {
    let present = getrlimit(Resource::Nofile);
    let most = present.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, limit).map_err(failed("limit descriptors"))?;
    // The working directory, and the only way to descriptors by name. It is
    // kept beyond the change of root.
    let descriptors = open(
        c"/proc/self/fd",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open /proc/self/fd"))?;
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
        .map_err(failed("make namespaces"))?;
    // What is mounted on the host below a share appears here, never the other
    // way round.
    mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("cut off mounts"))?;
    let root = empty_root().map_err(failed("make an empty root"))?;
    let shares = attach(&root, trees)?;
    change_root(&root).map_err(failed("change root"))?;
    fchdir(&descriptors).map_err(failed("enter /proc/self/fd"))?;
    drop_privileges().map_err(failed("drop privileges"))?;
    Ok(Jail {
        shares,
        descriptors: usize::try_from(most).unwrap_or(usize::MAX),
    })
}

fn empty_root() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"size", c"1m")?;
    fsconfig_set_string(&context, c"mode", c"700")?;
    fsconfig_create(&context)?;
    let root = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    // Anywhere that certainly exists: it becomes the root right after.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, c"", CWD, c"/proc", flags)?;
    Ok(root)
}

fn attach(root: &OwnedFd, trees: Vec<Tree>) -> Result<Vec<OwnedFd>, JailError> {
    let mut shares = Vec::with_capacity(trees.len());
    for (number, tree) in trees.into_iter().enumerate() {
        let attributes = sys::MountAttributes {
            set: libc::MOUNT_ATTR_NODEV
                | libc::MOUNT_ATTR_NOSUID
                | if tree.read_only {
                    libc::MOUNT_ATTR_RDONLY
                } else {
                    0
                },
            propagation: if tree.follows {
                libc::MS_SLAVE
            } else {
                libc::MS_PRIVATE
            },
        };
        sys::set_mount_attributes(tree.mount.as_fd(), attributes)
            .map_err(failed("restrict a share"))?;
        let name = number.to_string();
        let directory = is_directory(&tree.mount).map_err(failed("look at a share"))?;
        let place = || -> Result<(), Errno> {
            if directory {
                rustix::fs::mkdirat(root, &*name, Mode::from_raw_mode(0o700))?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                drop(openat(root, &*name, flags, Mode::from_raw_mode(0o600))?);
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree.mount, c"", root, &*name, flags)
        };
        place().map_err(failed("attach a share"))?;
        shares.push(tree.mount);
    }
    Ok(shares)
}

fn is_directory(tree: &OwnedFd) -> Result<bool, Errno> {
    let mode = rustix::fs::fstat(tree)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory)
}

fn change_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    // The old root now lies on top of the new one.
    unmount(c".", UnmountFlags::DETACH)
}

fn drop_privileges() -> Result<(), Errno> {
    set_no_new_privs(true)?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            // Beyond the last one that this kernel knows.
            Err(_) => break,
        }
    }
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}
