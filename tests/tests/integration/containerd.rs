//! containerd drives nerite as it drives runc.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::containerd::{Containerd, NERITE, RUNC};
use tests::leftovers::HostState;
use tests::{Outcome, TEARDOWN, eventually};

const ROOT: &str = "/srv/roots/debian";

/// How soon an engine's question has to be answered, whatever has died, on a
/// machine that is emulated.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What `ctr run` is given for a container `id` of `runtime`, before the
/// program. An image would say where programs are.
fn container<'a>(options: &[&'a str], runtime: &'a str, id: &'a str) -> Vec<&'a str> {
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    let fixed = ["--runtime", runtime, "--env", path, "--rootfs", ROOT, id];
    [&["run"], options, &fixed[..]].concat()
}

/// What the host has, without what containerd leaves for its next shims.
fn quiet() -> HostState {
    let _ = std::fs::remove_dir_all("/run/containerd");
    HostState::quiet()
}

/// Asserts that nothing else is left, no shim's socket either.
fn assert_restored(before: &HostState) {
    let sockets = std::fs::read_dir("/run/containerd/s").unwrap();
    let sockets: Vec<_> = sockets.map(|entry| entry.unwrap().path()).collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    let _ = std::fs::remove_dir_all("/run/containerd");
    before.assert_restored();
}

/// Runs a script in a container of a runtime, to its end.
fn run(containerd: &Containerd, runtime: &str, script: &str) -> Outcome {
    let arguments = container(&["--rm"], runtime, "c");
    containerd.ctr(&[&arguments[..], &["sh", "-c", script]].concat())
}

/// Starts a script in a container that stays.
fn start(containerd: &Containerd, id: &str, script: &str) {
    let arguments = container(&["-d"], NERITE, id);
    containerd.succeed(&[&arguments[..], &["sh", "-c", script]].concat());
}

/// What the engine says that a container is at.
fn status(containerd: &Containerd, id: &str) -> Option<String> {
    let list = containerd.succeed(&["task", "ls"]);
    let line = list
        .lines()
        .find(|line| line.split_whitespace().next() == Some(id))?;
    Some(line.split_whitespace().last()?.to_owned())
}

fn is(containerd: &Containerd, id: &str, wanted: &str) -> bool {
    eventually(AT_ONCE, || {
        status(containerd, id).as_deref() == Some(wanted)
    })
}

/// Removes a container's task; answers the exit status that the engine has for
/// it.
fn remove(containerd: &Containerd, id: &str) -> Option<i32> {
    let removed = containerd.ctr(&["task", "rm", id]);
    assert_eq!(removed.status, 0, "{removed:?}");
    let (_, status) = removed.stderr.trim().rsplit_once("exit code ")?;
    status.trim_end_matches('"').parse().ok()
}

/// Kills what has this name.
fn kill(name: &str) {
    let done = Command::new("pkill").args(["-KILL", "-f", name]).status();
    assert!(done.unwrap().success(), "no {name}");
}

#[test]
fn output_and_status_are_what_they_are_with_runc() {
    let containerd = Containerd::start();
    for script in [
        "echo out; echo err >&2; id -u; pwd; exit 7",
        "kill -9 $$",
        "head -c 3000000 /dev/zero | tr '\\0' x",
    ] {
        let [ours, theirs] = [NERITE, RUNC].map(|runtime| run(&containerd, runtime, script));
        assert_eq!(ours.status, theirs.status, "{script}: {}", containerd.log());
        assert_eq!(ours.stdout, theirs.stdout, "{script}");
        assert_eq!(ours.stderr, theirs.stderr, "{script}");
    }
}

#[test]
fn input_reaches_the_process_and_ends() {
    let containerd = Containerd::start();
    let mut child = containerd
        .command(&container(&["--rm"], NERITE, "c"))
        .args(["sh", "-c", "echo begun; cat; echo end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it runs: `ctr` does not tell of an end that it meets before.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n", "{}", containerd.log());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").unwrap();
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "one\ntwo\nend\n", "{}", containerd.log());
    assert!(child.wait().unwrap().success());
}

