//! Nothing is left behind, whatever happens.

use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::leftovers::HostState;
use tests::{BUSYBOX, run, start_shell};

/// Warms the layer cache, so that its files are in the state compared with.
fn state() -> HostState {
    assert_eq!(run(&["try", BUSYBOX, "true"]).status, 0);
    HostState::quiet()
}

#[test]
fn hundred_starts_leave_nothing() {
    let before = state();
    for turn in 0..100 {
        assert_eq!(run(&["try", BUSYBOX, "true"]).status, 0, "start {turn}");
    }
    before.assert_restored();
}

#[test]
fn failed_starts_leave_nothing() {
    let before = state();
    assert_eq!(run(&["try", BUSYBOX, "no-such-program"]).status, 127);
    assert_eq!(
        run(&["try", "-u", "nobody-here", BUSYBOX, "true"]).status,
        125
    );
    assert_eq!(run(&["try", "/no/such/image", "true"]).status, 125);
    before.assert_restored();
}

fn vmm_of(keeper: &Child) -> Option<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", keeper.id());
    std::fs::read_to_string(children)
        .ok()?
        .split_whitespace()
        .find_map(|id| id.parse().ok())
        .map(Pid::from_raw)
}

#[test]
fn killed_vmm_is_reported_and_leaves_nothing() {
    let before = state();
    let mut child = start_shell(&["-i"], "echo ready; cat");
    let stdin = child.stdin.take();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    kill(vmm_of(&child).expect("a VMM"), Signal::SIGKILL).unwrap();
    let outcome: tests::Outcome = child.wait_with_output().unwrap().into();
    drop(stdin);
    assert_eq!(outcome.status, 137, "{outcome:?}");
    assert_eq!(
        outcome.stderr,
        "nerite: nerite-vmm was killed by signal 9\n"
    );
    before.assert_restored();
}

#[test]
fn killed_keeper_leaves_nothing() {
    let before = state();
    let mut child = start_shell(&["-i"], "echo ready; cat");
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    before.assert_restored();
}

#[test]
fn guest_panic_is_reported_and_leaves_nothing() {
    let before = state();
    // A guest without an init program panics: the message names it.
    let outcome = run(&[
        "try",
        "--kernel-argument",
        "init=/no-such-init",
        BUSYBOX,
        "true",
    ]);
    assert_eq!(outcome.status, 125, "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap();
    assert!(
        last.starts_with("nerite: the guest kernel panicked: "),
        "{outcome:?}"
    );
    assert!(
        last.contains("No working init found") || last.contains("init"),
        "{outcome:?}"
    );
    before.assert_restored();
}
