//! OCI bundles for `nerite run` and, where the two are compared, `runc run`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{BUSYBOX, Outcome, TEARDOWN, eventually};

/// What it takes to own files as root does.
const OWNERS_CAPABILITIES: [&str; 5] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
];

/// Docker's default set.
pub const DOCKER_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Where bundles with large roots are: on the machine's disk.
const DISK: &str = "/srv";

/// A bundle in a directory of its own.
#[derive(Debug)]
pub struct Bundle {
    /// Where it is.
    pub directory: tempfile::TempDir,
    mounted: bool,
    /// What is written to `config.json`.
    pub config: Value,
}

impl Bundle {
    /// A copy of the busybox root, which the program may change.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn new(args: &[&str]) -> Self {
        let bundle = Self::unchanged(BUSYBOX, &std::env::temp_dir());
        bundle.changed(args, &OWNERS_CAPABILITIES)
    }

    /// A shell script in the busybox root.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// A bundle whose root is elsewhere and not copied.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn on(root: &Path, args: &[&str]) -> Self {
        let bundle = Self::specified(tempfile::tempdir().unwrap());
        let mut bundle = bundle.changed(args, &OWNERS_CAPABILITIES);
        bundle.config["root"]["path"] = json!(root);
        bundle
    }

    /// A copy of `root` on the machine's disk, with what Docker permits.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn copy(root: &str, args: &[&str]) -> Self {
        Self::unchanged(root, Path::new(DISK)).changed(args, &DOCKER_CAPABILITIES)
    }

    /// A root on overlayfs, as engines make it: `root` is not changed.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn overlay(root: &str, args: &[&str]) -> Self {
        let directory = tempfile::tempdir_in(DISK).unwrap();
        let place = |name| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (upper, work, merged) = (place("upper"), place("work"), place("rootfs"));
        let options = format!(
            "lowerdir={root},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        let merged = merged.to_str().unwrap();
        succeed(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay", merged]));
        let mut bundle = Self::specified(directory);
        bundle.mounted = true;
        bundle.changed(args, &DOCKER_CAPABILITIES)
    }

    /// A copy of `root` in a new directory in `place`, and what `runc spec`
    /// says.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn unchanged(root: &str, place: &Path) -> Self {
        let directory = tempfile::tempdir_in(place).unwrap();
        let copy = directory.path().join("rootfs");
        succeed(Command::new("cp").args(["-a", root]).arg(copy));
        Self::specified(directory)
    }

    fn specified(directory: tempfile::TempDir) -> Self {
        succeed(Command::new("runc").arg("spec").current_dir(&directory));
        let text = fs::read(directory.path().join("config.json")).unwrap();
        let config = serde_json::from_slice(&text).unwrap();
        Self {
            directory,
            mounted: false,
            config,
        }
    }

    /// Another program without a terminal, which may write to its root.
    fn changed(mut self, args: &[&str], capabilities: &[&str]) -> Self {
        self.program(args);
        self.config["process"]["terminal"] = json!(false);
        self.config["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(capabilities);
        }
        self
    }

    /// Another program.
    pub fn program(&mut self, args: &[&str]) {
        self.config["process"]["args"] = json!(args);
    }

    /// Another shell script.
    pub fn script(&mut self, script: &str) {
        self.program(&["sh", "-c", script]);
    }

    /// So many MiB of memory and so many processors.
    pub fn limit(&mut self, memory: u64, processors: u64) {
        self.config["linux"]["resources"]["memory"] = json!({ "limit": memory << 20 });
        self.config["linux"]["resources"]["cpu"] =
            json!({ "quota": processors * 100_000, "period": 100_000 });
    }

    /// A file in the root.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path)
    }

    /// A path in the bundle, beside the root.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds an annotation.
    pub fn annotate(&mut self, name: &str, value: &str) {
        let all = &mut self.config["annotations"];
        if all.is_null() {
            *all = json!({});
        }
        all[name] = json!(value);
    }

    /// Adds a mount.
    ///
    /// # Panics
    ///
    /// When the configuration has no list of mounts.
    pub fn mount(
        &mut self,
        kind: &str,
        source: impl AsRef<Path>,
        destination: &str,
        options: &[&str],
    ) {
        let mount = json!({
            "type": kind, "source": source.as_ref(), "destination": destination, "options": options,
        });
        self.mounts().push(mount);
    }

    /// Adds a bind mount.
    ///
    /// # Panics
    ///
    /// When the configuration has no list of mounts.
    pub fn bind(&mut self, source: &Path, destination: &str, options: &[&str]) {
        self.mount("bind", source, destination, options);
    }

    /// The mounts.
    ///
    /// # Panics
    ///
    /// When the configuration has no list of mounts.
    pub fn mounts(&mut self) -> &mut Vec<Value> {
        self.config["mounts"].as_array_mut().expect("mounts")
    }

    /// Writes the configuration; answers the bundle's path.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn write(&self) -> &Path {
        let text = serde_json::to_vec(&self.config).unwrap();
        fs::write(self.directory.path().join("config.json"), text).unwrap();
        self.directory.path()
    }

    /// The command that lets `runtime`, `nerite` or `runc`, run it.
    ///
    /// # Panics
    ///
    /// When the configuration cannot be written.
    #[must_use]
    pub fn command(&self, runtime: &str) -> Command {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(runtime);
        command
            .args(["run", "--bundle"])
            .arg(self.write())
            .arg(id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(&self) -> Outcome {
        self.run_by("nerite")
    }

    /// The command that runs it with `nerite`.
    ///
    /// # Panics
    ///
    /// When the configuration cannot be written.
    #[must_use]
    pub fn nerite(&self) -> Command {
        self.command("nerite")
    }

    /// Lets `runc` run it to its end.
    #[must_use]
    pub fn runc(&self) -> Outcome {
        self.run_by("runc")
    }

    /// Lets `runtime` run it to its end.
    ///
    /// # Panics
    ///
    /// When the runtime cannot be started.
    #[must_use]
    pub fn run_by(&self, runtime: &str) -> Outcome {
        self.command(runtime)
            .output()
            .expect("start the runtime")
            .into()
    }

    /// Runs a script to success; answers what it printed.
    ///
    /// # Panics
    ///
    /// When it fails, or says anything on standard error.
    #[must_use]
    pub fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!((outcome.status, &*outcome.stderr), (0, ""), "{outcome:?}");
        outcome.stdout
    }

    /// Starts it.
    #[must_use]
    pub fn start(&self) -> Running {
        self.start_by("nerite")
    }

    /// Lets `runtime` start it.
    ///
    /// # Panics
    ///
    /// When the runtime cannot be started.
    #[must_use]
    pub fn start_by(&self, runtime: &str) -> Running {
        let mut child = self
            .command(runtime)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("start the runtime");
        let stdout = BufReader::new(child.stdout.take().expect("a piped stdout"));
        Running { child, stdout }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: what is still torn down must not fail another test.
            let root = self.directory.path().join("rootfs");
            let _ = Command::new("umount").arg("-l").arg(root).status();
        }
    }
}