#[test]
fn container_is_followed_paused_joined_and_removed() {
    let before = quiet();
    {
        let containerd = Containerd::start();
        start(
            &containerd,
            "c",
            "trap 'exit 3' TERM; while :; do sleep 0.1; done",
        );
        assert!(is(&containerd, "c", "RUNNING"));
        let exec =
            |script| containerd.ctr(&["task", "exec", "--exec-id", "e", "c", "sh", "-c", script]);
        let outcome = exec("echo joined; exit 5");
        assert_eq!((outcome.stdout.as_str(), outcome.status), ("joined\n", 5));
        let outcome = exec("cat /proc/1/comm; echo err >&2");
        assert_eq!(
            (outcome.stdout.as_str(), outcome.stderr.as_str()),
            ("sh\n", "err\n")
        );
        containerd.succeed(&["task", "pause", "c"]);
        assert!(is(&containerd, "c", "PAUSED"));
        containerd.succeed(&["task", "resume", "c"]);
        assert!(is(&containerd, "c", "RUNNING"));
        let metrics = containerd.succeed(&["task", "metrics", "c"]);
        assert!(metrics.contains("memory"), "{metrics}");
        let processes = containerd.succeed(&["task", "ps", "c"]);
        assert!(processes.lines().count() >= 2, "{processes}");
        // While it runs it cannot be removed.
        let refused = containerd.ctr(&["task", "rm", "c"]);
        assert_ne!(refused.status, 0, "{refused:?}");
        containerd.succeed(&["task", "kill", "-s", "TERM", "c"]);
        assert!(is(&containerd, "c", "STOPPED"));
        // Its machine is gone, its status is not.
        let machine = || Command::new("pgrep").args(["-x", "nerite-vmm"]).output();
        assert!(eventually(TEARDOWN, || !machine()
            .unwrap()
            .status
            .success()));
        assert_eq!(remove(&containerd, "c"), Some(3));
        containerd.succeed(&["container", "rm", "c"]);
    }
    assert_restored(&before);
}

#[test]
fn events_are_containerds_in_order() {
    let containerd = Containerd::start();
    let mut events = containerd
        .command(&["events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = events.stdout.take().unwrap();
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Whoever wanted it may have failed meanwhile.
            let _ = sender.send(line);
        }
    });
    // The subscription is not told: an event of the test's own shows it.
    let mut number = 0..;
    assert!(eventually(AT_ONCE, || {
        let id = format!("probe{}", number.next().unwrap());
        containerd.succeed(&["namespace", "create", &id]);
        let line = lines.recv_timeout(Duration::from_millis(200));
        line.is_ok_and(|line| line.contains("/namespaces/"))
    }));
    start(
        &containerd,
        "c",
        "while [ ! -e /tmp/end-of-events ]; do sleep 0.1; done",
    );
    containerd.succeed(&["task", "exec", "--exec-id", "e", "c", "true"]);
    containerd.succeed(&["task", "kill", "-s", "KILL", "c"]);
    assert!(is(&containerd, "c", "STOPPED"));
    assert_eq!(remove(&containerd, "c"), Some(137));
    let mut topics = Vec::new();
    while topics.last().map(String::as_str) != Some("/tasks/delete") {
        let line = lines.recv_timeout(TEARDOWN).expect("all events");
        let words = line.split_whitespace().map(str::to_owned);
        topics.extend(words.filter(|word| word.starts_with("/tasks/")));
    }
    let more = lines.recv_timeout(Duration::from_secs(1));
    assert!(more.is_err(), "{more:?}");
    events.kill().unwrap();
    events.wait().unwrap();
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(topics, expected);
}

#[test]
fn what_cannot_be_run_is_refused_in_words() {
    let before = quiet();
    {
        let containerd = Containerd::start();
        let arguments = container(&["--rm"], NERITE, "c");
        let outcome = containerd.ctr(&[&arguments[..], &["/no/such/program"]].concat());
        assert_ne!(outcome.status, 0);
        assert!(outcome.stderr.contains("/no/such/program"), "{outcome:?}");
        // And the name is free again.
        assert_eq!(run(&containerd, NERITE, "echo again").stdout, "again\n");
    }
    assert_restored(&before);
}

#[test]
fn whatever_dies_the_engine_is_answered_and_nothing_stays() {
    for victim in ["nerite-vmm", "nerite-fs", "containerd-shim-nerite-v2"] {
        let before = quiet();
        {
            let containerd = Containerd::start();
            start(&containerd, "c", "sleep 1000");
            kill(victim);
            if victim == "nerite-fs" {
                // Its files answer with errors, of which it may die by itself.
                let _ = containerd.ctr(&["task", "kill", "-s", "KILL", "c"]);
            }
            let over = || matches!(status(&containerd, "c").as_deref(), None | Some("STOPPED"));
            assert!(eventually(AT_ONCE, over), "{victim}: {}", containerd.log());
            let status = status(&containerd, "c").map(|_| remove(&containerd, "c"));
            let killed = matches!(status, None | Some(Some(137)));
            assert!(killed || victim == "nerite-fs", "{victim}: {status:?}");
            containerd.succeed(&["container", "rm", "c"]);
        }
        assert_restored(&before);
    }
}

#[test]
fn container_outlives_its_engine() {
    let mut containerd = Containerd::start();
    start(
        &containerd,
        "c",
        "trap 'exit 4' TERM; while :; do sleep 0.1; done",
    );
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        containerd.restart(signal);
        assert!(is(&containerd, "c", "RUNNING"), "{}", containerd.log());
        let outcome = containerd.ctr(&["task", "exec", "--exec-id", "e", "c", "echo", "there"]);
        assert_eq!(outcome.stdout, "there\n", "{outcome:?}");
    }
    containerd.succeed(&["task", "kill", "-s", "TERM", "c"]);
    assert!(is(&containerd, "c", "STOPPED"));
    assert_eq!(remove(&containerd, "c"), Some(4));
    containerd.succeed(&["container", "rm", "c"]);
}
