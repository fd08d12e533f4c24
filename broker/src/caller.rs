//! Who a request is made for.
//!
//! The guest's kernel has checked the caller's permissions (virtio-fs mounts
//! with `default_permissions`), with groups and capabilities that only it
//! knows. What it cannot decide is what the host's kernel makes of a new file:
//! owner, group and set-group-id bit. So files are created under the caller's
//! ids and umask, without its lack of privilege; everything else is done as
//! the broker.

use std::cell::Cell;

use rustix::io::Errno;

use crate::sys;

/// The caller of a request that creates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The parent directory's group, if the caller is in it.
    pub(crate) group: Option<u32>,
}

impl Caller {
    /// The broker itself.
    const SELF: Self = Self {
        uid: 0,
        gid: 0,
        group: None,
    };
}

thread_local! {
    static PRESENT: Cell<(Caller, u32)> = const { Cell::new((Caller::SELF, 0)) };
}

/// Makes this thread's directory attributes (umask) its own.
pub(crate) fn prepare_thread() -> Result<(), Errno> {
    sys::unshare(libc::CLONE_FS)?;
    sys::umask(0);
    Ok(())
}

/// Creates something for `caller`, with its umask.
pub(crate) fn create_as<T>(
    caller: Caller,
    umask: u32,
    create: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    // Consecutive requests mostly come from the same caller, so that its ids
    // are kept until another one is needed.
    become_caller(caller)?;
    let (present, mask) = PRESENT.get();
    if umask & 0o777 != mask {
        sys::umask(umask & 0o777);
        PRESENT.set((present, umask & 0o777));
    }
    create()
}

/// Returns to the broker's own ids.
pub(crate) fn become_self() -> Result<(), Errno> {
    become_caller(Caller::SELF)
}

fn become_caller(caller: Caller) -> Result<(), Errno> {
    let (present, mask) = PRESENT.get();
    if caller == present {
        return Ok(());
    }
    // An owner that has no number on the host: the guest's kernel says so for
    // requests that create nothing, hence never here.
    if caller.uid == u32::MAX || caller.gid == u32::MAX {
        return Err(Errno::OVERFLOW);
    }
    if caller.group != present.group {
        match caller.group {
            Some(group) => sys::set_groups(&[group])?,
            None => sys::set_groups(&[])?,
        }
    }
    sys::set_fs_ids(caller.uid, caller.gid)?;
    PRESENT.set((caller, mask));
    Ok(())
}
