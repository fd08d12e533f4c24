//! System calls that rustix has no safe function for.
//!
//! Everything here is a thin, safe wrapper; policy lives with the callers.
//! Raw calls instead of glibc's wrappers where glibc keeps state that a child
//! between `clone3` and `execve` must not rely on.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What [`clone3`] made.
pub(crate) enum Cloned {
    /// This is the child.
    Child,
    /// This is the parent.
    Parent {
        /// The child's id in the caller's pid namespace.
        pid: Pid,
        /// Refers to the child even after its id has been used again.
        pidfd: OwnedFd,
    },
}

/// `clone3` like `fork`, into new namespaces and into a cgroup.
///
/// The child is a copy of this single-threaded process; it may use all of its
/// memory, and leaves only by [`execve`] or [`exit_now`].
pub(crate) fn clone3(namespaces: u64, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces | const_u64(libc::CLONE_PIDFD) | CLONE_INTO_CGROUP;
    let mut args = [0_u64; 11];
    args[0] = flags;
    args[1] = (&raw mut pidfd).addr() as u64;
    args[4] = const_u64(libc::SIGCHLD);
    args[10] = const_u64(cgroup.as_raw_fd());
    // SAFETY: `args` is a `struct clone_args` of version 2 (eleven 64-bit
    // fields); stack and TLS are null, so the child runs on a copy of this
    // stack; `pidfd` outlives the call. Without CLONE_VM no memory is shared.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_mut_ptr(), size_of_val(&args)) };
    let pid = check(pid)?;
    match Pid::from_raw(pid) {
        None => Ok(Cloned::Child),
        Some(pid) => Ok(Cloned::Parent {
            pid,
            // SAFETY: CLONE_PIDFD has stored a new descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A positive constant or descriptor as the kernel's 64-bit field.
const fn const_u64(value: c_int) -> u64 {
    value.cast_unsigned() as u64
}

fn check(result: c_long) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // Ids and descriptors, the only results asked for here, are ints.
    c_int::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

fn check_errno(result: c_long) -> Result<(), Errno> {
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_raw_os_error(
            error.raw_os_error().unwrap_or(libc::EIO),
        ));
    }
    Ok(())
}

/// Joins the namespace that `fd` refers to.
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: c_int) -> Result<(), Errno> {
    // SAFETY: takes a descriptor and a flag; changes no memory.
    check_errno(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), kind) })
}

/// Moves the caller into new namespaces.
pub(crate) fn unshare(kinds: c_int) -> Result<(), Errno> {
    // SAFETY: only namespace flags are passed, so no memory or descriptor
    // table stops being shared.
    check_errno(unsafe { libc::syscall(libc::SYS_unshare, kinds) })
}

/// Closes every descriptor from `first` to `last`, both included.
pub(crate) fn close_range(first: c_int, last: c_int) -> Result<(), Errno> {
    // SAFETY: called in a child only, on descriptors whose owners exist in
    // the parent; the child never runs the owners' destructors.
    check_errno(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Ends the process without running anything.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// A null-terminated array of pointers into strings, as `execve` wants it.
///
/// The pointers stay right when this value moves, since what they point to is
/// on the heap and never changes size.
#[derive(Debug)]
pub(crate) struct StringArray {
    strings: Vec<std::ffi::CString>,
    extra: Vec<u8>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Takes the strings, and keeps `room` bytes for one more.
    pub(crate) fn new(strings: Vec<std::ffi::CString>, room: usize) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.extend([ptr::null(), ptr::null()]);
        Self {
            strings,
            extra: Vec::with_capacity(room),
            pointers,
        }
    }

    /// Adds a string without allocating; one that has no room is left out.
    pub(crate) fn push(&mut self, string: &CStr) {
        let bytes = string.to_bytes_with_nul();
        let end = self.strings.len();
        if let Some(slot) = self.pointers.get_mut(end)
            && self.extra.is_empty()
            && bytes.len() <= self.extra.capacity()
        {
            self.extra.extend_from_slice(bytes);
            *slot = self.extra.as_ptr().cast();
        }
    }
}

/// Executes a program; returns only on failure.
pub(crate) fn execve(program: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    // SAFETY: both arrays are null-terminated and their strings alive
    // (`StringArray`); on success nothing of this program is left.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execve,
            program.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    check_errno(result).err().unwrap_or(Errno::IO)
}

/// Makes a descriptor wait without a thread of its own.
pub(crate) fn asynchronous(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same until it is dropped, which
    // `AsyncFd` does after it has taken it out of epoll; nobody here calls
    // anything that would close it behind the owner's back.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Gives every signal its default meaning and blocks none. The agent ignores
/// SIGPIPE and blocks SIGCHLD; both would survive `execve`.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL runs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let none = empty_signal_set();
    // SAFETY: `none` is initialised; the old set is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

fn empty_signal_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable memory of the right type.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    unsafe { set.assume_init() }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child
/// has ended. Call before any other thread exists.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = empty_signal_set();
    // SAFETY: `set` is an initialised set.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: `set` is an initialised set; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    let fd = check(c_long::from(fd))?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends any signal number, real-time ones included.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    // SAFETY: no siginfo is passed.
    check_errno(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
}

/// The signal that ends anything.
pub(crate) const KILL: c_int = Signal::KILL.as_raw();

/// Attributes of a mount to set and to clear.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountAttributes {
    /// To set.
    pub(crate) set: MountAttrFlags,
    /// To clear.
    pub(crate) clear: MountAttrFlags,
    /// Propagation type, an `MS_` flag, or 0 to leave it.
    pub(crate) propagation: u64,
}

impl MountAttributes {
    /// Nothing to change.
    pub(crate) const NONE: Self = Self {
        set: MountAttrFlags::empty(),
        clear: MountAttrFlags::empty(),
        propagation: 0,
    };

    /// Read-only.
    pub(crate) const READ_ONLY: Self = Self {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY,
        ..Self::NONE
    };
}

/// `mount_setattr` on the mount that `fd` is in.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attributes: MountAttributes,
) -> Result<(), Errno> {
    let attr = [
        u64::from(attributes.set.bits()),
        u64::from(attributes.clear.bits()),
        attributes.propagation,
        0,
    ];
    let at = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a `struct mount_attr` of version 0 (four 64-bit
    // fields); the path is an empty string.
    check_errno(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            at,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    })
}

