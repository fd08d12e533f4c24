//! What a container sees, and what it must not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use protocol::agent::api::Mount;
use protocol::oci;

use crate::support::{Guest, ROOT, bind_overlay, process, refusal, shell, spec, unique};

async fn output(script: &str) -> String {
    let outcome = Guest::start().await.run(&shell(script), b"").await.unwrap();
    assert_eq!((outcome.status, &*outcome.stderr), (0, ""), "{script}");
    outcome.stdout
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn container_is_alone() {
    let script = "echo $$; hostname; ls -d /proc/[0-9]* | wc -l; ls /sys/class/net; \
        grep ^0: /proc/self/cgroup; cat /sys/class/net/lo/operstate; ls /proc/self/fd | wc -l";
    // Its shell, ls and wc; then 0, 1, 2 and the directory itself.
    let expected = "1\nnerite\n3\nlo\n0::/\nunknown\n4\n";
    assert_eq!(output(script).await, expected);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn container_sees_its_own_tree_only() {
    let script = "ls -a / | tr '\\n' ' '; ls /run; grep -c . /proc/self/mounts";
    let text = output(script).await;
    let mut expected: Vec<String> = fs::read_dir(ROOT)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .chain([".".into(), "..".into()])
        .collect();
    expected.sort();
    let (names, mounts) = text.rsplit_once(' ').unwrap();
    let mut names: Vec<&str> = names.split_whitespace().collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    // The root, seven mounts, three read-only and at most three masked paths.
    assert!(mounts.trim().parse::<u32>().unwrap() <= 14, "{mounts}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn paths_are_hidden_and_read_only() {
    let script = "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
        echo 1 > /proc/sys/kernel/panic || echo refused; \
        mkdir /sys/fs/cgroup/x || echo refused; touch /tmp/written && echo written";
    let outcome = Guest::start().await.run(&shell(script), b"").await.unwrap();
    assert_eq!(outcome.stdout, "0\n0\nrefused\nrefused\nwritten\n");
    assert!(!Path::new(ROOT).join("tmp/written").exists());
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn devices_and_links_are_there() {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
        for l in fd stdin ptmx; do readlink /dev/$l; done; head -c 4 /dev/zero | wc -c; stat -c %a /dev/null";
    assert_eq!(
        output(script).await,
        "/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n4\n666\n"
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn read_only_root_cannot_be_written_but_its_mounts_can() {
    let mut spec = shell("touch /a || echo refused; touch /dev/shm/a && echo written");
    spec.root = Some(oci::Root {
        path: "rootfs".into(),
        readonly: true,
    });
    let outcome = Guest::start().await.run(&spec, b"").await.unwrap();
    assert_eq!(outcome.stdout, "refused\nwritten\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn layers_lie_over_each_other_in_order() {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("etc")).unwrap();
    fs::write(upper.path().join("etc/passwd"), "upper\n").unwrap();
    let mut rootfs = bind_overlay();
    let source = upper.path().to_str().unwrap().into();
    rootfs.insert(
        0,
        Mount {
            type_: "bind".into(),
            source,
            ..Mount::default()
        },
    );
    let guest = Guest::start().await;
    let id = unique("layers");
    let spec = spec(&["cat", "/etc/passwd"]);
    let streams = guest.create_on(&id, &spec, &rootfs).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(streams.finish(b"").await.0, "upper\n");
}

/// A root whose links try to lead out of it.
fn hostile(links: &[(&str, &str)]) -> tempfile::TempDir {
    let layer = tempfile::tempdir().unwrap();
    for (name, target) in links {
        symlink(target, layer.path().join(name)).unwrap();
    }
    layer
}

async fn run_on(layer: &Path, spec: &oci::Spec) -> ttrpc::Result<String> {
    let mut rootfs = bind_overlay();
    let source = layer.to_str().unwrap().into();
    rootfs.insert(
        0,
        Mount {
            type_: "bind".into(),
            source,
            ..Mount::default()
        },
    );
    let guest = Guest::start().await;
    let id = unique("hostile");
    let streams = guest.create_on(&id, spec, &rootfs).await?;
    guest.start_process(&id, "").await?;
    Ok(streams.finish(b"").await.0)
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn links_of_an_image_lead_nowhere_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let layer = hostile(&[("link", target), ("up", "../../../../../../tmp")]);
    let mut spec = shell("awk '$2 ~ /^.(link|up)/' /proc/self/mounts | wc -l; ls -d /tmp/deep");
    for destination in ["/link/deep", "/up/deep"] {
        spec.mounts.push(oci::Mount {
            destination: destination.into(),
            kind: Some("tmpfs".into()),
            source: Some("tmpfs".into()),
            options: Vec::new(),
            ..oci::Mount::default()
        });
    }
    // The first link dangles inside the root, so nothing can be made there.
    let (_, sentence) = refusal(run_on(layer.path(), &spec).await);
    assert!(sentence.contains("/link/deep"), "{sentence}");
    spec.mounts
        .retain(|mount| mount.destination != "/link/deep");
    assert_eq!(run_on(layer.path(), &spec).await.unwrap(), "0\n/tmp/deep\n");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn proc_through_a_link_is_refused_and_linked_dev_stays_inside() {
    let layer = hostile(&[("proc", "/tmp")]);
    let (_, sentence) = refusal(run_on(layer.path(), &spec(&["true"])).await);
    assert!(sentence.contains("mount /proc"), "{sentence}");

    let layer = hostile(&[("dev", "/tmp")]);
    let text = run_on(layer.path(), &spec(&["ls", "/tmp/null"]))
        .await
        .unwrap();
    assert_eq!(text, "/tmp/null\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn bind_mounts_take_files_and_directories() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), "content\n").unwrap();
    let mut spec = shell("cat /new/file; cat /dir/file; touch /dir/x || echo refused");
    let mut bind = |from: &Path, to: &str, options: &[&str]| {
        spec.mounts.push(oci::Mount {
            destination: to.into(),
            kind: Some("bind".into()),
            source: Some(from.to_str().unwrap().into()),
            options: options.iter().map(|&option| option.into()).collect(),
            ..oci::Mount::default()
        });
    };
    bind(&source.path().join("file"), "/new/file", &["rbind"]);
    bind(source.path(), "/dir", &["rbind", "ro", "rprivate"]);
    let outcome = Guest::start().await.run(&spec, b"").await.unwrap();
    assert_eq!(outcome.stdout, "content\ncontent\nrefused\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn absent_bind_source_and_unknown_file_system_are_named() {
    let guest = Guest::start().await;
    for (kind, source) in [("bind", "/nowhere"), ("nofs", "none")] {
        let mut spec = spec(&["true"]);
        spec.mounts.push(oci::Mount {
            destination: "/target".into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: Vec::new(),
            ..oci::Mount::default()
        });
        let (_, sentence) = refusal(guest.run(&spec, b"").await);
        assert!(sentence.starts_with("mount /target: "), "{sentence}");
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn sysctls_are_set_in_the_containers_namespaces() {
    let mut spec = spec(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
    let linux = spec.linux.as_mut().unwrap();
    linux
        .sysctl
        .insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    assert_eq!(
        Guest::start().await.run(&spec, b"").await.unwrap().stdout,
        "7\n"
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn exec_is_in_the_containers_namespaces() {
    let guest = Guest::start().await;
    let id = unique("inside");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let script = "for n in pid mnt ipc uts net cgroup; do \
        test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) || echo other $n; done; \
        hostname; grep ^0: /proc/self/cgroup; ls /proc/self/fd | wc -l";
    let outcome = guest.exec(&id, &process(script), b"").await.unwrap();
    assert_eq!(outcome.stdout, "nerite\n0::/\n4\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn two_containers_share_a_namespace_by_path() {
    let guest = Guest::start().await;
    let first = unique("first");
    let _streams = guest.create(&first, &shell("sleep 100")).await.unwrap();
    let pid = guest.start_process(&first, "").await.unwrap();
    let mut spec = shell("ls -d /proc/[0-9]* | wc -l; test $$ = 1 || echo second");
    for namespace in &mut spec.linux.as_mut().unwrap().namespaces {
        if ["pid", "network", "ipc"].contains(&&*namespace.kind) {
            let file = if namespace.kind == "network" {
                "net"
            } else {
                &namespace.kind
            };
            namespace.path = Some(format!("/proc/{pid}/ns/{file}"));
        }
    }
    let outcome = guest.run(&spec, b"").await.unwrap();
    assert_eq!(outcome.stdout, "4\nsecond\n");
}
