//! Calls on names and attributes.

use std::os::fd::RawFd;

use super::{HERE, NULL, Res, Word, call, done, number, path};

pub(crate) fn chdir(name: impl AsRef<[u8]>) -> Res<()> {
    let name = path(name);
    done(libc::SYS_chdir, [(&name).into()])
}

pub(crate) fn fchdir(descriptor: RawFd) -> Res<()> {
    done(libc::SYS_fchdir, [descriptor.into()])
}

pub(crate) fn getcwd() -> Res<Vec<u8>> {
    let mut bytes = vec![0_u8; 8192];
    let room = Word::from(bytes.as_mut_slice());
    let length = call(libc::SYS_getcwd, [room, 8192_usize.into()])?;
    bytes.truncate(length.saturating_sub(1));
    Ok(bytes)
}

pub(crate) fn mkdirat(directory: RawFd, name: impl AsRef<[u8]>, mode: u32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_mkdirat,
        [directory.into(), (&name).into(), mode.into()],
    )
}

pub(crate) fn mkdir(name: impl AsRef<[u8]>, mode: u32) -> Res<()> {
    mkdirat(HERE, name, mode)
}

pub(crate) fn unlinkat(directory: RawFd, name: impl AsRef<[u8]>, flags: i32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_unlinkat,
        [directory.into(), (&name).into(), flags.into()],
    )
}

pub(crate) fn unlink(name: impl AsRef<[u8]>) -> Res<()> {
    unlinkat(HERE, name, 0)
}

pub(crate) fn rmdir(name: impl AsRef<[u8]>) -> Res<()> {
    unlinkat(HERE, name, libc::AT_REMOVEDIR)
}

pub(crate) fn linkat(from: (RawFd, &[u8]), to: (RawFd, &[u8]), flags: i32) -> Res<()> {
    let (old, new) = (path(from.1), path(to.1));
    done(
        libc::SYS_linkat,
        [
            from.0.into(),
            (&old).into(),
            to.0.into(),
            (&new).into(),
            flags.into(),
        ],
    )
}

pub(crate) fn link(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Res<()> {
    linkat((HERE, from.as_ref()), (HERE, to.as_ref()), 0)
}

pub(crate) fn symlink(target: impl AsRef<[u8]>, name: impl AsRef<[u8]>) -> Res<()> {
    let (target, name) = (path(target), path(name));
    done(
        libc::SYS_symlinkat,
        [(&target).into(), HERE.into(), (&name).into()],
    )
}

pub(crate) fn readlinkat(directory: RawFd, name: impl AsRef<[u8]>, length: usize) -> Res<Vec<u8>> {
    let name = path(name);
    let mut bytes = vec![0; length];
    let room = Word::from(bytes.as_mut_slice());
    let length = call(
        libc::SYS_readlinkat,
        [directory.into(), (&name).into(), room, length.into()],
    )?;
    bytes.truncate(length);
    Ok(bytes)
}

pub(crate) fn readlink(name: impl AsRef<[u8]>) -> Res<Vec<u8>> {
    readlinkat(HERE, name, 4096)
}

pub(crate) fn rename(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>, flags: u32) -> Res<()> {
    let (from, to) = (path(from), path(to));
    done(
        libc::SYS_renameat2,
        [
            HERE.into(),
            (&from).into(),
            HERE.into(),
            (&to).into(),
            flags.into(),
        ],
    )
}

pub(crate) fn mknod(name: impl AsRef<[u8]>, mode: u32, device: u32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_mknodat,
        [HERE.into(), (&name).into(), mode.into(), device.into()],
    )
}

pub(crate) fn chmod(name: impl AsRef<[u8]>, mode: u32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_fchmodat,
        [HERE.into(), (&name).into(), mode.into()],
    )
}

pub(crate) fn fchmod(descriptor: RawFd, mode: u32) -> Res<()> {
    done(libc::SYS_fchmod, [descriptor.into(), mode.into()])
}

/// `fchmodat2`, which takes flags.
pub(crate) fn fchmodat2(name: impl AsRef<[u8]>, mode: u32, flags: i32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_fchmodat2,
        [HERE.into(), (&name).into(), mode.into(), flags.into()],
    )
}

/// -1 leaves an id as it is.
pub(crate) fn fchownat(
    directory: RawFd,
    name: impl AsRef<[u8]>,
    (uid, gid): (i32, i32),
    flags: i32,
) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_fchownat,
        [
            directory.into(),
            (&name).into(),
            uid.into(),
            gid.into(),
            flags.into(),
        ],
    )
}

pub(crate) fn chown(name: impl AsRef<[u8]>, uid: i32, gid: i32) -> Res<()> {
    fchownat(HERE, name, (uid, gid), 0)
}

pub(crate) fn lchown(name: impl AsRef<[u8]>, uid: i32, gid: i32) -> Res<()> {
    fchownat(HERE, name, (uid, gid), libc::AT_SYMLINK_NOFOLLOW)
}

