//! inotify in a container on what others change on the host.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tests::bundle::Bundle;

const WORKBENCH: &str = "/srv/roots/workbench";

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(30);

/// A container that says on its output what it is notified of.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Watcher {
    /// Runs a script that ends in `inotifywait -m`; returns when it watches
    /// and the agent has had the time to see that.
    fn start(volume: &Path, destination: &str, script: &str) -> Self {
        let script = format!("exec 2>&1; {script}");
        let mut bundle = Bundle::on(Path::new(WORKBENCH), &["sh", "-c", &script]);
        bundle.bind(volume, destination, &["rbind", "ro"]);
        let mut child = bundle.nerite().stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            // The bundle stays as long as it is used.
            let _bundle = bundle;
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut watcher = Self {
            child,
            lines,
            seen: Vec::new(),
        };
        watcher.expect("Watches established.");
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing tells that the agent has looked"
        )]
        thread::sleep(Duration::from_secs(3));
        watcher
    }

    /// Waits for a line; what comes before it is kept in `seen`.
    #[track_caller]
    fn expect(&mut self, wanted: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = line == wanted;
                    self.seen.push(line);
                    if found {
                        return;
                    }
                }
                Err(_) => panic!("{wanted:?} is not in {:?}", self.seen),
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const WAIT: &str = "inotifywait -m --format '%e %f'";

#[test]
fn directory_is_watched() {
    let volume = tempfile::tempdir().unwrap();
    let path = |name: &str| volume.path().join(name);
    let mut watcher = Watcher::start(volume.path(), "/v", &format!("{WAIT} /v"));
    fs::write(path("a"), "content").unwrap();
    watcher.expect("CREATE a");
    watcher.expect("MODIFY a");
    watcher.expect("CLOSE_WRITE,CLOSE a");
    fs::rename(path("a"), path("b")).unwrap();
    watcher.expect("MOVED_FROM a");
    watcher.expect("MOVED_TO b");
    tests::bundle::command("chmod", &["600", path("b").to_str().unwrap()]);
    watcher.expect("ATTRIB b");
    fs::remove_file(path("b")).unwrap();
    watcher.expect("DELETE b");
    fs::create_dir(path("d")).unwrap();
    watcher.expect("CREATE,ISDIR d");
    fs::remove_dir(path("d")).unwrap();
    watcher.expect("DELETE,ISDIR d");
}

#[test]
fn swap_of_a_projected_volume_is_seen_within_seconds() {
    let volume = tempfile::tempdir().unwrap();
    let path = |name: &str| volume.path().join(name);
    // As the kubelet's atomic writer does it.
    let publish = |version: &str| {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("key"), format!("{version}\n")).unwrap();
        std::os::unix::fs::symlink(version, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    publish("..v1");
    std::os::unix::fs::symlink("..data/key", path("key")).unwrap();
    let script = "cat /v/key; inotifywait -m -e create,moved_to --format '%e %f' /v |
         while read event; do echo $event; case $event in *' ..data') cat /v/key;; esac; done";
    let mut watcher = Watcher::start(volume.path(), "/v", script);
    assert_eq!(watcher.seen.first().map(String::as_str), Some("..v1"));
    for version in ["..v2", "..v3"] {
        let begin = Instant::now();
        publish(version);
        watcher.expect("MOVED_TO ..data");
        watcher.expect(version);
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn single_file_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let script = "inotifywait -m -e modify --format '%e' /etc/hosts |
         while read event; do echo $event; cat /etc/hosts; done";
    let mut watcher = Watcher::start(&hosts, "/etc/hosts", script);
    // In place, as Docker does it.
    fs::write(&hosts, "10.0.0.1 other\n").unwrap();
    watcher.expect("MODIFY");
    watcher.expect("10.0.0.1 other");
}

#[test]
fn own_changes_are_told_once() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("log"), "").unwrap();
    let script = "inotifywait -m -q --format '%e %f' /v > /tmp/events & watcher=$!; sleep 4
        echo x >> /v/log; mkdir /v/d; mv /v/d /v/e; rmdir /v/e; chmod 600 /v/log; sleep 5
        kill $watcher; cat /tmp/events";
    let mut bundle = Bundle::on(Path::new(WORKBENCH), &["sh", "-c", script]);
    bundle.bind(volume.path(), "/v", &["rbind"]);
    bundle.mount("tmpfs", "tmpfs", "/tmp", &[]);
    let expected = [
        "OPEN log",
        "MODIFY log",
        "CLOSE_WRITE,CLOSE log",
        "CREATE,ISDIR d",
        "MOVED_FROM,ISDIR d",
        "MOVED_TO,ISDIR e",
        "DELETE,ISDIR e",
        "ATTRIB log",
    ];
    let output = bundle.output();
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
    drop(File::open(volume.path().join("log")).unwrap());
}

#[test]
fn changes_of_a_bound_file_and_of_links_are_seen_without_events() {
    let volume = tempfile::tempdir().unwrap();
    let path = |name: &str| volume.path().join(name);
    fs::write(path("resolv"), "one\n").unwrap();
    fs::create_dir(path("v1")).unwrap();
    fs::create_dir(path("v2")).unwrap();
    fs::write(path("v1/key"), "one\n").unwrap();
    fs::write(path("v2/key"), "two\n").unwrap();
    std::os::unix::fs::symlink("v1", path("data")).unwrap();
    let mut bundle = Bundle::shell(
        "cat /etc/resolv.conf /v/data/key; touch /v/ready
         while test -e /v/ready; do sleep 0.2; done; sleep 2; cat /etc/resolv.conf /v/data/key",
    );
    bundle.bind(volume.path(), "/v", &["rbind"]);
    bundle.bind(&path("resolv"), "/etc/resolv.conf", &["bind"]);
    let child = bundle.nerite().spawn().unwrap();
    assert!(tests::eventually(LIMIT, || path("ready").exists()));
    fs::write(path("resolv"), "two\n").unwrap();
    std::os::unix::fs::symlink("v2", path("tmp")).unwrap();
    fs::rename(path("tmp"), path("data")).unwrap();
    fs::remove_file(path("ready")).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "one\none\ntwo\ntwo\n", "{:?}", output.stderr);
}
