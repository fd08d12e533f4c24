//! Files into and out of a running container.

use std::fs;
use std::pin::pin;
use std::process::{Command, Stdio};

use protocol::agent::sandbox::{CopyInRequest, CopyOutRequest};
use protocol::oci;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Guest, context, process, refusal, shell, unique};

fn archive(directory: &std::path::Path) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["-c", "-C"])
        .arg(directory)
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

async fn copy_in(guest: &Guest, id: &str, directory: &str, bytes: &[u8]) -> ttrpc::Result<()> {
    let (stream, connection) = guest.port();
    let request = CopyInRequest {
        id: id.into(),
        directory: directory.into(),
        stream,
        ..CopyInRequest::default()
    };
    let send = async {
        let mut connection = connection.await.unwrap();
        // What is refused is not read to its end.
        let _ = connection.write_all(bytes).await;
        connection
    };
    let mut call = pin!(guest.sandbox.copy_in(context(), &request));
    tokio::select! {
        answer = &mut call => answer.map(|_| ()),
        _connection = send => call.await.map(|_| ()),
    }
}

async fn copy_out(guest: &Guest, id: &str, path: &str) -> ttrpc::Result<Vec<u8>> {
    let (stream, connection) = guest.port();
    let request = CopyOutRequest {
        id: id.into(),
        path: path.into(),
        stream,
        ..CopyOutRequest::default()
    };
    let receive = async {
        let mut bytes = Vec::new();
        connection
            .await
            .unwrap()
            .read_to_end(&mut bytes)
            .await
            .unwrap();
        bytes
    };
    let mut call = pin!(guest.sandbox.copy_out(context(), &request));
    let mut receive = pin!(receive);
    tokio::select! {
        answer = &mut call => {
            answer?;
            Ok(receive.await)
        }
        bytes = &mut receive => call.await.map(|_| bytes),
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn files_go_in_and_out_where_only_the_guest_has_them() {
    let guest = Guest::start().await;
    let id = unique("copy");
    let mut spec = shell("sleep 100");
    spec.mounts.push(oci::Mount {
        destination: "/memory".into(),
        kind: Some("tmpfs".into()),
        source: Some("tmpfs".into()),
        ..oci::Mount::default()
    });
    let _streams = guest.create(&id, &spec).await.unwrap();
    guest.start_process(&id, "").await.unwrap();

    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/file"), vec![b'x'; 300_000]).unwrap();
    std::os::unix::fs::chown(source.path().join("d/file"), Some(7), Some(8)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", source.path().join("d/link")).unwrap();
    copy_in(&guest, &id, "/memory", &archive(source.path()))
        .await
        .unwrap();
    let script = "stat -c '%u %g %s' /memory/d/file; readlink /memory/d/link";
    let outcome = guest.exec(&id, &process(script), b"").await.unwrap();
    assert_eq!(outcome.stdout, "7 8 300000\n/etc/passwd\n");

    let bytes = copy_out(&guest, &id, "/memory/d").await.unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(target.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    let copy = fs::read(target.path().join("d/file")).unwrap();
    assert_eq!(copy, vec![b'x'; 300_000]);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn what_cannot_be_copied_is_named() {
    let guest = Guest::start().await;
    let id = unique("copy");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let (_, sentence) = refusal(copy_out(&guest, &id, "/absent/file").await);
    assert!(sentence.contains("copy /absent/file out"), "{sentence}");
    let (_, sentence) = refusal(copy_in(&guest, &id, "/absent", b"").await);
    assert!(sentence.contains("copy to /absent"), "{sentence}");
    let (_, sentence) = refusal(copy_in(&guest, &id, "/tmp", &[b'x'; 512]).await);
    assert!(sentence.contains("no tar archive"), "{sentence}");
    let (_, sentence) = refusal(copy_out(&guest, "nobody", "/").await);
    assert!(sentence.contains("\"nobody\""), "{sentence}");
}
