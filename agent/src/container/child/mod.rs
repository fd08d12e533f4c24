//! The child between `clone3` and `execve`.
//!
//! It is a copy of the agent in a container's namespaces and cgroup. It walks
//! through a [`Plan`] with plain system calls, allocates nothing, tells the
//! agent that it is ready, waits to be started, and becomes the program. A
//! step that fails is reported with its words, then the child ends.
//!
//! ```text
//!  agent ──clone3──▶ child: namespaces, root, limits
//!    ◀──── ready (and the terminal's master) ────┤
//!    ───── start: who it is ───────────────────▶ identity, capabilities
//!    ◀──── end of the socket: execve succeeded ──┤ or a fault
//! ```
//!
//! The order of the last part is runc's: bounding set, keep capabilities,
//! ids, the other sets, `no_new_privs`; each needs what the next takes away.

mod beneath;
mod copy_up;
pub(crate) mod fault;
mod root;

use std::ffi::{CStr, c_int};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Uid, fchown, fstatfs, makedev, open};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use rustix::process::{chdir, ioctl_tiocsctty, setrlimit, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::system::{setdomainname, sethostname};
use rustix::termios::tcsetwinsize;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use self::fault::{Fault, RECORD_ROOM, Step};
use super::capabilities::CapabilityPlan;
use super::identity::Decoded;
use super::plan::{ContainerPlan, Plan, ProcessPlan, Scratch};
use crate::sys;

/// First byte of a record from the child: everything is prepared.
pub(crate) const READY: u8 = 1;
/// First byte of a record from the child: a fault follows.
pub(crate) const FAULT: u8 = 2;

/// Exit status of a child that could not become its program. Nobody sees it:
/// the agent answers the request that it belongs to.
const FAILED: c_int = 127;

/// Runs the plan; `descriptors` are the ones to keep, sorted.
pub(crate) fn run(plan: &mut Plan, descriptors: &[c_int]) -> ! {
    let Plan {
        sync,
        stdio,
        terminal_size,
        join,
        container,
        process,
        scratch,
        ..
    } = plan;
    let setup = Setup {
        sync: sync.as_fd(),
        stdio: stdio.as_ref(),
        terminal_size: *terminal_size,
        join,
        new_cgroup_namespace: plan.new_cgroup_namespace,
        new_network: plan.new_network,
        container: container.as_ref(),
        process: &*process,
        descriptors,
    };
    let result = setup.prepare(scratch).and_then(|()| setup.wait(scratch));
    let fault = match result {
        Ok(length) => become_program(process, scratch, length),
        Err(fault) => fault,
    };
    let mut record = [0; RECORD_ROOM];
    let length = fault.encode(&mut record);
    let record = record.get(..length).unwrap_or_default();
    let parts = [IoSlice::new(&[FAULT]), IoSlice::new(record)];
    // If the agent has gone, so has the guest.
    let _ = sendmsg(
        sync,
        &parts,
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    );
    sys::exit_now(FAILED)
}

/// The part of the plan before the start.
struct Setup<'p> {
    sync: BorrowedFd<'p>,
    stdio: Option<&'p [OwnedFd; 3]>,
    terminal_size: Option<rustix::termios::Winsize>,
    join: &'p [(c_int, OwnedFd)],
    new_cgroup_namespace: bool,
    new_network: bool,
    container: Option<&'p ContainerPlan>,
    process: &'p ProcessPlan,
    descriptors: &'p [c_int],
}

