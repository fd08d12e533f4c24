//! The guest sees neither the host's processes nor its files, and not more
//! of itself than a container should.

use std::fs;

use tests::shell;

#[test]
fn guest_sees_only_its_own_processes() {
    let outcome = shell(
        &[],
        "ps -o pid,args | wc -l; cat /proc/1/cmdline | tr '\\0' ' '",
    );
    let mut lines = outcome.stdout.lines();
    // Header, the shell, ps and wc.
    assert!(
        lines.next().unwrap().trim().parse::<u32>().unwrap() <= 4,
        "{outcome:?}"
    );
    assert!(lines.next().unwrap().starts_with("sh -c ps"), "{outcome:?}");
}

#[test]
fn guest_does_not_see_host_files() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "host only").unwrap();
    let script = format!("cat {}; ls /opt/payload /srv/roots", secret.display());
    let outcome = shell(&[], &script);
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    assert_eq!(
        outcome.stderr.matches("No such file or directory").count(),
        3,
        "{outcome:?}"
    );
}

#[test]
fn writes_of_the_guest_change_nothing_here() {
    let before = fs::read("/srv/roots/busybox/etc/passwd").unwrap();
    let outcome = shell(
        &[],
        "echo hacked > /etc/passwd; echo x > /srv-new; sync; cat /etc/passwd",
    );
    assert_eq!(outcome.stdout, "hacked\n");
    assert_eq!(fs::read("/srv/roots/busybox/etc/passwd").unwrap(), before);
    assert!(!std::path::Path::new("/srv-new").exists());
}

#[test]
fn guest_cannot_write_its_layers() {
    // Whatever block devices there are, by number, with all of Docker's
    // capabilities, of which CAP_MKNOD is one.
    let script =
        "for n in 0 1 2 3; do mknod /d$n b 259 $n; echo x > /d$n && echo wrote $n; done; true";
    let outcome = shell(&[], script);
    assert!(!outcome.stdout.contains("wrote"), "{outcome:?}");
}

#[test]
fn capabilities_are_dockers() {
    let outcome = shell(&[], "grep Cap /proc/self/status");
    let sets: Vec<_> = outcome
        .stdout
        .lines()
        .map(|line| line.split_whitespace().last().unwrap())
        .collect();
    // Inheritable, permitted, effective, bounding, ambient.
    let docker = "00000000a80425fb";
    assert_eq!(
        sets,
        [
            "0000000000000000",
            docker,
            docker,
            docker,
            "0000000000000000"
        ]
    );
}

#[test]
fn kernel_settings_and_secrets_are_out_of_reach() {
    let outcome = shell(
        &[],
        "echo 1 > /proc/sys/kernel/panic; echo b > /proc/sysrq-trigger; \
         head -c 1 /proc/kcore | wc -c; mount -t tmpfs x /tmp; dmesg > /dev/null; echo alive",
    );
    assert!(outcome.stdout.contains("0\n"), "{outcome:?}");
    assert!(outcome.stdout.ends_with("alive\n"), "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("/proc/sys/kernel/panic: Read-only file system"),
        "{outcome:?}"
    );
    // The guest's kernel does not even have it.
    assert!(
        outcome.stderr.contains("can't create /proc/sysrq-trigger"),
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("mount"), "{outcome:?}");
}

#[test]
fn namespaces_are_its_own() {
    let outcome = shell(
        &[],
        "readlink /proc/self/ns/* | wc -l; ls /dev; cat /proc/self/cgroup",
    );
    assert!(outcome.stdout.ends_with("0::/\n"), "{outcome:?}");
    for device in [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd",
    ] {
        assert!(
            outcome.stdout.lines().any(|line| line == device),
            "{device}: {outcome:?}"
        );
    }
    assert!(!outcome.stdout.contains("pmem"), "{outcome:?}");
    assert!(!outcome.stdout.contains("kmsg"), "{outcome:?}");
}

#[test]
fn network_is_loopback_only() {
    let outcome = shell(
        &[],
        "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 | grep received",
    );
    assert_eq!(outcome.stdout.lines().next(), Some("lo"), "{outcome:?}");
    assert!(outcome.stdout.contains("1 packets received"), "{outcome:?}");
}
