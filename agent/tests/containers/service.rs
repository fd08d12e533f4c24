//! The services themselves: every method, states, signals, events, leaks.

use std::fs;

use protocol::agent::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, KillRequest, PauseRequest, PidsRequest,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StateRequest, StatsRequest, Status,
    UpdateTaskRequest,
};
use protocol::agent::events::TaskExit;
use protocol::agent::metrics::Metrics;
use protocol::agent::runc::ProcessDetails;
use protocol::agent::sandbox::{InfoRequest, OnlineCpusRequest, TimelineRequest};
use protocol::agent::{RESOURCES_TYPE_URL, topics};
use protocol::oci;
use protocol::timeline;
use tokio::io::AsyncReadExt;
use ttrpc::Code;

use crate::support::{
    DEADLINE, Guest, context, json, parse, process, refusal, shell, spec, unique,
};

async fn status(guest: &Guest, id: &str, exec: &str) -> Status {
    let request = StateRequest {
        id: id.into(),
        exec_id: exec.into(),
        ..StateRequest::default()
    };
    guest
        .tasks
        .state(context(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
}

async fn kill(guest: &Guest, id: &str, exec: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
    let request = KillRequest {
        id: id.into(),
        exec_id: exec.into(),
        signal,
        all,
        ..KillRequest::default()
    };
    guest.tasks.kill(context(), &request).await.map(|_| ())
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn every_method_answers() {
    let mut guest = Guest::start().await;
    let id = unique("all");
    let tasks = guest.tasks.clone();
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    assert_eq!(status(&guest, &id, "").await, Status::CREATED);
    let pid = guest.start_process(&id, "").await.unwrap();
    assert_eq!(status(&guest, &id, "").await, Status::RUNNING);

    let pending = guest.add(&id, "e", &process("sleep 100")).await.unwrap();
    assert_eq!(status(&guest, &id, "e").await, Status::CREATED);
    let exec_pid = guest.start_process(&id, "e").await.unwrap();
    let _exec_streams = pending.connected().await;
    let pids = tasks
        .pids(
            context(),
            &PidsRequest {
                id: id.clone(),
                ..PidsRequest::default()
            },
        )
        .await
        .unwrap()
        .processes;
    assert!(pids.iter().any(|process| process.pid == pid));
    let exec = pids.iter().find(|process| process.pid == exec_pid).unwrap();
    assert_eq!(parse::<ProcessDetails>(&exec.info.value).exec_id, "e");

    let pause = PauseRequest {
        id: id.clone(),
        ..PauseRequest::default()
    };
    tasks.pause(context(), &pause).await.unwrap();
    assert_eq!(status(&guest, &id, "").await, Status::PAUSED);
    let exec = guest.exec(&id, &process("true"), b"").await;
    assert_eq!(refusal(exec).0, Code::FAILED_PRECONDITION);
    let resume = ResumeRequest {
        id: id.clone(),
        ..ResumeRequest::default()
    };
    tasks.resume(context(), &resume).await.unwrap();
    assert_eq!(status(&guest, &id, "").await, Status::RUNNING);

    let checkpoint = CheckpointTaskRequest {
        id: id.clone(),
        ..CheckpointTaskRequest::default()
    };
    let (code, _) = refusal(tasks.checkpoint(context(), &checkpoint).await);
    assert_eq!(code, Code::UNIMPLEMENTED);
    let resize = ResizePtyRequest {
        id: id.clone(),
        width: 1,
        height: 1,
        ..Default::default()
    };
    let (code, sentence) = refusal(tasks.resize_pty(context(), &resize).await);
    assert_eq!(
        (code, &*sentence),
        (Code::FAILED_PRECONDITION, "the process has no terminal")
    );
    let close = CloseIORequest {
        id: id.clone(),
        stdin: true,
        ..CloseIORequest::default()
    };
    tasks.close_io(context(), &close).await.unwrap();
    let update = UpdateTaskRequest {
        id: id.clone(),
        resources: json(RESOURCES_TYPE_URL, &oci::Resources::default()),
        ..UpdateTaskRequest::default()
    };
    tasks.update(context(), &update).await.unwrap();
    let stats = StatsRequest {
        id: id.clone(),
        ..StatsRequest::default()
    };
    let stats = tasks.stats(context(), &stats).await.unwrap().stats.unwrap();
    assert!(parse::<Metrics>(&stats.value).cpu.usage_usec > 0);
    let connect = ConnectRequest {
        id: id.clone(),
        ..ConnectRequest::default()
    };
    assert_eq!(
        tasks.connect(context(), &connect).await.unwrap().task_pid,
        pid
    );

    // Without `now` a shutdown waits for the last container's end.
    tasks
        .shutdown(context(), &ShutdownRequest::default())
        .await
        .unwrap();
    kill(&guest, &id, "", 9, false).await.unwrap();
    assert_eq!(guest.wait(&id, "").await, 137);
    assert_eq!(guest.wait(&id, "e").await, 137);
    assert_eq!(status(&guest, &id, "").await, Status::STOPPED);
    assert_eq!(guest.delete(&id, "e").await.unwrap(), 137);
    assert_eq!(guest.delete(&id, "").await.unwrap(), 137);
    let now = ShutdownRequest {
        now: true,
        ..ShutdownRequest::default()
    };
    let _ = tasks.shutdown(context(), &now).await;
    guest.gone().await;
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn sandbox_tells_about_itself() {
    let guest = Guest::start().await;
    let info = guest
        .sandbox
        .info(context(), &InfoRequest::default())
        .await
        .unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(info.kernel_release, release.trim());
    assert!(info.memory_bytes > 1 << 20 && info.cpus > 0);
    let request = OnlineCpusRequest {
        count: 1,
        ..OnlineCpusRequest::default()
    };
    let online = guest
        .sandbox
        .online_cpus(context(), &request)
        .await
        .unwrap()
        .online;
    assert_eq!(online, info.cpus);
    let request = OnlineCpusRequest {
        count: 10_000,
        ..OnlineCpusRequest::default()
    };
    let (code, _) = refusal(guest.sandbox.online_cpus(context(), &request).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);

    guest.run(&spec(&["true"]), b"").await.unwrap();
    let answer = guest
        .sandbox
        .timeline(context(), &TimelineRequest::default())
        .await
        .unwrap();
    let names: Vec<&str> = answer.points.iter().map(|point| &*point.name).collect();
    let expected = [
        timeline::AGENT_START,
        timeline::AGENT_READY,
        timeline::CONTAINER_CREATE,
        timeline::CONTAINER_CREATED,
        timeline::CONTAINER_START,
        timeline::WORKLOAD_EXEC,
        timeline::WORKLOAD_EXIT,
    ];
    assert_eq!(names, expected);
    assert!(answer.points.is_sorted_by_key(|point| point.tsc));
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn events_come_in_containerds_order() {
    let guest = Guest::start().await;
    let id = unique("events");
    let streams = guest.create(&id, &shell("read x; exit 4")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    guest.exec(&id, &process("exit 5"), b"").await.unwrap();
    drop(streams);
    guest.wait(&id, "").await;
    guest.delete(&id, "").await.unwrap();
    let topics = guest.topics_until(topics::TASK_DELETE_EVENT_TOPIC).await;
    let expected = [
        topics::TASK_CREATE_EVENT_TOPIC,
        topics::TASK_START_EVENT_TOPIC,
        topics::TASK_EXEC_ADDED_EVENT_TOPIC,
        topics::TASK_EXEC_STARTED_EVENT_TOPIC,
        topics::TASK_EXIT_EVENT_TOPIC,
        topics::TASK_EXIT_EVENT_TOPIC,
        topics::TASK_DELETE_EVENT_TOPIC,
    ];
    assert_eq!(topics, expected);
    // Those seen are forgotten by now; the last one is left.
    let last = guest.events(6).await;
    assert_eq!(last.len(), 1);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn start_is_told_before_the_exit_of_the_shortest_program() {
    let guest = Guest::start().await;
    for _ in 0..30 {
        guest.run(&spec(&["true"]), b"").await.unwrap();
    }
    let events = guest.events(0).await;
    let topics: Vec<&str> = events.iter().map(|event| &*event.topic).collect();
    for four in topics.chunks(4) {
        assert_eq!(
            four,
            [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exit",
                "/tasks/delete"
            ]
        );
    }
    let exit: TaskExit = parse(&events[2].payload);
    assert_eq!((exit.exit_status, &exit.id), (0, &exit.container_id));
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn wrong_requests_are_refused_with_their_kind() {
    let guest = Guest::start().await;
    let id = unique("wrong");
    let (code, sentence) = refusal(guest.start_process("absent", "").await);
    assert_eq!(
        (code, &*sentence),
        (Code::NOT_FOUND, "container \"absent\" does not exist")
    );
    let (code, _) = refusal(guest.create("../x", &spec(&["true"])).await.map(|_| ()));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    let (code, _) = refusal(guest.create(&id, &spec(&["true"])).await.map(|_| ()));
    assert_eq!(code, Code::ALREADY_EXISTS);
    let (code, _) = refusal(guest.add(&id, "e", &process("true")).await.map(|_| ()));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(
        refusal(guest.start_process(&id, "").await).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        refusal(guest.delete(&id, "").await).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        refusal(guest.start_process(&id, "absent").await).0,
        Code::NOT_FOUND
    );
    assert_eq!(
        refusal(kill(&guest, &id, "", 999, false).await).0,
        Code::INVALID_ARGUMENT
    );
    let _pending = guest.add(&id, "e", &process("true")).await.unwrap();
    let (code, _) = refusal(guest.add(&id, "e", &process("true")).await.map(|_| ()));
    assert_eq!(code, Code::ALREADY_EXISTS);
    assert_eq!(guest.delete(&id, "e").await.unwrap(), 0);
    kill(&guest, &id, "", 9, true).await.unwrap();
    guest.wait(&id, "").await;
    let (code, sentence) = refusal(kill(&guest, &id, "", 15, false).await);
    assert_eq!(code, Code::NOT_FOUND);
    assert!(sentence.ends_with("process already finished"), "{sentence}");
    let (code, _) = refusal(guest.add(&id, "e2", &process("true")).await.map(|_| ()));
    assert_eq!(code, Code::FAILED_PRECONDITION);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn failed_create_leaves_the_id_free() {
    let guest = Guest::start().await;
    let id = unique("again");
    let mut wrong = spec(&["true"]);
    wrong.mounts.push(oci::Mount {
        destination: "/x".into(),
        kind: Some("nofs".into()),
        ..oci::Mount::default()
    });
    for _ in 0..3 {
        refusal(guest.create(&id, &wrong).await.map(|_| ()));
    }
    let _streams = guest.create(&id, &spec(&["true"])).await.unwrap();
    // Deleted before it was started.
    assert_eq!(guest.delete(&id, "").await.unwrap(), 137);
    let streams = guest.create(&id, &spec(&["echo", "again"])).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(streams.finish(b"").await.0, "again\n");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn statuses_and_signals_arrive_as_they_are() {
    let guest = Guest::start().await;
    let id = unique("signals");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    for status in [0, 1, 125, 126, 127, 128, 137, 255] {
        let outcome = guest
            .exec(&id, &process(&format!("exit {status}")), b"")
            .await
            .unwrap();
        assert_eq!(outcome.status, status);
    }
    for signal in [1, 2, 3, 6, 9, 11, 13, 14, 15, 34, 64] {
        let exec = unique("signal");
        let mut sleep = process("");
        sleep.args = vec!["sleep".into(), "100".into()];
        let pending = guest.add(&id, &exec, &sleep).await.unwrap();
        guest.start_process(&id, &exec).await.unwrap();
        let _streams = pending.connected().await;
        kill(&guest, &id, &exec, signal, false).await.unwrap();
        assert_eq!(guest.wait(&id, &exec).await, 128 + signal);
        guest.delete(&id, &exec).await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn signal_is_delivered_once_and_to_all_when_asked() {
    let guest = Guest::start().await;
    let id = unique("count");
    let script = "trap 'echo got' TERM; echo ready; while :; do sleep 0.05; done";
    let mut streams = guest.create(&id, &shell(script)).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let stdout = streams.stdout.as_mut().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await.unwrap();
    kill(&guest, &id, "", 15, false).await.unwrap();
    let mut got = [0; 4];
    stdout.read_exact(&mut got).await.unwrap();
    kill(&guest, &id, "", 10, true).await.unwrap();
    // The shell ignores what it does not trap; as PID 1 it lives on.
    kill(&guest, &id, "", 9, true).await.unwrap();
    assert_eq!(guest.wait(&id, "").await, 137);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn orphans_are_reaped_and_die_with_their_container() {
    let guest = Guest::start().await;
    let id = unique("orphans");
    let mut spec = shell("for i in $(seq 200); do (true & ) ; done; (sleep 100 &); exit 0");
    // Without a pid namespace of its own they become the agent's.
    spec.linux
        .as_mut()
        .unwrap()
        .namespaces
        .retain(|namespace| namespace.kind != "pid");
    let _streams = guest.create(&id, &spec).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    assert_eq!(guest.wait(&id, "").await, 0);
    guest.delete(&id, "").await.unwrap();
    // The last ones may have died a moment ago.
    let agent = guest.agent();
    let path = format!("/proc/{agent}/task/{agent}/children");
    let reaped = async {
        while !fs::read_to_string(&path).unwrap().is_empty() {
            guest
                .sandbox
                .info(context(), &InfoRequest::default())
                .await
                .unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, reaped)
        .await
        .expect("orphans are reaped");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn descriptors_stay_the_same() {
    let guest = Guest::start().await;
    let id = unique("flat");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    guest.exec(&id, &process("true"), b"").await.unwrap();
    guest.run(&spec(&["true"]), b"").await.unwrap();
    let before = guest.descriptors();
    for _ in 0..50 {
        guest.exec(&id, &process("true"), b"").await.unwrap();
        refusal(guest.run(&spec(&["nothing"]), b"").await);
        guest.run(&spec(&["true"]), b"").await.unwrap();
    }
    assert_eq!(guest.descriptors(), before);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn agent_ends_with_its_keeper() {
    let mut guest = Guest::start().await;
    let _streams = guest
        .create(&unique("left"), &shell("sleep 100"))
        .await
        .unwrap();
    guest.disconnect();
    guest.gone().await;
}