pub(crate) fn fchown(descriptor: RawFd, uid: i32, gid: i32) -> Res<()> {
    done(
        libc::SYS_fchown,
        [descriptor.into(), uid.into(), gid.into()],
    )
}

pub(crate) fn umask(mask: u32) -> u32 {
    call(libc::SYS_umask, [mask.into()])
        .ok()
        .and_then(|mask| u32::try_from(mask).ok())
        .unwrap_or(0)
}

/// `faccessat2`.
pub(crate) fn access(name: impl AsRef<[u8]>, mode: i32, flags: i32) -> Res<()> {
    let name = path(name);
    done(
        libc::SYS_faccessat2,
        [HERE.into(), (&name).into(), mode.into(), flags.into()],
    )
}

/// A time of [`utimensat`]: seconds and nanoseconds.
pub(crate) type Time = (i64, i64);

/// `None` for the name: the descriptor itself. `None` for the times: now.
pub(crate) fn utimensat(
    directory: RawFd,
    name: Option<&str>,
    times: Option<[Time; 2]>,
    flags: i32,
) -> Res<()> {
    let name = name.map(path);
    let mut times =
        times.map(|times| times.map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec }));
    let times = times.as_mut().map_or(NULL, super::at);
    let name = name.as_ref().map_or(NULL, Word::from);
    done(
        libc::SYS_utimensat,
        [directory.into(), name, times, flags.into()],
    )
}

pub(crate) fn setxattr(
    name: impl AsRef<[u8]>,
    attribute: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    flags: i32,
) -> Res<()> {
    set_attribute(libc::SYS_setxattr, name, attribute, value, flags)
}

pub(crate) fn lsetxattr(
    name: impl AsRef<[u8]>,
    attribute: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    flags: i32,
) -> Res<()> {
    set_attribute(libc::SYS_lsetxattr, name, attribute, value, flags)
}

fn set_attribute(
    number: libc::c_long,
    name: impl AsRef<[u8]>,
    attribute: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    flags: i32,
) -> Res<()> {
    let (name, attribute, value) = (path(name), path(attribute), value.as_ref());
    done(
        number,
        [
            (&name).into(),
            (&attribute).into(),
            value.into(),
            value.len().into(),
            flags.into(),
        ],
    )
}

pub(crate) fn fsetxattr(
    descriptor: RawFd,
    attribute: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    flags: i32,
) -> Res<()> {
    let (attribute, value) = (path(attribute), value.as_ref());
    done(
        libc::SYS_fsetxattr,
        [
            descriptor.into(),
            (&attribute).into(),
            value.into(),
            value.len().into(),
            flags.into(),
        ],
    )
}

/// `getxattr` into a buffer of `length` bytes; its answer and the bytes.
pub(crate) fn getxattr(
    name: impl AsRef<[u8]>,
    attribute: impl AsRef<[u8]>,
    length: usize,
) -> Res<(usize, Vec<u8>)> {
    let (name, attribute) = (path(name), path(attribute));
    let mut value = vec![0; length];
    let room = Word::from(value.as_mut_slice());
    let size = call(
        libc::SYS_getxattr,
        [(&name).into(), (&attribute).into(), room, length.into()],
    )?;
    value.truncate(size);
    Ok((size, value))
}

pub(crate) fn lgetxattr(name: impl AsRef<[u8]>, attribute: impl AsRef<[u8]>) -> Res<usize> {
    let (name, attribute) = (path(name), path(attribute));
    call(
        libc::SYS_lgetxattr,
        [(&name).into(), (&attribute).into(), NULL, NULL],
    )
}

/// `listxattr` into a buffer of `length` bytes; its answer and the names.
pub(crate) fn listxattr(name: impl AsRef<[u8]>, length: usize) -> Res<(usize, Vec<u8>)> {
    let name = path(name);
    let mut names = vec![0; length];
    let room = Word::from(names.as_mut_slice());
    let size = call(libc::SYS_listxattr, [(&name).into(), room, length.into()])?;
    names.truncate(size);
    Ok((size, names))
}

pub(crate) fn removexattr(name: impl AsRef<[u8]>, attribute: impl AsRef<[u8]>) -> Res<()> {
    let (name, attribute) = (path(name), path(attribute));
    done(libc::SYS_removexattr, [(&name).into(), (&attribute).into()])
}

/// `name_to_handle_at` with a handle of no room: says whether there are any.
pub(crate) fn handle_size(name: impl AsRef<[u8]>) -> Res<i32> {
    let name = path(name);
    let (mut handle, mut mount) = ([0_u32; 2], 0_i32);
    number(
        libc::SYS_name_to_handle_at,
        [
            HERE.into(),
            (&name).into(),
            super::at(&mut handle),
            super::at(&mut mount),
            NULL,
        ],
    )
}
