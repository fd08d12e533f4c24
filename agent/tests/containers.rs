//! Containers by a real agent. Run with `--ignored`, as root, in the machine.

mod support;

use support::{Guest, shell};

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root, cgroup v2 and /srv/roots/busybox"]
async fn container_runs_with_streams_and_status() {
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
