//! Puts a container's file tree together and makes it the root.
//!
//! It happens in the child's own mount namespace, so nothing of it has to be
//! taken apart: it goes with the last process. Mounts are made detached and
//! attached to descriptors (`fsopen`, `open_tree`, `move_mount`), never to
//! paths that a container could redirect.
//!
//! ```text
//!  /run (own tmpfs) ─┬─ layer0, layer1, … ──┐ lowerdir
//!                    └─ writable/upper, work ┴▶ root (overlay) ──pivot──▶ /
//! ```

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmod, chown, chownat, fchmod, mkdir, mknodat,
    open, openat, stat, symlinkat, unlinkat,
};
use rustix::io::{Errno, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, fspick, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::fault::{Fault, Step};
use super::{beneath, copy_up};
use crate::container::devices::{self, DevicePlan};
use crate::container::mounts::{FileSystem, MountPlan, Source};
use crate::container::paths::InRoot;
use crate::container::plan::ContainerPlan;
use crate::container::rootfs::{Layer, RootPlan, Upper};
use crate::sys::{self, MountAttributes};

/// Assembles the root with everything mounted in it.
pub(super) fn make<'p>(
    plan: &'p ContainerPlan,
    read_only: &mut Vec<OwnedFd>,
) -> Result<OwnedFd, Fault<'p>> {
    // Nothing that happens here may reach the guest's own tree.
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .step("make private", b"/")?;
    let root = assemble(&plan.root)?;
    for mount in &plan.mounts {
        make_mount(root.as_fd(), mount, read_only).step("mount", &mount.target.label)?;
    }
    for device in &plan.devices {
        make_device(root.as_fd(), device).step("make device", &device.path.label)?;
    }
    if let Some(dev) = &plan.dev {
        let dev = beneath::directory(root.as_fd(), dev, false).step("open", &dev.label)?;
        for (name, target) in devices::LINKS {
            make_link(dev.as_fd(), name, target).step("make link in /dev:", name.to_bytes())?;
        }
    }
    beneath::directory(root.as_fd(), &plan.cwd, false)
        .step("make working directory", &plan.cwd.label)?;
    Ok(root)
}

/// The last touches, then makes `root` the root. What is hidden or made
/// read-only is so from here on, so everything else comes before.
pub(super) fn enter<'p>(
    plan: &'p ContainerPlan,
    root: BorrowedFd<'_>,
    read_only: &[OwnedFd],
) -> Result<(), Fault<'p>> {
    for (path, value, name) in &plan.sysctls {
        set_sysctl(root, path, value).step("set sysctl", name)?;
    }
    for path in &plan.read_only_paths {
        match make_read_only(root, path) {
            Err(Errno::NOENT) => {}
            result => result.step("make read-only", &path.label)?,
        }
    }
    // The guest's own, as long as its tree is in sight; the container's may
    // have been replaced by an image.
    let null = open(c"/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step("open", b"/dev/null")?;
    for path in &plan.masked {
        match mask(root, path, null.as_fd()) {
            Err(Errno::NOENT) => {}
            result => result.step("mask", &path.label)?,
        }
    }
    for tree in read_only {
        sys::mount_setattr(tree.as_fd(), false, MountAttributes::READ_ONLY)
            .step("make a mount read-only", b"")?;
    }
    if plan.read_only {
        sys::mount_setattr(root, false, MountAttributes::READ_ONLY).step("make read-only", b"/")?;
    }
    if let Some((recursive, propagation)) = plan.propagation {
        let attributes = MountAttributes {
            propagation,
            ..MountAttributes::NONE
        };
        sys::mount_setattr(root, recursive, attributes).step("set propagation of", b"/")?;
    }
    pivot(root).step("change root", b"")
}

fn set_sysctl(root: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<(), Errno> {
    let file = beneath::open(root, path, OFlags::WRONLY | OFlags::CLOEXEC)?;
    write(&file, value)?;
    Ok(())
}

/// Mounts the layers and returns the root.
fn assemble(plan: &RootPlan) -> Result<OwnedFd, Fault<'_>> {
    let scratch = fs_mount(c"tmpfs", None, &[(c"size", c"0"), (c"nr_inodes", c"0")])
        .step("mount", b"/run")?;
    attach_at(scratch.as_fd(), c"/run").step("mount", b"/run")?;
    let mut uppermost = None;
    for layer in &plan.layers {
        let tree = mount_layer(layer).step("mount layer", &layer.label)?;
        uppermost.get_or_insert(tree);
    }
    let uppermost = uppermost.ok_or(Errno::NODEV).step("mount layer", b"")?;
    let Some(upper) = &plan.overlay else {
        return Ok(uppermost);
    };
    match upper {
        Upper::Memory => make_directory(WRITABLE).step("make directory", b"/run/writable")?,
        Upper::FileSystem(layer) => {
            mount_layer(layer).step("mount the writable layer", &layer.label)?;
        }
    }
    overlay(plan).step("mount overlay", b"/")
}

