//! An agent in namespaces of its own, and a keeper for it.
//!
//! The agent is the real program over a Unix socket (`--socket`), PID 1 of a
//! pid namespace, with a private mount namespace. This needs root, cgroup v2
//! and a busybox root at `/srv/roots/busybox`: the test machine has them, so
//! these tests are marked `ignore` and run there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use protocol::agent::api::{
    CreateTaskRequest, DeleteRequest, ExecProcessRequest, Mount, StartRequest, WaitRequest,
};
use protocol::agent::sandbox::{Event, NextEventsRequest, SandboxClient};
use protocol::agent::task::TaskClient;
use protocol::agent::{PROCESS_TYPE_URL, SPEC_TYPE_URL};
use protocol::oci;
use protocol::stream::HostPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use ttrpc::r#async::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// The root that containers get.
pub(crate) const ROOT: &str = "/srv/roots/busybox";

/// Nothing here takes as long; a test that hangs says so.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

type Ports = Arc<Mutex<HashMap<u32, oneshot::Sender<UnixStream>>>>;

/// A running agent.
pub(crate) struct Guest {
    pub(crate) tasks: TaskClient,
    pub(crate) sandbox: SandboxClient,
    ports: Ports,
    next_port: AtomicU32,
    child: Child,
    connection: std::os::unix::net::UnixStream,
    _directory: tempfile::TempDir,
}

/// A process's streams, on the keeper's side.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<UnixStream>,
    pub(crate) stdout: Option<UnixStream>,
    pub(crate) stderr: Option<UnixStream>,
}

/// What a process has left.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// No deadline of ttrpc's own.
pub(crate) fn context() -> Context {
    Context::default()
}

/// An id that no other test uses at the same time.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{name}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

impl Guest {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::env::var_os("NERITE_AGENT").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_nerite-agent")),
            PathBuf::from,
        );
        let child = Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--kill-child", "--"])
            .arg(agent)
            .arg("--socket")
            .arg(&path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ports = Ports::default();
        let first = expect(&ports, HostPort::AGENT.0);
        tokio::spawn(accept(listener, Arc::clone(&ports)));
        let stream = tokio::time::timeout(DEADLINE, first)
            .await
            .expect("agent connects")
            .unwrap();
        let stream = stream.into_std().unwrap();
        let connection = stream.try_clone().unwrap();
        let client = Client::new(Socket::new(UnixStream::from_std(stream).unwrap()));
        Self {
            tasks: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client),
            ports,
            next_port: AtomicU32::new(HostPort::FIRST_STREAM.0),
            child,
            connection,
            _directory: directory,
        }
    }

    /// Gives a port away, as an address and a connection to come.
    pub(crate) fn port(&self) -> (String, oneshot::Receiver<UnixStream>) {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        (format!("vsock:{port}"), expect(&self.ports, port))
    }

    /// Creates a container with all streams.
    pub(crate) async fn create(&self, id: &str, spec: &oci::Spec) -> ttrpc::Result<Streams> {
        self.create_on(id, spec, &bind_overlay()).await
    }

    pub(crate) async fn create_on(
        &self,
        id: &str,
        spec: &oci::Spec,
        rootfs: &[Mount],
    ) -> ttrpc::Result<Streams> {
        let terminal = spec.process.as_ref().unwrap().terminal;
        let (stdin, stdout, stderr) = (self.port(), self.port(), self.port());
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: "/bundle".into(),
            rootfs: rootfs.to_vec(),
            terminal,
            stdin: stdin.0,
            stdout: stdout.0,
            stderr: if terminal { String::new() } else { stderr.0 },
            options: json(SPEC_TYPE_URL, spec),
            ..CreateTaskRequest::default()
        };
        self.tasks.create(context(), &request).await?;
        Ok(Streams {
            stdin: Some(stdin.1.await.unwrap()),
            stdout: Some(stdout.1.await.unwrap()),
            stderr: if terminal {
                None
            } else {
                Some(stderr.1.await.unwrap())
            },
        })
    }

    pub(crate) async fn start_process(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..StartRequest::default()
        };
        Ok(self.tasks.start(context(), &request).await?.pid)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> u32 {
        let request = WaitRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..WaitRequest::default()
        };
        let wait = self.tasks.wait(context(), &request);
        tokio::time::timeout(DEADLINE, wait)
            .await
            .expect("process ends")
            .unwrap()
            .exit_status
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..DeleteRequest::default()
        };
        Ok(self.tasks.delete(context(), &request).await?.exit_status)
    }

    /// Creates, starts, feeds, reads, waits, deletes.
    pub(crate) async fn run(&self, spec: &oci::Spec, input: &[u8]) -> ttrpc::Result<Outcome> {
        let id = unique("run");
        let streams = self.create(&id, spec).await?;
        let started = self.start_process(&id, "").await;
        if started.is_err() {
            self.delete(&id, "").await?;
        }
        started?;
        let (stdout, stderr) = streams.finish(input).await;
        let status = self.wait(&id, "").await;
        self.delete(&id, "").await?;
        Ok(Outcome {
            status,
            stdout,
            stderr,
        })
    }

    /// Adds a process with all streams, not started.
    pub(crate) async fn add(
        &self,
        id: &str,
        exec: &str,
        process: &oci::Process,
    ) -> ttrpc::Result<PendingStreams> {
        let (stdin, stdout, stderr) = (self.port(), self.port(), self.port());
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal: process.terminal,
            stdin: stdin.0,
            stdout: stdout.0,
            stderr: if process.terminal {
                String::new()
            } else {
                stderr.0
            },
            spec: json(PROCESS_TYPE_URL, process),
            ..ExecProcessRequest::default()
        };
        self.tasks.exec(context(), &request).await?;
        Ok(PendingStreams {
            stdin: stdin.1,
            stdout: stdout.1,
            stderr: (!process.terminal).then_some(stderr.1),
        })
    }

    /// Adds a process, runs it to its end, deletes it.
    pub(crate) async fn exec(
        &self,
        id: &str,
        process: &oci::Process,
        input: &[u8],
    ) -> ttrpc::Result<Outcome> {
        let exec = unique("exec");
        let pending = self.add(id, &exec, process).await?;
        let started = self.start_process(id, &exec).await;
        if started.is_err() {
            self.delete(id, &exec).await?;
        }
        started?;
        let (stdout, stderr) = pending.connected().await.finish(input).await;
        let status = self.wait(id, &exec).await;
        self.delete(id, &exec).await?;
        Ok(Outcome {
            status,
            stdout,
            stderr,
        })
    }

    /// All events after `after`, as they are now.
    pub(crate) async fn events(&self, after: u64) -> Vec<Event> {
        let request = NextEventsRequest {
            after,
            ..NextEventsRequest::default()
        };
        let events = self.sandbox.next_events(context(), &request);
        tokio::time::timeout(DEADLINE, events)
            .await
            .expect("events come")
            .unwrap()
            .events
    }

    /// The topics of all events so far, until one is `last`.
    pub(crate) async fn topics_until(&self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        let mut seen = 0;
        while topics.last().is_none_or(|topic| topic != last) {
            for event in self.events(seen).await {
                seen = event.sequence;
                topics.push(event.topic);
            }
        }
        topics
    }

    /// Waits until the agent's process has gone.
    pub(crate) async fn gone(&mut self) {
        tokio::time::timeout(DEADLINE, self.child.wait())
            .await
            .expect("agent ends")
            .unwrap();
    }

    /// Breaks the keeper's connection.
    pub(crate) fn disconnect(&self) {
        self.connection.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// The agent's process id, as the test sees it.
    pub(crate) fn agent(&self) -> String {
        let unshare = self.child.id().unwrap();
        let path = format!("/proc/{unshare}/task/{unshare}/children");
        std::fs::read_to_string(path).unwrap().trim().into()
    }

    /// Descriptors that the agent has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent()))
            .unwrap()
            .count()
    }
}

