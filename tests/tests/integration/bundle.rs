//! `nerite run`: an OCI bundle whose root and volumes are the host's.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::bundle::Bundle;
use tests::run;

#[test]
fn changes_are_on_the_host_with_owner_mode_and_time() {
    let bundle = Bundle::shell(
        "echo hello > /root/file; chown 7:8 /root/file; chmod 4751 /root/file
         touch -d '2001-02-03 04:05:06' /root/file
         mkdir -m 1777 /root/directory; ln -s ../etc/passwd /root/link; mkfifo /root/pipe
         ln /root/file /root/twin; rm /etc/group; mv /etc/passwd /etc/moved",
    );
    assert_eq!(bundle.output(), "");
    let file = fs::metadata(bundle.path("root/file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.nlink()), (7, 8, 2));
    assert_eq!(file.permissions().mode() & 0o7777, 0o4751);
    assert_eq!(file.mtime(), 981_173_106);
    assert_eq!(fs::read(bundle.path("root/twin")).unwrap(), b"hello\n");
    let directory = fs::metadata(bundle.path("root/directory")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o7777, 0o1777);
    let link = fs::read_link(bundle.path("root/link")).unwrap();
    assert_eq!(link, Path::new("../etc/passwd"));
    assert!(!bundle.path("etc/group").exists());
    assert!(bundle.path("etc/moved").exists());
}

#[test]
fn read_only_root_refuses_writes() {
    let mut bundle = Bundle::shell("(echo x > /new) 2>&1; true");
    bundle.config["root"]["readonly"] = json!(true);
    let output = bundle.output();
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(!bundle.path("new").exists());
}

#[test]
fn volume_is_shared_both_ways() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("from-host"), "host").unwrap();
    let mut bundle =
        Bundle::shell("cat /volume/from-host; echo guest > /volume/from-guest; ls /volume");
    bundle.bind(volume.path(), "/volume", &["rbind", "rw"]);
    assert_eq!(bundle.output(), "hostfrom-guest\nfrom-host\n");
    let made = fs::read(volume.path().join("from-guest")).unwrap();
    assert_eq!(made, b"guest\n");
}

#[test]
fn read_only_volume_refuses_writes_and_a_file_is_a_volume_too() {
    let volume = tempfile::tempdir().unwrap();
    let hosts = volume.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mut bundle =
        Bundle::shell("cat /etc/hosts; (echo x > /volume/new) 2>&1; echo y >> /etc/hosts");
    bundle.bind(volume.path(), "/volume", &["rbind", "ro"]);
    bundle.bind(&hosts, "/etc/hosts", &["bind", "rw"]);
    let output = bundle.output();
    assert!(output.starts_with("127.0.0.1 localhost\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert_eq!(
        fs::read_to_string(&hosts).unwrap(),
        "127.0.0.1 localhost\ny\n"
    );
}

#[test]
fn mounts_below_a_volume_are_seen() {
    let volume = tempfile::tempdir().unwrap();
    let inner = volume.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&inner)
        .status();
    assert!(mounted.unwrap().success());
    fs::write(inner.join("file"), "deep").unwrap();
    let mut bundle =
        Bundle::shell("cat /volume/inner/file; stat -c %d /volume /volume/inner | uniq | wc -l");
    bundle.bind(volume.path(), "/volume", &["rbind"]);
    let outcome = bundle.run();
    assert!(
        Command::new("umount")
            .arg(&inner)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(outcome.stdout, "deep2\n", "{outcome:?}");
}

#[test]
fn links_lead_nowhere_outside_of_the_share() {
    let volume = tempfile::tempdir().unwrap();
    symlink("/etc/hostname", volume.path().join("absolute")).unwrap();
    symlink("../../../../etc/shadow", volume.path().join("upwards")).unwrap();
    let mut bundle = Bundle::shell(
        "echo guest > /etc/hostname; cat /volume/absolute; cat /volume/upwards; cat /volume/../etc/hostname",
    );
    bundle.bind(volume.path(), "/volume", &["rbind"]);
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "guest\nguest\n", "{outcome:?}");
    assert!(outcome.stderr.contains("No such file"), "{outcome:?}");
}

#[test]
fn what_cannot_be_shared_is_refused_by_name() {
    let mut bundle = Bundle::shell("true");
    bundle.bind(Path::new("/dev/null"), "/device", &["bind"]);
    let outcome = bundle.run();
    assert_eq!(outcome.status, 125);
    assert!(
        outcome.stderr.contains("/dev/null is a character device"),
        "{outcome:?}"
    );

    let mut bundle = Bundle::shell("true");
    bundle.bind(Path::new("/nowhere"), "/volume", &["bind"]);
    let outcome = bundle.run();
    assert_eq!(outcome.status, 125);
    assert!(
        outcome.stderr.contains("share /nowhere as /volume"),
        "{outcome:?}"
    );

    let mut bundle = Bundle::shell("true");
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "type": "nfs", "source": "server:/export", "destination": "/net",
    }));
    let outcome = bundle.run();
    assert!(
        outcome.stderr.contains("a guest cannot mount \"nfs\""),
        "{outcome:?}"
    );
}

#[test]
fn missing_bundle_is_named() {
    let outcome = run(&["run", "--bundle", "/nowhere", "test"]);
    assert_eq!(outcome.status, 125);
    assert!(
        outcome.stderr.contains("/nowhere/config.json"),
        "{outcome:?}"
    );
}

#[test]
fn death_of_the_broker_is_an_io_error_and_told() {
    let bundle = Bundle::shell("cat /root/start; sleep 4; cat /etc/group; exit 9");
    fs::write(bundle.path("root/start"), "started\n").unwrap();
    let mut child = bundle.nerite().spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    tests::bundle::command("pkill", &["-KILL", "-x", "nerite-fs"]);
    let outcome = tests::Outcome::from(child.wait_with_output().unwrap());
    assert!(
        outcome.stderr.contains("nerite-fs was killed by signal 9"),
        "{outcome:?}"
    );
    assert_ne!(outcome.status, 0);
}