impl<'p> Setup<'p> {
    /// Everything up to being ready.
    fn prepare(&self, scratch: &mut Scratch) -> Result<(), Fault<'p>> {
        sys::reset_signals();
        umask(Mode::empty());
        setsid().step("start a session", b"")?;
        // The container's processes must not look into this copy of the agent.
        sys::set_dumpable(false).step("become undumpable", b"")?;
        self.close_others().step("close descriptors", b"")?;
        for (kind, namespace) in self.join {
            sys::setns(namespace.as_fd(), *kind).step("join a namespace", b"")?;
        }
        if self.new_cgroup_namespace {
            // Here and not by clone3, which would take the agent's cgroup as
            // the namespace's root.
            sys::unshare(libc::CLONE_NEWCGROUP).step("make a cgroup namespace", b"")?;
        }
        if self.new_network {
            sys::loopback_up().step("bring loopback up", b"")?;
        }
        let root = match self.container {
            Some(container) => {
                name(container)?;
                root::make(container, &mut scratch.read_only)?
            }
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                open(c"/", flags, Mode::empty()).step("open", b"/")?
            }
        };
        let master = match self.stdio {
            Some([stdin, stdout, stderr]) => {
                standard_streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
                None
            }
            None => Some(self.terminal(root.as_fd())?),
        };
        if let Some(container) = self.container {
            root::enter(container, root.as_fd(), &scratch.read_only)?;
        }
        for (resource, limit) in &self.process.rlimits {
            setrlimit(*resource, *limit).step("set a resource limit", b"")?;
        }
        self.ready(master.as_ref()).step("report", b"")
    }

    /// Closes what the agent holds for others: their pipes would otherwise
    /// stay open as long as this process waits. The standard streams are
    /// replaced later; until then they keep their numbers taken.
    fn close_others(&self) -> Result<(), Errno> {
        let mut first = 3;
        for &keep in self.descriptors {
            if first < keep {
                sys::close_range(first, keep.saturating_sub(1))?;
            }
            first = keep.saturating_add(1);
        }
        sys::close_range(first, c_int::MAX)
    }

    /// Makes a terminal in the container's own devpts the standard streams
    /// and the controlling terminal; returns its master.
    fn terminal(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Fault<'p>> {
        let (master, slave) = open_terminal(root).step("open a terminal at", b"/dev/pts/ptmx")?;
        if let Some(size) = self.terminal_size {
            tcsetwinsize(&slave, size).step("set the terminal's size", b"")?;
        }
        ioctl_tiocsctty(&slave).step("take the terminal", b"")?;
        if let Some(container) = self.container {
            root::console(container, root, slave.as_fd())?;
        }
        standard_streams([slave.as_fd(); 3])?;
        Ok(master)
    }

    fn ready(&self, master: Option<&OwnedFd>) -> Result<(), Errno> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = master.map(|master| [master.as_fd()]);
        if let Some(descriptors) = &descriptors {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(
            self.sync,
            &[IoSlice::new(&[READY])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits to be started; returns the length of the start message.
    fn wait(&self, scratch: &mut Scratch) -> Result<usize, Fault<'p>> {
        let received = recv(
            self.sync,
            scratch.message.as_mut_slice(),
            RecvFlags::empty(),
        );
        let (_, length) = received.step("wait for the start", b"")?;
        if length == 0 {
            // The container is deleted before it was started.
            sys::exit_now(FAILED);
        }
        Ok(length)
    }
}

fn name(container: &ContainerPlan) -> Result<(), Fault<'_>> {
    if let Some(name) = &container.hostname {
        sethostname(name.as_bytes()).step("set host name", name.as_bytes())?;
    }
    if let Some(name) = &container.domainname {
        setdomainname(name.as_bytes()).step("set domain name", name.as_bytes())?;
    }
    Ok(())
}