/// Streams that are connected when the process is started.
pub(crate) struct PendingStreams {
    stdin: oneshot::Receiver<UnixStream>,
    stdout: oneshot::Receiver<UnixStream>,
    stderr: Option<oneshot::Receiver<UnixStream>>,
}

impl PendingStreams {
    pub(crate) async fn connected(self) -> Streams {
        Streams {
            stdin: Some(self.stdin.await.unwrap()),
            stdout: Some(self.stdout.await.unwrap()),
            stderr: match self.stderr {
                Some(stderr) => Some(stderr.await.unwrap()),
                None => None,
            },
        }
    }
}

impl Streams {
    /// Gives all input, ends it, reads both outputs to their ends.
    pub(crate) async fn finish(mut self, input: &[u8]) -> (String, String) {
        let mut stdin = self.stdin.take().unwrap();
        let write = async move {
            // A process that does not read may be gone before all is written.
            let _ = stdin.write_all(input).await;
            let _ = stdin.shutdown().await;
            stdin
        };
        let all = async { tokio::join!(write, text(self.stdout), text(self.stderr)) };
        let (_, stdout, stderr) = tokio::time::timeout(DEADLINE, all)
            .await
            .expect("streams end");
        (stdout, stderr)
    }
}

/// Everything from a stream.
pub(crate) async fn text(stream: Option<UnixStream>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await.unwrap();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn expect(ports: &Ports, port: u32) -> oneshot::Receiver<UnixStream> {
    let (sender, receiver) = oneshot::channel();
    ports.lock().unwrap().insert(port, sender);
    receiver
}

async fn accept(listener: UnixListener, ports: Ports) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let port = stream.read_u32_le().await.unwrap();
        // Like the VMM: a port that was not given is refused.
        if let Some(sender) = ports.lock().unwrap().remove(&port) {
            let _ = sender.send(stream);
        }
    }
}

/// A structure of the OCI in an `Any`.
pub(crate) fn json<T: serde::Serialize>(type_url: &str, value: &T) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.into(),
        value: serde_json::to_vec(value).unwrap(),
        ..Any::default()
    })
}

/// The busybox root under a writable layer.
pub(crate) fn bind_overlay() -> Vec<Mount> {
    let mount = |kind: &str, source: &str| Mount {
        type_: kind.into(),
        source: source.into(),
        ..Mount::default()
    };
    vec![mount("bind", ROOT), mount("overlay", "overlay")]
}

/// Roughly what Docker configures, running `args`.
pub(crate) fn spec(args: &[&str]) -> oci::Spec {
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0",
        "hostname": "nerite",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "cgroup"}, {"type": "network"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware", "/proc/absent"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
    .unwrap()
}

/// A shell running a script.
pub(crate) fn shell(script: &str) -> oci::Spec {
    spec(&["sh", "-c", script])
}

/// The same as a process to add.
pub(crate) fn process(script: &str) -> oci::Process {
    shell(script).process.unwrap()
}

/// The code and sentence of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.expect_err("refused") {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        error => panic!("{error}"),
    }
}

/// A message from its bytes.
pub(crate) fn parse<M: Message>(bytes: &[u8]) -> M {
    M::parse_from_bytes(bytes).unwrap()
}
