//! Limits hold, and going beyond them is told as what it is.

use tests::shell;

#[test]
fn memory_limit_kills_and_says_so() {
    let outcome = shell(&["-m", "32m"], "tail /dev/zero; echo status $?");
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("status 137"), "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("killed for want of memory, having reached its limit of 32 MiB"),
        "{outcome:?}"
    );
}

#[test]
fn memory_limit_on_the_first_process_is_137_and_says_so() {
    let outcome = shell(&["-m", "32m"], "exec tail /dev/zero");
    assert_eq!(outcome.status, 137, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("the container was killed for want of memory"),
        "{outcome:?}"
    );
}

#[test]
fn below_the_memory_limit_nothing_is_said() {
    let outcome = shell(
        &["-m", "64m"],
        "dd if=/dev/zero of=/dev/null bs=16M count=2 2>/dev/null",
    );
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
}

#[test]
fn pids_limit_holds() {
    let outcome = shell(
        &["--pids-limit", "10"],
        "cat /sys/fs/cgroup/pids.max; \
         for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 100 & done",
    );
    assert!(outcome.stdout.starts_with("10\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("fork"), "{outcome:?}");
    assert_ne!(outcome.status, 0);
}

#[test]
fn many_processes_fit_below_the_limit() {
    let outcome = shell(
        &["--pids-limit", "200"],
        "i=0; while [ $i -lt 100 ]; do sleep 1 & i=$((i+1)); done; wait; echo all",
    );
    assert_eq!(outcome.stdout, "all\n", "{outcome:?}");
}
