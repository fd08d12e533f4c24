//! Terminals.

use protocol::agent::api::ResizePtyRequest;
use protocol::oci;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Guest, Streams, context, process, refusal, shell, spec, unique};

fn terminal(script: &str) -> oci::Spec {
    let mut spec = shell(script);
    let process = spec.process.as_mut().unwrap();
    process.terminal = true;
    process.console_size = Some(oci::ConsoleSize {
        height: 33,
        width: 99,
    });
    spec
}

async fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).await.unwrap(),
            1,
            "{text:?} and then the end"
        );
        text.push(byte[0].into());
    }
    text
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn container_owns_its_terminal_with_its_size() {
    let guest = Guest::start().await;
    let script = "tty; stty size; test -c /dev/console && echo console > /dev/console; \
        echo tty > /dev/tty; exit 4";
    let outcome = guest.run(&terminal(script), b"").await.unwrap();
    assert_eq!(outcome.stdout, "/dev/pts/0\r\n33 99\r\nconsole\r\ntty\r\n");
    assert_eq!(outcome.status, 4);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn terminal_resizes_and_interrupts() {
    let guest = Guest::start().await;
    let id = unique("tty");
    let script = "trap 'stty size' WINCH; trap 'echo int; exit 7' INT; echo ready; \
        while :; do sleep 0.05; done";
    let Streams { stdin, stdout, .. } = guest.create(&id, &terminal(script)).await.unwrap();
    let (mut stdin, mut stdout) = (stdin.unwrap(), stdout.unwrap());
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(read_until(&mut stdout, "\r\n").await, "ready\r\n");
    let request = ResizePtyRequest {
        id: id.clone(),
        width: 40,
        height: 20,
        ..ResizePtyRequest::default()
    };
    guest.tasks.resize_pty(context(), &request).await.unwrap();
    assert_eq!(read_until(&mut stdout, "\r\n").await, "20 40\r\n");
    stdin.write_all(&[3]).await.unwrap();
    assert_eq!(read_until(&mut stdout, "int\r\n").await, "^Cint\r\n");
    assert_eq!(guest.wait(&id, "").await, 7);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn exec_gets_a_terminal_of_the_container() {
    let guest = Guest::start().await;
    let id = unique("exec-tty");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let mut exec = process("tty; sleep 100 & id -u; exit 6");
    exec.terminal = true;
    exec.user.uid = 1000;
    let outcome = guest.exec(&id, &exec, b"").await.unwrap();
    assert_eq!(
        (outcome.status, &*outcome.stdout),
        (6, "/dev/pts/0\r\n1000\r\n")
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn terminal_without_devpts_is_refused() {
    let guest = Guest::start().await;
    let mut spec = terminal("true");
    spec.mounts.retain(|mount| mount.destination != "/dev/pts");
    let (_, sentence) = refusal(guest.run(&spec, b"").await);
    assert!(sentence.contains("/dev/pts/ptmx"), "{sentence}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn false_terminal_multiplexer_is_refused() {
    let guest = Guest::start().await;
    let id = unique("fake");
    let mut spec = spec(&["sleep", "100"]);
    spec.mounts.retain(|mount| mount.destination != "/dev/pts");
    let _streams = guest.create(&id, &spec).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let script = "mkdir -p /dev/pts; mkfifo /dev/pts/ptmx";
    assert_eq!(
        guest.exec(&id, &process(script), b"").await.unwrap().status,
        0
    );
    let mut exec = process("true");
    exec.terminal = true;
    let (_, sentence) = refusal(guest.exec(&id, &exec, b"").await);
    assert!(sentence.contains("/dev/pts/ptmx"), "{sentence}");
}