/// A bundle that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// The next line that the program says, `None` when it has ended. What it
    /// did not end with a newline is no line.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read the program");
        line.strip_suffix('\n').map(str::to_owned)
    }

    /// Kills its virtual machine.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub fn kill_machine(&self) {
        let parent = self.child.id().to_string();
        let found = succeed(Command::new("pgrep").args(["-x", "nerite-vmm", "-P", &parent]));
        let id = found.trim().parse().expect("one nerite-vmm");
        kill(Pid::from_raw(id), Signal::SIGKILL).unwrap();
    }

    /// Kills its keeper.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn kill_keeper(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), Signal::SIGKILL).unwrap();
    }

    /// Waits for the end, also of all that serves it.
    ///
    /// # Panics
    ///
    /// When something stays.
    pub fn wait(mut self) -> ExitStatus {
        while self.line().is_some() {}
        let status = self.child.wait().expect("wait for nerite");
        let gone = eventually(TEARDOWN, || {
            Command::new("pgrep")
                .args(["-x", "nerite-vmm|nerite-fs"])
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|status| !status.success())
        });
        assert!(gone, "the machine or its broker outlives the keeper");
        status
    }
}

/// Runs a program to success.
///
/// # Panics
///
/// When it fails; with what it said.
pub fn command(program: &str, arguments: &[&str]) {
    succeed(Command::new(program).args(arguments).stdin(Stdio::null()));
}

/// Runs a command to success.
///
/// # Panics
///
/// When it fails; with what it said.
pub fn succeed(command: &mut Command) -> String {
    let outcome: Outcome = command.output().expect("start the command").into();
    assert_eq!(outcome.status, 0, "{command:?}: {outcome:?}");
    outcome.stdout
}