fn mount_layer(layer: &Layer) -> Result<OwnedFd, Errno> {
    mkdir(&*layer.directory, Mode::from_raw_mode(0o755))?;
    let tree = match &layer.source {
        Source::New(system) => new_mount(system, MountAttrFlags::empty())?,
        Source::Bind { path, recursive } => bind(path, *recursive)?,
        Source::Remount { .. } => return Err(Errno::INVAL),
    };
    attach_at(tree.as_fd(), &layer.directory)?;
    Ok(tree)
}

/// Where the file system lies that an overlay writes to.
const WRITABLE: &CStr = c"/run/writable";
const UPPER: &CStr = c"/run/writable/upper";
const WORK: &CStr = c"/run/writable/work";
const ROOT: &CStr = c"/run/root";

fn make_directory(path: &CStr) -> Result<(), Errno> {
    mkdir(path, Mode::from_raw_mode(0o755))
}

fn overlay(plan: &RootPlan) -> Result<OwnedFd, Errno> {
    make_directory(ROOT)?;
    // What an earlier container has written stays.
    let new = match make_directory(UPPER) {
        Err(Errno::EXIST) => false,
        result => result.map(|()| true)?,
    };
    match make_directory(WORK) {
        Err(Errno::EXIST) => {}
        result => result?,
    }
    // The merged root has the upper directory's owner and mode.
    if let (true, Some(layer)) = (new, plan.layers.first()) {
        let of = stat(&*layer.directory)?;
        chmod(UPPER, Mode::from_raw_mode(of.st_mode))?;
        chown(
            UPPER,
            Some(Uid::from_raw(of.st_uid)),
            Some(Gid::from_raw(of.st_gid)),
        )?;
    }
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in &plan.layers {
        fsconfig_set_string(&context, c"lowerdir+", &*layer.directory)?;
    }
    fsconfig_set_string(&context, c"upperdir", UPPER)?;
    fsconfig_set_string(&context, c"workdir", WORK)?;
    fsconfig_create(&context)?;
    let tree = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    attach_at(tree.as_fd(), ROOT)?;
    Ok(tree)
}

fn make_mount(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    read_only: &mut Vec<OwnedFd>,
) -> Result<(), Errno> {
    let (tree, target) = match &mount.source {
        Source::New(system) => {
            let target = beneath::directory(root, &mount.target, mount.plain_target)?;
            let tree = new_mount(system, mount.attributes.set)?;
            if system.kind.as_c_str() == c"tmpfs" {
                cover(system, tree.as_fd(), target.as_fd())?;
            }
            (tree, target)
        }
        Source::Remount { options } => {
            return remount(root, mount, options.as_deref(), read_only);
        }
        Source::Bind { path, recursive } => {
            let tree = bind(path, *recursive)?;
            let target = if beneath::is_directory(tree.as_fd())? {
                beneath::directory(root, &mount.target, false)?
            } else {
                beneath::file(root, &mount.target)?
            };
            (tree, target)
        }
    };
    attach(tree.as_fd(), target.as_fd())?;
    sys::mount_setattr(tree.as_fd(), false, mount.attributes)?;
    sys::mount_setattr(tree.as_fd(), true, mount.recursive)?;
    if mount.read_only && read_only.len() < read_only.capacity() {
        read_only.push(tree);
    }
    Ok(())
}

/// A tmpfs without a mode of its own takes that of the directory it covers,
/// so that `/run` does not become writable for everybody, and the content too
/// if it is told so.
fn cover(system: &FileSystem, tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(tree, c".", flags, Mode::empty())?;
    if system.copy_up {
        let from = openat(target, c".", flags, Mode::empty())?;
        copy_up::content(from.as_fd(), directory.as_fd())?;
    }
    let has_mode = system
        .options
        .iter()
        .any(|(name, _)| name.as_c_str() == c"mode");
    if has_mode {
        return Ok(());
    }
    let mode = rustix::fs::fstat(target)?.st_mode;
    fchmod(directory, Mode::from_raw_mode(mode))
}

