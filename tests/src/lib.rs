//! What the integration tests share: running `nerite` as a person would, and
//! looking at what it leaves behind.
//!
//! The tests need real KVM and the container roots of the test machine;
//! `make integration` builds them and runs them there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test says what failed by panicking"
)]

pub mod bundle;
pub mod containerd;
pub mod leftovers;
pub mod pty;
pub mod raw;

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An ordinary root with a dynamic busybox.
pub const BUSYBOX: &str = "/srv/roots/busybox";

/// A minimal Debian 13.
pub const DEBIAN: &str = "/srv/roots/debian";

/// A Debian with fio, SQLite and PostgreSQL.
pub const WORKBENCH: &str = "/srv/roots/workbench";

/// How long the host's kernel may take to free a virtual machine whose
/// keeper has returned already: grace periods, tens of milliseconds, and
/// more in emulation.
pub const TEARDOWN: Duration = Duration::from_secs(10);

/// How a command ended and what it said.
#[derive(Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Exit status; 128 plus the signal when one ended `nerite` itself.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            status: output.status.code().or(signal).unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// `nerite` with arguments, streams captured, nothing to read.
#[must_use]
pub fn nerite(arguments: &[&str]) -> Command {
    let mut command = Command::new("nerite");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `nerite` to its end.
///
/// # Panics
///
/// When `nerite` cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Outcome {
    nerite(arguments).output().expect("start nerite").into()
}

/// Runs `nerite try` of a shell script in the busybox root.
#[must_use]
pub fn shell(options: &[&str], script: &str) -> Outcome {
    let mut arguments = vec!["try"];
    arguments.extend(options);
    arguments.extend([BUSYBOX, "sh", "-c", script]);
    run(&arguments)
}

/// Starts `nerite try` of a shell script in the busybox root with pipes.
///
/// # Panics
///
/// When `nerite` cannot be started.
#[must_use]
pub fn start_shell(options: &[&str], script: &str) -> Child {
    let mut arguments = vec!["try"];
    arguments.extend(options);
    arguments.extend([BUSYBOX, "sh", "-c", script]);
    nerite(&arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start nerite")
}

/// Feeds input and collects the outcome.
///
/// # Panics
///
/// When the pipes break.
#[must_use]
pub fn feed(mut child: Child, input: &[u8]) -> Outcome {
    let mut stdin = child.stdin.take().expect("a piped stdin");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("wait for nerite").into()
    })
}

/// Waits until something holds, at most so long; says whether it does.
#[must_use]
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            return false;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the thing watched gives no event"
        )]
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