fn standard_streams([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Fault<'static>> {
    dup2_stdin(stdin).step("set standard input", b"")?;
    dup2_stdout(stdout).step("set standard output", b"")?;
    dup2_stderr(stderr).step("set standard error", b"")
}

/// A new terminal's master and slave. `/dev/pts` may be the container's work,
/// so what is opened there is looked at first.
fn open_terminal(root: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), Errno> {
    const DEVPTS: i64 = 0x1cd1;
    let flags =
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let master = beneath::open(root, c"dev/pts/ptmx", flags)?;
    let real = root::is_device(master.as_fd(), makedev(5, 2))?;
    if !real || fstatfs(&master)?.f_type != DEVPTS {
        return Err(Errno::NODEV);
    }
    unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

/// Everything after the start; returns only on failure.
fn become_program<'p>(
    process: &'p mut ProcessPlan,
    scratch: &mut Scratch,
    length: usize,
) -> Fault<'p> {
    let message = scratch.message.get(..length).unwrap_or_default();
    let Some(identity) = Decoded::new(message) else {
        return Fault::exec(&process.program, Errno::PROTO);
    };
    if let Ok(home) = CStr::from_bytes_with_nul(identity.home) {
        process.environment.push(home);
    }
    let process = &*process;
    match take_identity(process, &identity, &mut scratch.groups) {
        Ok(()) => execute(process),
        Err(fault) => fault,
    }
}

fn take_identity<'p>(
    process: &'p ProcessPlan,
    identity: &Decoded<'_>,
    groups: &mut Vec<Gid>,
) -> Result<(), Fault<'p>> {
    own_streams(identity.uid).step("own the standard streams", b"")?;
    limit_bounding_set(process.capabilities.bounding).step("limit capabilities", b"")?;
    let cwd = process.cwd.to_bytes();
    // As root now, or as the user later: either may be the one who is let in.
    let entered = chdir(&*process.cwd);
    set_keep_capabilities(true).step("keep capabilities", b"")?;
    for group in identity.groups() {
        if groups.len() < groups.capacity() {
            groups.push(Gid::from_raw(group));
        }
    }
    set_thread_groups(groups).step("set groups", b"")?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid).step("set group", b"")?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid).step("set user", b"")?;
    set_keep_capabilities(false).step("keep capabilities", b"")?;
    if entered.is_err() {
        chdir(&*process.cwd).step("enter working directory", cwd)?;
    }
    match sys::working_directory_reachable() {
        Ok(true) => {}
        Ok(false) => return Err(Errno::NOENT).step("stay inside the root in", cwd),
        Err(errno) => return Err(errno).step("find working directory", cwd),
    }
    set_capability_sets(&process.capabilities).step("set capabilities", b"")?;
    if process.no_new_privileges {
        set_no_new_privs(true).step("set no_new_privs", b"")?;
    }
    umask(Mode::from_bits_truncate(process.umask));
    Ok(())
}

/// Gives the standard streams to the process's user, so that it can open
/// `/dev/stdout` again. `/dev/null` is everybody's already.
fn own_streams(uid: u32) -> Result<(), Errno> {
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let null = root::is_device(stream, makedev(1, 3))?;
        if !null && rustix::fs::fstat(stream)?.st_uid != uid {
            fchown(stream, Some(Uid::from_raw(uid)), None)?;
        }
    }
    Ok(())
}

fn limit_bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !keep.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // Beyond the last one that this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

fn set_capability_sets(plan: &CapabilityPlan) -> Result<(), Errno> {
    let sets = CapabilitySets {
        effective: plan.effective,
        permitted: plan.permitted,
        inheritable: plan.inheritable,
    };
    set_capabilities(None, sets)?;
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if plan.ambient.contains(capability) {
            configure_capability_in_ambient_set(capability, true)?;
        }
    }
    Ok(())
}

/// Tries every candidate, like execvp(3).
fn execute(process: &ProcessPlan) -> Fault<'_> {
    let mut answer = Errno::NOENT;
    for candidate in &process.candidates {
        let errno = sys::execve(candidate, &process.arguments, &process.environment);
        match errno {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => answer = refine(candidate),
            _ => return Fault::exec(&process.program, errno),
        }
    }
    Fault::exec(&process.program, answer)
}

/// `execve` says the same of a directory as of a file without permission.
fn refine(candidate: &CStr) -> Errno {
    match rustix::fs::stat(candidate) {
        Ok(status)
            if rustix::fs::FileType::from_raw_mode(status.st_mode)
                == rustix::fs::FileType::Directory =>
        {
            Errno::ISDIR
        }
        _ => Errno::ACCESS,
    }
}
