//! Processes: other users, other lock owners, programs to be run.

use std::ffi::CString;
use std::os::fd::RawFd;

use super::{Fd, NULL, Res, Word, call, done, path, pipe, read, write};
use crate::errno::Errno;

/// Who acts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'static [u32],
}

/// A user in a group of its own only.
pub(crate) const fn user(uid: u32) -> User {
    User {
        uid,
        gid: uid,
        groups: &[],
    }
}

/// Another process; waits for it when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    id: i32,
    output: Fd,
}

/// Runs `body` in a process of its own, which this one goes on beside.
pub(crate) fn start(body: impl FnOnce() -> String) -> Res<Child> {
    let (output, input) = pipe(libc::O_CLOEXEC)?;
    // SAFETY: there is one thread, so the child may do whatever it could.
    let id = unsafe { libc::fork() };
    if id < 0 {
        return Err(Errno::last());
    }
    if id == 0 {
        drop(output);
        let _ = write(input.raw(), body());
        // SAFETY: ends the process at once, which is what is wanted: nothing
        // of the parent's is to be done twice.
        unsafe { libc::_exit(0) };
    }
    Ok(Child { id, output })
}

impl Child {
    /// Waits for its end: what it said, or what has ended it.
    pub(crate) fn result(self) -> String {
        let mut said = Vec::new();
        while let Ok(more) = read(self.output.raw(), 65_536) {
            if more.is_empty() {
                break;
            }
            said.extend(more);
        }
        let status = wait(self.id);
        std::mem::forget(self);
        match status {
            Ok(0) => String::from_utf8_lossy(&said).into_owned(),
            Ok(status) if libc::WIFSIGNALED(status) => {
                format!("signal-{}", libc::WTERMSIG(status))
            }
            Ok(status) => format!("status-{}", libc::WEXITSTATUS(status)),
            Err(errno) => format!("wait: {errno}"),
        }
    }

    pub(crate) fn signal(&self, number: i32) -> Res<()> {
        done(libc::SYS_kill, [self.id.into(), number.into()])
    }

    /// Its process id.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = wait(self.id);
    }
}

fn wait(id: i32) -> Res<i32> {
    let mut status = 0_i32;
    loop {
        match call(
            libc::SYS_wait4,
            [id.into(), super::at(&mut status), NULL, NULL],
        ) {
            Ok(_) => return Ok(status),
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What `body` says in a process of its own.
pub(crate) fn apart(body: impl FnOnce() -> String) -> String {
    match start(body) {
        Ok(child) => child.result(),
        Err(errno) => format!("fork: {errno}"),
    }
}

/// What `body` says as another user.
pub(crate) fn run_as(user: User, body: impl FnOnce() -> String) -> String {
    apart(|| match become_user(user) {
        Ok(()) => body(),
        Err(errno) => format!("become {}: {errno}", user.uid),
    })
}

fn become_user(user: User) -> Res<()> {
    let list = Word(user.groups.as_ptr().expose_provenance());
    done(libc::SYS_setgroups, [user.groups.len().into(), list])?;
    let gid = Word::from(user.gid);
    done(libc::SYS_setresgid, [gid, gid, gid])?;
    let uid = Word::from(user.uid);
    done(libc::SYS_setresuid, [uid, uid, uid])
}

/// The process's effective user, with the saved one kept.
pub(crate) fn set_effective_user(uid: u32) -> Res<()> {
    let keep = Word::from(-1);
    done(libc::SYS_setresuid, [keep, uid.into(), keep])
}

/// Takes a capability out of the effective set.
pub(crate) fn drop_capability(number: u32) -> Res<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Effective, permitted and inheritable, of the lower and the upper half.
    let mut sets = [0_u32; 6];
    done(
        libc::SYS_capget,
        [super::at(&mut header), super::at(&mut sets)],
    )?;
    if let Some(effective) = sets.get_mut(if number < 32 { 0 } else { 3 }) {
        *effective &= !(1 << (number % 32));
    }
    done(
        libc::SYS_capset,
        [super::at(&mut header), super::at(&mut sets)],
    )
}

/// Runs a program in this process's place; only fails.
pub(crate) fn exec(program: impl AsRef<[u8]>) -> Res<()> {
    let name = path(program);
    exec_at(libc::AT_FDCWD, &name, 0)
}

/// Runs an open program.
pub(crate) fn exec_descriptor(descriptor: RawFd) -> Res<()> {
    exec_at(descriptor, &CString::default(), libc::AT_EMPTY_PATH)
}

fn exec_at(directory: RawFd, name: &CString, flags: i32) -> Res<()> {
    let argument = path("program");
    let arguments = [argument.as_ptr(), std::ptr::null()];
    let none: [*const libc::c_char; 1] = [std::ptr::null()];
    done(
        libc::SYS_execveat,
        [
            directory.into(),
            name.into(),
            Word(arguments.as_ptr().expose_provenance()),
            Word(none.as_ptr().expose_provenance()),
            flags.into(),
        ],
    )
}

/// Waits so long.
pub(crate) fn pause(milliseconds: u32) {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(milliseconds) * 1_000_000,
    };
    let _ = done(libc::SYS_nanosleep, [super::at(&mut time), NULL]);
}

/// Ends this process after so many seconds, if it waits for what never comes.
pub(crate) fn alarm(seconds: u32) {
    // SAFETY: takes a plain number and cannot fail.
    unsafe { libc::alarm(seconds) };
}

/// Lets a signal interrupt a call instead of ending the process.
pub(crate) fn catch(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all-zero bytes are a valid sigaction: no flags, an empty mask.
    // Without SA_RESTART a call that waits ends with EINTR.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = (nothing as extern "C" fn(i32)) as usize;
    // SAFETY: reads the structure; the handler does nothing at all.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// Limits the length of files, and ignores the signal that goes with it.
pub(crate) fn limit_file_size(bytes: u64) -> Res<()> {
    // SAFETY: takes plain numbers; ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut limit = [bytes, bytes];
    done(
        libc::SYS_prlimit64,
        [NULL, libc::RLIMIT_FSIZE.into(), super::at(&mut limit), NULL],
    )
}

/// Until another process waits in the kernel: it sleeps, or has ended.
pub(crate) fn until_asleep(child: &Child) {
    for _ in 0..500 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        if stat.contains(") S ") || stat.contains(") Z ") || stat.contains(") D ") {
            return;
        }
        pause(10);
    }
}
