//! The one place that waits for children, orphans included.
//!
//! As PID 1 the agent is the parent of whatever loses its own. A process id
//! is free for use again only when it has been reaped here, and is looked up
//! here in the same step, so no exit can be given to the wrong process.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, WaitOptions, wait};
use tokio::io::Interest;

use crate::sys;

/// Calls `ended` with the id and status (0–255, or 128 plus the signal) of
/// every child that ends, until the descriptor fails.
pub(crate) async fn reap(signals: OwnedFd, ended: impl Fn(Pid, u32)) -> io::Result<()> {
    let signals = sys::asynchronous(signals, Interest::READABLE)?;
    loop {
        let mut guard = signals.readable().await?;
        // A signalfd's record; what it says does not matter, since signals of
        // several children may have become one.
        let mut record = [0_u8; 128];
        match guard.try_io(|fd| Ok(rustix::io::read(fd, &mut record)?)) {
            Ok(result) => drop(result?),
            Err(_nothing) => continue,
        }
        reap_all(&ended)?;
    }
}

fn reap_all(ended: &impl Fn(Pid, u32)) -> io::Result<()> {
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => signal.saturating_add(128),
            // Only ends are asked for.
            (None, None) => continue,
        };
        ended(pid, code.unsigned_abs());
    }
}
