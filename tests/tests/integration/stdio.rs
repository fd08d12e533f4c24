//! Standard streams: byte-exact, apart, and ended when they end.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::{BUSYBOX, feed, nerite, shell, start_shell};

/// Bytes without a pattern that a copying mistake could keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

#[test]
fn sixty_four_mebibytes_pass_through_unharmed() {
    let sent = noise(64 << 20);
    let mut child = nerite(&["try", "-i", BUSYBOX, "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        let sent = &sent;
        scope.spawn(move || stdin.write_all(sent).unwrap());
        child.wait_with_output().unwrap()
    });
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout.len(), sent.len());
    assert!(output.stdout == sent, "the bytes differ");
}

#[test]
fn output_and_errors_stay_apart() {
    let outcome = shell(&[], "echo out; echo err >&2; echo out2; echo err2 >&2");
    assert_eq!(outcome.stdout, "out\nout2\n");
    assert_eq!(outcome.stderr, "err\nerr2\n");
}

#[test]
fn end_of_input_is_passed_on() {
    let outcome = feed(start_shell(&["-i"], "cat; echo end"), b"line\n");
    assert_eq!(outcome.stdout, "line\nend\n", "{outcome:?}");
}

#[test]
fn without_i_input_is_empty() {
    // The pipe stays open and full; the program must not see it.
    let mut child = start_shell(&[], "cat; echo end");
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"not for you\n")
        .unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "end\n");
}

#[test]
fn exit_does_not_wait_for_input() {
    let child = start_shell(&["-i"], "exit 5");
    // wait_with_output would close stdin first.
    let mut child = child;
    let stdin = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    drop(stdin);
}

#[test]
fn exit_does_not_wait_for_background_processes() {
    let start = Instant::now();
    let outcome = shell(&[], "sleep 300 & exit 3");
    assert_eq!(outcome.status, 3);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn last_output_before_exit_reaches_a_slow_reader() {
    // More than all buffers on the way hold, read only after the exit.
    let script = "dd if=/dev/zero bs=1k count=3000 2>/dev/null | tr '\\0' x; echo; echo last";
    let mut child = Command::new("sh")
        .args([
            "-c",
            &format!("nerite try {BUSYBOX} sh -c \"$0\" | (sleep 3; cat)"),
            script,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    std::io::Read::read_to_end(&mut stdout, &mut seen).unwrap();
    child.wait().unwrap();
    assert_eq!(seen.len(), 3000 * 1024 + 1 + 5);
    assert!(seen.ends_with(b"x\nlast\n"));
}

#[test]
fn reader_that_goes_away_ends_an_endless_writer() {
    let outcome = Command::new("sh")
        .args(["-c", &format!("nerite try {BUSYBOX} yes | head -n 2")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "y\ny\n");
}

#[test]
fn output_can_be_opened_again_by_name() {
    let outcome = shell(
        &["-u", "app"],
        "echo a > /dev/stdout; echo b > /proc/self/fd/2",
    );
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("a\n", "b\n"),
        "{outcome:?}"
    );
}

#[test]
fn output_to_a_file_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let status = nerite(&["try", BUSYBOX, "seq", "100000"])
        .stdout(std::fs::File::create(&path).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 100_000);
    assert!(text.ends_with("\n100000\n"));
}
