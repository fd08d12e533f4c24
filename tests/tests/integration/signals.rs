//! Signals reach the program once, as sent.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::start_shell;

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Starts a script that says `ready`, and reads up to that.
fn start_ready(script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = start_shell(&[], script);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

#[test]
fn each_signal_runs_its_trap_once() {
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGQUIT, "QUIT"),
    ] {
        let script = format!(
            "n=0; trap 'n=$((n+1)); echo got {name}' {name}; trap 'echo $n; exit 9' USR2; \
             echo ready; while :; do sleep 0.1; done"
        );
        let (mut child, mut stdout) = start_ready(&script);
        send(&child, signal);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("got {name}\n"));
        send(&child, Signal::SIGUSR2);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "1\n", "{name} was delivered more than once");
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }
}

#[test]
fn third_interrupt_ends_a_program_that_ignores_them() {
    let (mut child, mut stdout) =
        start_ready("trap 'echo no' INT; echo ready; while :; do sleep 0.1; done");
    for _ in 0..2 {
        send(&child, Signal::SIGINT);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "no\n");
    }
    send(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn signal_during_the_start_ends_it() {
    let before = tests::leftovers::HostState::quiet();
    let mut child = start_shell(&[], "sleep 100");
    // It is certainly not running yet when its machine has just appeared.
    assert!(tests::eventually(
        std::time::Duration::from_secs(30),
        || {
            tests::leftovers::HostState::now()
                .processes
                .iter()
                .any(|name| name.contains("nerite-vmm"))
        }
    ));
    send(&child, Signal::SIGTERM);
    send(&child, Signal::SIGTERM);
    send(&child, Signal::SIGTERM);
    let status = child.wait().unwrap().code();
    assert!(matches!(status, Some(143 | 137)), "{status:?}");
    before.assert_restored();
}
