//! System calls that have no safe wrapper elsewhere. Those that change ids
//! are the bare calls: they concern this thread only, where the library's
//! would change all threads.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Name of a descriptor relative to `/proc/self/fd`, which is the broker's
/// working directory.
pub(crate) struct ProcName {
    text: [u8; 12],
}

impl ProcName {
    pub(crate) fn new(descriptor: BorrowedFd<'_>) -> Self {
        let mut text = [0; 12];
        let mut number = descriptor.as_raw_fd().unsigned_abs();
        let mut digits = [0_u8; 11];
        let mut count = 0;
        for digit in &mut digits {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            count += 1;
            if number == 0 {
                break;
            }
        }
        for (to, from) in text.iter_mut().zip(digits.iter().take(count).rev()) {
            *to = *from;
        }
        Self { text }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.text).unwrap_or(c"")
    }
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 { Err(last()) } else { Ok(()) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes parts of what this thread shares with others for itself.
pub(crate) fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes a plain number; what is shared has no address of ours.
    check(unsafe { libc::unshare(flags) }.into())
}

/// Changes to a mount and to all below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_…` to be set.
    pub(crate) set: u64,
    /// `MS_SLAVE` and its like.
    pub(crate) propagation: u64,
}

/// Changes a tree of mounts.
pub(crate) fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    attributes: MountAttributes,
) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid mount_attr: nothing is changed.
    let mut change: libc::mount_attr = unsafe { std::mem::zeroed() };
    change.attr_set = attributes.set;
    change.propagation = attributes.propagation;
    // SAFETY: reads the empty string and the structure, whose size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// A group of fanotify(7) without privileges, which tells directories and names
/// and who did it if that was this process.
pub(crate) fn new_watch_group() -> Result<OwnedFd, Errno> {
    let flags = libc::FAN_CLASS_NOTIF
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_REPORT_DIR_FID
        | libc::FAN_REPORT_NAME
        | libc::FAN_REPORT_FID;
    // SAFETY: takes plain numbers.
    let group = unsafe { libc::syscall(libc::SYS_fanotify_init, flags, libc::O_RDONLY) };
    let group = i32::try_from(group).map_err(|_| last())?;
    if group < 0 {
        return Err(last());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(group) })
}

/// Adds the file behind a path to a group, for the events of `mask`, or takes
/// those away.
pub(crate) fn mark(group: BorrowedFd<'_>, add: bool, mask: u64, path: &CStr) -> Result<(), Errno> {
    let flags = if add {
        libc::FAN_MARK_ADD
    } else {
        libc::FAN_MARK_REMOVE
    };
    // SAFETY: reads the string, which ends with a zero.
    check(unsafe {
        libc::syscall(
            libc::SYS_fanotify_mark,
            group.as_raw_fd(),
            flags,
            mask,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    })
}

/// Longest handle of a file (`MAX_HANDLE_SZ`).
const HANDLE: usize = 128;

/// `struct file_handle` with its longest content.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    content: [u8; HANDLE],
}

/// The handle of a file as fanotify reports it: length, type, content.
pub(crate) fn file_handle(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    /// Handles that need not be opened again, since Linux 6.5.
    const AT_HANDLE_FID: libc::c_int = 0x200;
    let mut mount = 0;
    for flags in [AT_HANDLE_FID, 0] {
        let mut handle = FileHandle {
            bytes: u32::try_from(HANDLE).unwrap_or(0),
            kind: 0,
            content: [0; HANDLE],
        };
        // SAFETY: `handle` has room for as many bytes as it says, `mount` for
        // a number; the path is an empty string.
        let result = check(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                file.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount,
                libc::AT_EMPTY_PATH | flags,
            )
        });
        match result {
            Err(Errno::INVAL) if flags != 0 => {}
            result => {
                result?;
                let length = usize::try_from(handle.bytes).map_err(|_| Errno::OVERFLOW)?;
                let content = handle.content.get(..length).ok_or(Errno::OVERFLOW)?;
                return Ok([
                    &handle.bytes.to_ne_bytes()[..],
                    &handle.kind.to_ne_bytes(),
                    content,
                ]
                .concat());
            }
        }
    }
    Err(Errno::OPNOTSUPP)
}

/// Dies with the parent.
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    // SAFETY: sets a signal for this process; takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into())
}

/// Lets all threads allocate from one arena: they allocate little, and each
/// further arena is private memory.
pub(crate) fn one_arena() {
    // SAFETY: takes plain numbers, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Sets the umask.
pub(crate) fn umask(mask: u32) {
    // SAFETY: takes a plain number and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Sets this thread's supplementary groups.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: reads `groups.len()` numbers from the slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// Sets this thread's ids for files, keeping its capabilities: leaving user 0
/// takes those that concern files out of the effective set.
pub(crate) fn set_fs_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: takes a plain number.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: takes a plain number.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    // The calls answer with the ids before; asking again with an id that
    // nobody can have tells what they are now.
    // SAFETY: takes a plain number.
    let now_gid = unsafe { libc::syscall(libc::SYS_setfsgid, -1) };
    // SAFETY: takes a plain number.
    let now_uid = unsafe { libc::syscall(libc::SYS_setfsuid, -1) };
    if now_gid != i64::from(gid) || now_uid != i64::from(uid) {
        return Err(Errno::PERM);
    }
    if uid == 0 {
        return Ok(());
    }
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    // CAP_FSETID would keep a set-group-id bit that the caller may not give.
    sets.effective.remove(rustix::thread::CapabilitySet::FSETID);
    rustix::thread::set_capabilities(None, sets)
}

/// Room for an attribute or a list, in the answer's buffer.
fn attribute_result(result: libc::ssize_t) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last())
}

/// Reads an extended attribute of the file behind a path into `room`, or asks
/// for its size if there is none.
pub(crate) fn get_attribute(path: &CStr, name: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: both strings end with zeros; at most the buffer's length is
    // written to the buffer.
    let result = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            room.as_mut_ptr().cast(),
            room.len(),
        )
    };
    attribute_result(result)
}

/// Lists the extended attributes of the file behind a path.
pub(crate) fn list_attributes(path: &CStr, room: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the string ends with a zero; at most the buffer's length is
    // written to the buffer.
    let result = unsafe { libc::listxattr(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
    attribute_result(result)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn proc_name_is_the_number() {
        let file = tempfile::tempfile().unwrap();
        let name = ProcName::new(file.as_fd());
        assert_eq!(
            name.as_c_str().to_str().unwrap(),
            file.as_raw_fd().to_string()
        );
    }
}
