//! Programs run, in a kernel of their own, and their status comes back.

use tests::{BUSYBOX, DEBIAN, run, shell};

#[test]
fn busybox_runs_in_another_kernel() {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let outcome = run(&["try", BUSYBOX, "uname", "-r"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert!(
        outcome.stdout.trim().contains("nerite"),
        "{}",
        outcome.stdout
    );
    assert_ne!(outcome.stdout, host);
}

#[test]
fn debian_runs() {
    let outcome = run(&[
        "try",
        DEBIAN,
        "bash",
        "-c",
        "cat /etc/debian_version && dpkg -s dpkg | grep Status",
    ]);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.starts_with("13"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("Status: install ok installed"),
        "{outcome:?}"
    );
}

#[test]
fn exit_statuses_pass_through() {
    for status in [0, 1, 2, 3, 42, 124, 125, 126, 127, 128, 200, 254, 255] {
        assert_eq!(shell(&[], &format!("exit {status}")).status, status);
    }
}

#[test]
fn death_by_signal_is_128_plus_the_signal() {
    for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("USR1", 10)] {
        // A child of the shell, because PID 1 ignores what it does not handle.
        let outcome = shell(&[], &format!("sh -c 'kill -{name} $$'; exit $?"));
        assert_eq!(outcome.status, 128 + number, "{name}: {outcome:?}");
    }
}

#[test]
fn killed_first_process_is_137() {
    // The first process of a pid namespace can be killed from outside only:
    // by the guest's kernel, here for want of memory.
    let outcome = shell(&["-m", "16m"], "exec tail /dev/zero");
    assert_eq!(outcome.status, 137, "{outcome:?}");
}

#[test]
fn environment_is_dockers_with_ours_on_top() {
    let outcome = run(&[
        "try",
        "-e",
        "COLOUR=blue",
        "-e",
        "PATH=/bin",
        "--hostname",
        "box",
        BUSYBOX,
        "env",
    ]);
    let mut lines: Vec<_> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["COLOUR=blue", "HOME=/root", "HOSTNAME=box", "PATH=/bin"],
        "{outcome:?}"
    );
}

#[test]
fn variable_without_value_is_taken_from_here() {
    let output = tests::nerite(&[
        "try",
        "-e",
        "FROM_HERE",
        BUSYBOX,
        "sh",
        "-c",
        "echo $FROM_HERE",
    ])
    .env("FROM_HERE", "yes")
    .output()
    .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "yes\n");
}

#[test]
fn hostname_user_and_directory_are_as_asked() {
    let script = "hostname; id -u; id -g; id -G; pwd; echo $HOME";
    let outcome = shell(&["--hostname", "box", "-u", "app", "-w", "/tmp"], script);
    assert_eq!(
        outcome.stdout, "box\n1000\n1000\n1000 50\n/tmp\n/home/app\n",
        "{outcome:?}"
    );
}

#[test]
fn user_by_number_and_group() {
    let outcome = shell(&["-u", "7:8"], "id -u; id -g");
    assert_eq!(outcome.stdout, "7\n8\n", "{outcome:?}");
}

#[test]
fn root_is_writable_and_fresh_each_time() {
    for _ in 0..2 {
        let outcome = shell(
            &[],
            "test ! -e /new && echo x > /new && cat /new && rm /etc/passwd",
        );
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (0, "x\n"),
            "{outcome:?}"
        );
    }
}

#[test]
fn read_only_root_refuses_writes() {
    let outcome = shell(&["--read-only"], "touch /new");
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
}

#[test]
fn processors_are_as_many_as_asked() {
    assert_eq!(shell(&["-c", "2"], "nproc").stdout, "2\n");
    assert_eq!(shell(&[], "nproc").stdout, "1\n");
}

#[test]
fn fraction_of_a_processor_is_a_quota() {
    let outcome = shell(&["-c", "0.5"], "cat /sys/fs/cgroup/cpu.max");
    assert_eq!(outcome.stdout, "50000 100000\n", "{outcome:?}");
}

#[test]
fn memory_is_limit_and_little_more() {
    let outcome = shell(
        &["-m", "64m"],
        "cat /sys/fs/cgroup/memory.max; grep MemTotal /proc/meminfo",
    );
    let mut lines = outcome.stdout.lines();
    assert_eq!(lines.next(), Some("67108864"), "{outcome:?}");
    let total: u64 = lines
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        (64 << 10..=(64 + 50) << 10).contains(&total),
        "MemTotal is {total} KiB"
    );
}

#[test]
fn timeline_is_printed_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace.json");
    let file = file.to_str().unwrap();
    let outcome = run(&["try", "-v", "--trace", file, BUSYBOX, "true"]);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let points = trace["points"].as_array().unwrap();
    let names: Vec<_> = points
        .iter()
        .map(|point| point["name"].as_str().unwrap())
        .collect();
    for name in [
        "keeper.start",
        "vmm.start",
        "vmm.kernel-entry",
        "agent.start",
        "agent.ready",
        "agent.exec",
        "agent.exit",
        "keeper.exit-known",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    // One clock: points of three processes and two kernels are in order.
    let order = [
        "keeper.start",
        "vmm.kernel-entry",
        "agent.start",
        "agent.exec",
        "agent.exit",
        "keeper.exit-known",
    ];
    let at = |name: &str| {
        points.iter().find(|point| point["name"] == name).unwrap()["ns"]
            .as_u64()
            .unwrap()
    };
    assert!(
        order.windows(2).all(|pair| at(pair[0]) <= at(pair[1])),
        "{points:?}"
    );
    let picture = run(&["trace", file]);
    assert_eq!(picture.status, 0);
    assert!(picture.stdout.contains("<svg"), "{picture:?}");
}

#[test]
fn version_and_help_are_there() {
    assert!(run(&["--version"]).stdout.starts_with("nerite "));
    let help = run(&["try", "--help"]);
    assert_eq!(help.status, 0);
    assert!(help.stdout.contains("Exit status"), "{}", help.stdout);
}
