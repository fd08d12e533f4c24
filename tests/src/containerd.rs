//! A containerd of the test's own, started as a service manager would.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{Outcome, eventually};

/// nerite as containerd knows it.
pub const NERITE: &str = "io.containerd.nerite.v2";

/// runc as containerd knows it.
pub const RUNC: &str = "io.containerd.runc.v2";

/// How long a containerd may take to answer its first client.
const READY: Duration = Duration::from_secs(60);

/// A running containerd. Dropping it ends it; containers and their keepers
/// are the test's own affair.
#[derive(Debug)]
pub struct Containerd {
    directory: TempDir,
    child: Child,
}

impl Containerd {
    /// Starts one and waits for its answer.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = spawn(directory.path());
        let started = Self { directory, child };
        started.wait_until_ready();
        started
    }

    /// Ends it, with `signal`, and starts it again.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn restart(&mut self, signal: Signal) {
        self.end(signal);
        self.child = spawn(self.directory.path());
        self.wait_until_ready();
    }

    fn end(&mut self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        // It may have ended.
        let _ = kill(Pid::from_raw(id), signal);
        self.child.wait().expect("wait for containerd");
    }

    fn wait_until_ready(&self) {
        let ready = eventually(READY, || self.ctr(&["version"]).status == 0);
        assert!(ready, "containerd does not answer: {}", self.log());
    }

    /// What it has logged.
    ///
    /// # Panics
    ///
    /// When that cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// A `ctr` with these arguments.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.directory.path().join("socket"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn ctr(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.command(arguments);
        command.output().expect("start ctr").into()
    }

    /// Runs `ctr` to success; answers what it printed.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let outcome = self.ctr(arguments);
        assert_eq!(
            outcome.status,
            0,
            "{arguments:?}: {outcome:?}\n{}",
            self.log()
        );
        outcome.stdout
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
    }
}

fn spawn(directory: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .unwrap();
    // No CRI: nothing here has its networks.
    let config = directory.join("config.toml");
    let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    fs::write(&config, text).unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(config)
        .arg("--root")
        .arg(directory.join("root"))
        .arg("--state")
        .arg(directory.join("state"))
        .arg("--address")
        .arg(directory.join("socket"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("start containerd")
}