/// Whether the working directory can be reached from the root directory.
/// Reads no more than its first byte: outside the root the kernel says
/// `(unreachable)/…`.
pub(crate) fn working_directory_reachable() -> Result<bool, Errno> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: `path` is writable for the length passed.
    check_errno(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) })?;
    Ok(path.first() == Some(&b'/'))
}

/// Sets whether other processes may look into this one.
pub(crate) fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    // SAFETY: takes plain integers.
    check_errno(unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::PR_SET_DUMPABLE,
            c_long::from(dumpable),
            0,
            0,
            0,
        )
    })
}

/// Connects a new socket to a port of the host's vsock (vsock(7)). The
/// connection is under way when this returns; the socket becomes writable
/// when it is made or refused.
pub(crate) fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes plain integers.
    let fd = check(c_long::from(unsafe {
        libc::socket(libc::AF_VSOCK, kind, 0)
    }))?;
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0);
    address.svm_cid = cid;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: `address` is a live sockaddr_vm of the length passed.
    let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) };
    match check(c_long::from(result)) {
        Ok(_) => Ok(fd),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error),
    }
}

/// What FUSE calls a file in `/proc/PID/fdinfo` and in handles
/// (`fuse_encode_fh` in fs/fuse/inode.c): its node's number, upper half first,
/// and its generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FuseHandle([u32; 3]);

impl FuseHandle {
    /// From the bytes in hexadecimal.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = [0; 3];
        let mut rest = text;
        for number in &mut numbers {
            let (digits, after) = rest.split_at_checked(8)?;
            *number = u32::from_str_radix(digits, 16).ok()?.swap_bytes();
            rest = after;
        }
        rest.is_empty().then_some(Self(numbers))
    }

    /// The node's number.
    pub(crate) fn node(self) -> u64 {
        let [upper, lower, _] = self.0;
        u64::from(upper) << 32 | u64::from(lower)
    }
}

/// Refers to a file that the kernel knows, on the file system that `system`
/// is on, whatever its name is.
pub(crate) fn open_by_handle(system: BorrowedFd<'_>, handle: FuseHandle) -> Result<OwnedFd, Errno> {
    /// `FILEID_INO64_GEN`.
    const KIND: u32 = 0x81;
    let [upper, lower, generation] = handle.0;
    let length = u32::try_from(size_of_val(&handle.0)).unwrap_or(0);
    // `struct file_handle`: length, type, content.
    let mut file = [length, KIND, upper, lower, generation];
    // SAFETY: `file` is a file handle of the length that it says.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            system.as_raw_fd(),
            file.as_mut_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    });
    let fd = fd.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The path by which a descriptor can be opened again.
pub(crate) fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Brings the loopback interface of the caller's network namespace up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(0);
    // SAFETY: `request` is a live ifreq, which SIOCSIFFLAGS only reads.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    check_errno(c_long::from(result))
}
