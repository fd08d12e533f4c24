//! Limits; these need cgroup v2 with its controllers.

use protocol::agent::api::{StatsRequest, UpdateTaskRequest};
use protocol::agent::metrics::Metrics;
use protocol::agent::{RESOURCES_TYPE_URL, topics};
use protocol::oci;

use crate::support::{Guest, context, json, parse, process, refusal, shell, unique};

fn limited(script: &str, resources: serde_json::Value) -> oci::Spec {
    let mut spec = shell(script);
    spec.linux.as_mut().unwrap().resources = Some(serde_json::from_value(resources).unwrap());
    spec
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn limits_are_in_force() {
    let resources = serde_json::json!({
        "memory": {"limit": 67_108_864, "reservation": 1_048_576},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
        "pids": {"limit": 50},
        "unified": {"memory.high": "max"},
    });
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.weight cpu.max pids.max";
    let outcome = Guest::start()
        .await
        .run(&limited(script, resources), b"")
        .await
        .unwrap();
    assert_eq!(outcome.stdout, "67108864\n1048576\n20\n50000 100000\n50\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn out_of_memory_is_told_before_the_exit() {
    let guest = Guest::start().await;
    let resources = serde_json::json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    let spec = limited("exec tail -c 100000000 /dev/zero", resources);
    assert_eq!(guest.run(&spec, b"").await.unwrap().status, 137);
    let topics = guest.topics_until(topics::TASK_DELETE_EVENT_TOPIC).await;
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/oom",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn out_of_memory_in_a_child_is_told_too() {
    let guest = Guest::start().await;
    let id = unique("oom");
    let resources = serde_json::json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    let spec = limited("tail -c 100000000 /dev/zero; sleep 100", resources);
    let _streams = guest.create(&id, &spec).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let topics = guest.topics_until(topics::TASK_OOM_EVENT_TOPIC).await;
    assert_eq!(topics.len(), 3);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn number_of_processes_is_limited() {
    let resources = serde_json::json!({"pids": {"limit": 5}});
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo never";
    let outcome = Guest::start()
        .await
        .run(&limited(script, resources), b"")
        .await
        .unwrap();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn limits_change_while_it_runs_and_use_is_told() {
    let guest = Guest::start().await;
    let id = unique("update");
    let script = "tail -c 20000000 /dev/zero | (sleep 100; cat) ";
    let _streams = guest.create(&id, &shell(script)).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let resources = serde_json::json!({"memory": {"limit": 134_217_728}, "pids": {"limit": 20}});
    let request = UpdateTaskRequest {
        id: id.clone(),
        resources: json(RESOURCES_TYPE_URL, &resources),
        ..UpdateTaskRequest::default()
    };
    guest.tasks.update(context(), &request).await.unwrap();
    let mut usage = 0;
    while usage < 20_000_000 {
        let request = StatsRequest {
            id: id.clone(),
            ..StatsRequest::default()
        };
        let stats = guest
            .tasks
            .stats(context(), &request)
            .await
            .unwrap()
            .stats
            .unwrap();
        let metrics: Metrics = parse(&stats.value);
        assert_eq!(
            (metrics.memory.usage_limit, metrics.pids.limit),
            (134_217_728, 20)
        );
        assert!(metrics.pids.current >= 2 && metrics.cpu.usage_usec > 0);
        usage = metrics.memory.usage;
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn impossible_limits_are_named() {
    let guest = Guest::start().await;
    let resources = serde_json::json!({"unified": {"memory.nothing": "1"}});
    let (_, sentence) = refusal(guest.run(&limited("true", resources), b"").await);
    assert!(sentence.starts_with("set memory.nothing"), "{sentence}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root and cgroup v2 controllers: runs in the machine"]
async fn exec_works_when_the_container_has_nested_its_cgroups() {
    let guest = Guest::start().await;
    let id = unique("nested");
    let script = "cd /sys/fs/cgroup; mkdir inner; echo 0 > inner/cgroup.procs; \
        echo +pids > cgroup.subtree_control; echo done; sleep 100";
    let mut spec = shell(script);
    for mount in &mut spec.mounts {
        mount.options.retain(|option| option != "ro");
    }
    let mut streams = guest.create(&id, &spec).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let mut done = [0; 5];
    let stdout = streams.stdout.as_mut().unwrap();
    tokio::io::AsyncReadExt::read_exact(stdout, &mut done)
        .await
        .unwrap();
    let outcome = guest
        .exec(&id, &process("grep ^0: /proc/self/cgroup"), b"")
        .await
        .unwrap();
    assert_eq!(outcome.stdout, "0::/inner\n");
}
