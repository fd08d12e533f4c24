//! Children that have been killed and that nobody waits for.

use std::process::Child;
use std::thread;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Enough for one system call.
const STACK: usize = 32 << 10;

/// Kills a child and has its remains taken away, by a thread: freeing a
/// virtual machine takes the host's kernel tens of milliseconds, which no
/// caller should pay for. Nobody may wait for it afterwards.
pub(crate) fn kill(child: &mut Child) {
    // An error means that it is dead already.
    let _ = child.kill();
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let Ok(id) = i32::try_from(child.id()) else {
        return;
    };
    let reaper = thread::Builder::new()
        .name("reaper".into())
        .stack_size(STACK)
        .spawn(move || waitpid(Pid::from_raw(id), None));
    // Without a thread its remains stay until this process ends.
    drop(reaper);
}