/// Changes what is mounted at a place, as mount(2) does with `MS_REMOUNT`: the
/// mount has the flags that are named and no others.
fn remount(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    options: Option<&[(CString, Option<CString>)]>,
    read_only: &mut Vec<OwnedFd>,
) -> Result<(), Errno> {
    let target = beneath::find(root, &mount.target)?;
    if let Some(options) = options {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = fspick(&target, c"", flags)?;
        set_options(&context, options)?;
        fsconfig_reconfigure(&context)?;
    }
    let mut attributes = mount.attributes;
    attributes.clear |= MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    attributes
        .clear
        .remove(attributes.set - MountAttrFlags::MOUNT_ATTR__ATIME);
    sys::mount_setattr(target.as_fd(), false, attributes)?;
    sys::mount_setattr(target.as_fd(), true, mount.recursive)?;
    if mount.read_only && read_only.len() < read_only.capacity() {
        read_only.push(target);
    }
    Ok(())
}

fn make_device(root: BorrowedFd<'_>, device: &DevicePlan) -> Result<(), Errno> {
    let (directory, name) = beneath::parent(root, &device.path)?;
    match mknodat(&directory, name, device.kind, device.mode, device.number) {
        // What an image or a mount has put there stays, as with runc.
        Err(Errno::EXIST) => return Ok(()),
        result => result?,
    }
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let owner = (
        Some(Uid::from_raw(device.uid)),
        Some(Gid::from_raw(device.gid)),
    );
    chownat(
        &directory,
        name,
        owner.0,
        owner.1,
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn make_link(directory: BorrowedFd<'_>, name: &CStr, target: &CStr) -> Result<(), Errno> {
    match symlinkat(target, directory, name) {
        // The terminal multiplexer must be this container's own.
        Err(Errno::EXIST) if name == c"ptmx" => {
            unlinkat(directory, name, AtFlags::empty())?;
            symlinkat(target, directory, name)
        }
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Makes `root` the root and lets go of the guest's own tree.
fn pivot(root: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    // The old root now lies on top of the new one.
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")
}

/// Mounts a terminal on `/dev/console`.
pub(super) fn console<'p>(
    plan: &'p ContainerPlan,
    root: BorrowedFd<'_>,
    terminal: BorrowedFd<'_>,
) -> Result<(), Fault<'p>> {
    let mount = || {
        let target = beneath::file(root, &plan.console)?;
        attach(
            clone_tree(terminal, c"", OpenTreeFlags::AT_EMPTY_PATH)?.as_fd(),
            target.as_fd(),
        )
    };
    mount().step("mount", &plan.console.label)
}

fn make_read_only(root: BorrowedFd<'_>, path: &InRoot) -> Result<(), Errno> {
    let target = beneath::find(root, path)?;
    let flags = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let tree = clone_tree(target.as_fd(), c"", flags)?;
    sys::mount_setattr(tree.as_fd(), false, MountAttributes::READ_ONLY)?;
    attach(tree.as_fd(), target.as_fd())
}

/// Hides a file behind `/dev/null`, a directory behind an empty one.
fn mask(root: BorrowedFd<'_>, path: &InRoot, null: BorrowedFd<'_>) -> Result<(), Errno> {
    let target = beneath::find(root, path)?;
    let tree = if beneath::is_directory(target.as_fd())? {
        let tree = fs_mount(
            c"tmpfs",
            None,
            &[(c"nr_blocks", c"1"), (c"nr_inodes", c"1")],
        )?;
        sys::mount_setattr(tree.as_fd(), false, MountAttributes::READ_ONLY)?;
        tree
    } else {
        clone_tree(null, c"", OpenTreeFlags::AT_EMPTY_PATH)?
    };
    attach(tree.as_fd(), target.as_fd())
}

fn new_mount(system: &FileSystem, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(&*system.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = &system.source {
        fsconfig_set_string(&context, c"source", &**source)?;
    }
    set_options(&context, &system.options)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn set_options(context: &OwnedFd, options: &[(CString, Option<CString>)]) -> Result<(), Errno> {
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, &**name, &**value)?,
            None => fsconfig_set_flag(context, &**name)?,
        }
    }
    Ok(())
}

fn fs_mount(
    kind: &CStr,
    source: Option<&CStr>,
    options: &[(&CStr, &CStr)],
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = source {
        fsconfig_set_string(&context, c"source", source)?;
    }
    for &(name, value) in options {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn bind(path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let flags = if recursive {
        OpenTreeFlags::AT_RECURSIVE
    } else {
        OpenTreeFlags::empty()
    };
    clone_tree(CWD, path, flags)
}

fn clone_tree(at: BorrowedFd<'_>, path: &CStr, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    open_tree(
        at,
        path,
        flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
}

fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags)
}

fn attach_at(tree: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    move_mount(
        tree,
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Whether `fd` is a device with this number.
pub(super) fn is_device(fd: BorrowedFd<'_>, number: u64) -> Result<bool, Errno> {
    let status = rustix::fs::fstat(fd)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    Ok(kind == FileType::CharacterDevice && status.st_rdev == number)
}
