//! What cannot work is said in one sentence with the way out, with Docker's
//! exit status.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tests::{BUSYBOX, Outcome, nerite, run, shell};

/// Asserts one line on standard error that begins as nerite's and holds all
/// of the texts.
fn assert_refused(outcome: &Outcome, status: i32, texts: &[&str]) {
    assert_eq!(outcome.status, status, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.starts_with("nerite: "), "{outcome:?}");
    for text in texts {
        assert!(
            outcome.stderr.contains(text),
            "{text:?} is not in {outcome:?}"
        );
    }
}

#[test]
fn missing_image_is_named() {
    assert_refused(
        &run(&["try", "/no/such/image", "true"]),
        125,
        &["/no/such/image"],
    );
}

#[test]
fn file_that_is_no_image_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("text", &b"hello, this is text, not an image\n"[..]),
        ("empty", b""),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap();
        assert_refused(&run(&["try", path, "true"]), 125, &[path]);
    }
}

#[test]
fn image_without_the_command_is_127() {
    let outcome = run(&["try", BUSYBOX, "no-such-program"]);
    assert_refused(
        &outcome,
        127,
        &["no-such-program", "executable file not found in $PATH"],
    );
    let outcome = run(&["try", BUSYBOX, "/no/such/path"]);
    assert_refused(
        &outcome,
        127,
        &["/no/such/path", "no such file or directory"],
    );
}

#[test]
fn command_that_is_not_executable_is_126() {
    assert_refused(
        &run(&["try", BUSYBOX, "/etc/passwd"]),
        126,
        &["/etc/passwd", "permission denied"],
    );
    assert_refused(&run(&["try", BUSYBOX, "/etc"]), 126, &["/etc"]);
}

#[test]
fn absurd_memory_is_refused() {
    assert_refused(&shell(&["-m", "1"], "true"), 125, &["too small", "6 MiB"]);
    assert_refused(
        &shell(&["-m", "1000t"], "true"),
        125,
        &["more than this host has"],
    );
    let outcome = shell(&["-m", "lots"], "true");
    assert_eq!(outcome.status, 125, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("\"lots\" is not an amount of memory"),
        "{outcome:?}"
    );
}

#[test]
fn absurd_processors_are_refused() {
    let outcome = shell(&["-c", "1000"], "true");
    assert_eq!(outcome.status, 125, "{outcome:?}");
    assert!(
        outcome.stderr.contains("is not a number of processors"),
        "{outcome:?}"
    );
}

#[test]
fn unknown_user_is_named() {
    assert_refused(
        &shell(&["-u", "nobody-here"], "true"),
        125,
        &["nobody-here"],
    );
}

#[test]
fn missing_kvm_says_what_to_do() {
    let outcome = in_private_mounts("umount /dev/kvm 2>/dev/null; mount -t tmpfs none /dev");
    assert_refused(&outcome, 125, &["/dev/kvm", "nerite check"]);
}

#[test]
fn forbidden_kvm_says_what_to_do() {
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o600)).unwrap();
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "env",
            "HOME=/tmp/kvm-home",
        ])
        .args(["nerite", "try", BUSYBOX, "true"])
        .output()
        .unwrap();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
    let _ = fs::remove_dir_all("/tmp/kvm-home");
    assert_refused(&output.into(), 125, &["/dev/kvm", "usermod -aG kvm"]);
}

#[test]
fn full_disk_is_named_and_leaves_no_half_layer() {
    let cache = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "none"])
        .arg(cache.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let output = nerite(&["try", BUSYBOX, "true"])
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .unwrap();
    let mut files = Vec::new();
    list(cache.path(), &mut files);
    let unmounted = std::process::Command::new("umount")
        .arg(cache.path())
        .status()
        .unwrap();
    assert!(unmounted.success());
    assert_refused(&output.into(), 125, &["no space left", "XDG_CACHE_HOME"]);
    assert!(
        !files.iter().any(|file| file.contains(".erofs")),
        "{files:?}"
    );
}

#[test]
fn incomplete_installation_is_named() {
    let copy = tempfile::tempdir().unwrap();
    let program = copy.path().join("bin/nerite");
    fs::create_dir(copy.path().join("bin")).unwrap();
    fs::copy("/opt/payload/bin/nerite", &program).unwrap();
    let output = std::process::Command::new(program)
        .args(["try", BUSYBOX, "true"])
        .output()
        .unwrap();
    assert_refused(&output.into(), 125, &["lib/nerite/", "reinstall nerite"]);
}

/// Runs `nerite try` after a shell command in a mount namespace of its own.
fn in_private_mounts(prepare: &str) -> Outcome {
    let script = format!("{prepare}; exec nerite try {BUSYBOX} true 2>&3");
    std::process::Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            &format!("exec 3>&2; ({script}) 2>/dev/null"),
        ])
        .output()
        .unwrap()
        .into()
}

fn list(directory: &std::path::Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        files.push(entry.path().display().to_string());
        list(&entry.path(), files);
    }
}
