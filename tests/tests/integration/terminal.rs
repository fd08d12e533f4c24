//! A terminal behaves as one.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::pty::Terminal;
use tests::{BUSYBOX, nerite, run};

#[test]
fn program_sees_a_terminal_of_our_size() {
    let mut terminal = Terminal::new(33, 101);
    let mut child = terminal.start(&mut nerite(&[
        "try",
        "-it",
        BUSYBOX,
        "sh",
        "-c",
        "test -t 0 && test -t 1 && tty; stty size; echo $TERM",
    ]));
    let seen = terminal.wait_for("xterm");
    assert!(
        seen.contains("/dev/pts/0") || seen.contains("/dev/console"),
        "{seen:?}"
    );
    assert!(seen.contains("33 101"), "{seen:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn resize_reaches_the_program() {
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&mut nerite(&[
        "try",
        "-it",
        BUSYBOX,
        "sh",
        "-c",
        "trap 'stty size; exit 4' WINCH; stty size; while :; do sleep 0.1; done",
    ]));
    terminal.wait_for("24 80");
    terminal.resize(40, 132);
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGWINCH,
    )
    .unwrap();
    terminal.wait_for("40 132");
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn control_c_interrupts_the_program_in_front() {
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&mut nerite(&["try", "-it", BUSYBOX, "sh"]));
    // It says itself that it is in front: before that, the shell is.
    terminal.type_in("sh -c 'echo one$((1+1)); sleep 1000'\n");
    terminal.wait_for("one2");
    terminal.type_in("\u{3}");
    terminal.type_in("echo status $?; exit 6\n");
    terminal.wait_for("status 130");
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn control_d_ends_the_input() {
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&mut nerite(&["try", "-it", BUSYBOX, "cat"]));
    terminal.type_in("hello\n");
    terminal.wait_for("hello\r\nhello\r\n");
    terminal.type_in("\u{4}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn our_terminal_is_as_before_afterwards() {
    let terminal = Terminal::new(24, 80);
    let before = terminal.settings();
    let mut child = terminal.start(&mut nerite(&["try", "-it", BUSYBOX, "true"]));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(
        terminal.settings() == before,
        "the terminal's settings differ"
    );
}

#[test]
fn terminal_without_a_terminal_is_refused() {
    let outcome = run(&["try", "-it", BUSYBOX, "true"]);
    assert_eq!(outcome.status, 125);
    assert_eq!(
        outcome.stderr,
        "nerite: standard input is not a terminal; leave out -t, or -i\n"
    );
}

#[test]
fn terminal_for_the_program_alone_needs_none_here() {
    let outcome = run(&["try", "-t", BUSYBOX, "sh", "-c", "test -t 1 && echo yes"]);
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (0, "yes\r\n"),
        "{outcome:?}"
    );
}
