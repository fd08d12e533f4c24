//! Locks on files of a volume, between a guest, the host and another guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use tempfile::TempDir;
use tests::DEBIAN;
use tests::bundle::{Bundle, Running};
use tests::eventually;

/// Long for a lock, short for a machine that is being torn down.
const SOON: Duration = Duration::from_secs(20);

/// Locks a file's first byte by fcntl(2) as `F_SETLK` or `F_SETLKW` and says
/// what comes of it. The host's kernel is the guest's, as far as Perl sees.
const RECORD: &str = r#"
use strict; use Fcntl qw(:DEFAULT :flock); $| = 1;
my ($command, $path) = @ARGV;
open(my $file, "+<", $path) or die "open: $!";
my $lock = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 1, 0);
my $done = fcntl($file, $command eq "wait" ? F_SETLKW : F_SETLK, $lock);
print $done ? "locked\n" : "refused: $!\n";
<STDIN>;
"#;

struct Volume {
    directory: TempDir,
    file: File,
}

impl Volume {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { directory, file }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("file")
    }

    /// A lock of the host's by flock(2), as long as the answer is kept.
    fn lock(&self) -> File {
        let file = File::open(self.path()).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    }

    fn is_locked(&self) -> bool {
        let file = File::open(self.path()).unwrap();
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(Errno::AGAIN) => true,
            Err(error) => panic!("{error}"),
        }
    }

    fn bundle(&self, args: &[&str]) -> Bundle {
        let mut bundle = Bundle::on(Path::new(DEBIAN), args);
        bundle.bind(self.directory.path(), "/v", &["rbind"]);
        bundle
    }

    fn shell(&self, script: &str) -> Bundle {
        self.bundle(&["sh", "-c", script])
    }
}

/// A container that runs, and the bundle that it needs.
fn start(bundle: Bundle) -> (Running, Bundle) {
    (bundle.start(), bundle)
}

#[test]
fn guest_meets_the_locks_of_the_host() {
    let volume = Volume::new();
    let attempt = "flock -n /v/file echo locked || echo refused";
    assert_eq!(volume.shell(attempt).output(), "locked\n");
    let held = volume.lock();
    assert_eq!(volume.shell(attempt).output(), "refused\n");
    drop(held);
    let bundle = volume.bundle(&["perl", "-e", RECORD, "now", "/v/file"]);
    fcntl_lock(&volume.file, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(
        bundle.output(),
        "refused: Resource temporarily unavailable\n"
    );
    fcntl_lock(&volume.file, FlockOperation::Unlock).unwrap();
    assert_eq!(bundle.output(), "locked\n");
}

#[test]
fn host_and_other_guests_meet_the_locks_of_a_guest() {
    let volume = Volume::new();
    let holding = "exec 9</v/file; flock 9; echo locked; sleep 1000";
    let (mut holder, _bundle) = start(volume.shell(holding));
    assert_eq!(holder.line().as_deref(), Some("locked"));
    assert!(volume.is_locked());
    let other = volume.shell("flock -n /v/file echo locked || echo refused");
    assert_eq!(other.output(), "refused\n");
    // And they end with it, however it ends.
    holder.kill_machine();
    holder.wait();
    assert!(eventually(SOON, || !volume.is_locked()));
}

#[test]
fn guest_waits_for_the_host() {
    let volume = Volume::new();
    for script in [
        "echo begun; flock /v/file echo locked".to_owned(),
        format!("echo begun; perl -e '{RECORD}' wait /v/file </dev/null"),
    ] {
        let held = volume.lock();
        fcntl_lock(&volume.file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let (mut waiting, _bundle) = start(volume.shell(&script));
        assert_eq!(waiting.line().as_deref(), Some("begun"));
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing tells that a program waits"
        )]
        std::thread::sleep(Duration::from_secs(2));
        let released = Instant::now();
        fcntl_lock(&volume.file, FlockOperation::Unlock).unwrap();
        drop(held);
        assert_eq!(waiting.line().as_deref(), Some("locked"), "{script}");
        assert!(released.elapsed() < SOON);
        assert!(waiting.wait().success());
    }
}

#[test]
fn program_that_waits_can_be_killed() {
    let volume = Volume::new();
    let held = volume.lock();
    // By another process, with and without a handler of its own; and when the
    // container's first process ends.
    let script = "timeout 1 flock /v/file true; echo $?
        timeout -s KILL 1 flock /v/file true; echo $?
        perl -e '$SIG{ALRM} = sub { print \"alarm\n\"; die }; alarm 1;
            open(my $file, \"<\", \"/v/file\"); flock($file, 2)' 2>/dev/null
        flock /v/file true & sleep 1; echo end";
    let (mut waiting, _bundle) = start(volume.shell(script));
    let begun = Instant::now();
    for expected in ["124", "137", "alarm", "end"] {
        assert_eq!(waiting.line().as_deref(), Some(expected));
    }
    waiting.wait();
    assert!(begun.elapsed() < SOON);
    drop(held);
}

#[test]
fn processes_of_a_guest_hand_a_lock_on() {
    let volume = Volume::new();
    // Each adds one to what it reads, which goes wrong without the lock.
    let script = "echo 0 >/v/count
        add() { for i in $(seq 20); do
            flock /v/file sh -c 'read n </v/count; echo $((n + 1)) >/v/count'; done; }
        add & add & add & add & wait; cat /v/count";
    assert_eq!(volume.shell(script).output(), "80\n");
}
