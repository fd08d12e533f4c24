//! Standard streams.

use std::time::{Duration, Instant};

use protocol::agent::SPEC_TYPE_URL;
use protocol::agent::api::{CloseIORequest, CreateTaskRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Guest, bind_overlay, context, json, process, shell, spec, text, unique};

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn container_has_streams_and_status() {
    let guest = Guest::start().await;
    let outcome = guest
        .run(&shell("cat; echo err >&2; exit 3"), b"hello\n")
        .await
        .unwrap();
    assert_eq!(
        (outcome.status, &*outcome.stdout, &*outcome.stderr),
        (3, "hello\n", "err\n")
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn streams_that_are_not_asked_for_are_null() {
    let guest = Guest::start().await;
    let id = unique("null");
    let script = "cat; l() { readlink /proc/$$/fd/$1; }; a=$(l 0) b=$(l 1) c=$(l 2); \
        echo $a $b $c > /tmp/log; sleep 100";
    let request = CreateTaskRequest {
        id: id.clone(),
        rootfs: bind_overlay(),
        options: json(SPEC_TYPE_URL, &shell(script)),
        ..CreateTaskRequest::default()
    };
    guest.tasks.create(context(), &request).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let script = "until [ -s /tmp/log ]; do sleep 0.01; done; cat /tmp/log";
    let outcome = guest.exec(&id, &process(script), b"").await.unwrap();
    assert_eq!(outcome.stdout, "/dev/null /dev/null /dev/null\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn sixteen_mebibytes_pass_unharmed() {
    let guest = Guest::start().await;
    let id = unique("cat");
    let mut streams = guest.create(&id, &spec(&["cat"])).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let data: Vec<u8> = (0..16_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut stdin = streams.stdin.take().unwrap();
    let expected = data.clone();
    tokio::spawn(async move {
        stdin.write_all(&data).await.unwrap();
    });
    let mut received = Vec::new();
    streams
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .await
        .unwrap();
    assert!(received == expected, "{} bytes arrived", received.len());
    assert_eq!(guest.wait(&id, "").await, 0);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn exit_is_told_at_once_though_a_child_holds_the_streams() {
    let guest = Guest::start().await;
    let script = "sleep 100 & echo out; exit 3";
    let begin = Instant::now();
    let outcome = guest.run(&shell(script), b"").await.unwrap();
    assert_eq!((outcome.status, &*outcome.stdout), (3, "out\n"));

    let id = unique("holder");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let outcome = guest.exec(&id, &process(script), b"").await.unwrap();
    assert_eq!((outcome.status, &*outcome.stdout), (3, "out\n"));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn slow_reader_gets_everything_after_the_exit() {
    let guest = Guest::start().await;
    let id = unique("slow");
    let streams = guest
        .create(&id, &shell("seq 9999; seq 5000 >&2"))
        .await
        .unwrap();
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(guest.wait(&id, "").await, 0);
    let (stdout, stderr) = streams.finish(b"").await;
    assert!(stdout.ends_with("9998\n9999\n") && stdout.lines().count() == 9999);
    assert!(stderr.ends_with("4999\n5000\n") && stderr.lines().count() == 5000);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn output_of_execs_is_whole() {
    let guest = Guest::start().await;
    let id = unique("whole");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    for _ in 0..50 {
        // A child holds the pipe, so it is the exit that ends the stream.
        let outcome = guest
            .exec(&id, &process("sleep 100 & seq 2000"), b"")
            .await
            .unwrap();
        assert_eq!(outcome.stdout.lines().count(), 2000);
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn stalled_reader_stops_its_own_stream_only() {
    let guest = Guest::start().await;
    let id = unique("stall");
    let script = "cat /dev/zero & echo still here >&2; sleep 100";
    let mut streams = guest.create(&id, &shell(script)).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let mut line = [0; 11];
    streams
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .await
        .unwrap();
    assert_eq!(&line, b"still here\n");
    let outcome = guest.exec(&id, &process("echo exec"), b"").await.unwrap();
    assert_eq!(outcome.stdout, "exec\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn close_io_ends_the_input_after_its_last_byte() {
    let guest = Guest::start().await;
    let id = unique("close");
    let mut streams = guest.create(&id, &spec(&["cat"])).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    streams
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"last")
        .await
        .unwrap();
    let request = CloseIORequest {
        id: id.clone(),
        stdin: true,
        ..CloseIORequest::default()
    };
    guest.tasks.close_io(context(), &request).await.unwrap();
    assert_eq!(text(streams.stdout.take()).await, "last");
    assert_eq!(guest.wait(&id, "").await, 0);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn streams_can_be_opened_again_by_any_user() {
    let guest = Guest::start().await;
    let mut spec = shell("echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin");
    spec.process.as_mut().unwrap().user.uid = 1000;
    let outcome = guest.run(&spec, b"in\n").await.unwrap();
    assert_eq!(
        (outcome.status, &*outcome.stdout, &*outcome.stderr),
        (0, "out\nin\n", "err\n")
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn waiting_container_holds_no_streams_of_others() {
    let guest = Guest::start().await;
    let id = unique("reader");
    let mut streams = guest.create(&id, &spec(&["cat"])).await.unwrap();
    // Forked while the first one's pipes are open.
    let _waiting = guest
        .create(&unique("waiting"), &spec(&["true"]))
        .await
        .unwrap();
    guest.start_process(&id, "").await.unwrap();
    drop(streams.stdin.take());
    assert_eq!(guest.wait(&id, "").await, 0);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn process_learns_that_nobody_reads_any_more() {
    let guest = Guest::start().await;
    let id = unique("sigpipe");
    let mut streams = guest.create(&id, &shell("yes; exit 5")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    drop(streams.stdout.take());
    assert_eq!(guest.wait(&id, "").await, 5);
}
