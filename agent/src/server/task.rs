//! containerd's Task service, version 3. Every method is here: one left out
//! would compile and answer `NOT_FOUND` at run time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, MessageField};
use protocol::agent::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use protocol::agent::events::{TaskPaused, TaskResumed};
use protocol::agent::runc::ProcessDetails;
use protocol::agent::task::Task;
use protocol::agent::{RESOURCES_TYPE_URL, topics};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use ttrpc::r#async::TtrpcContext;

use super::Agent;
use super::lifecycle::json;
use crate::container::process::{Phase, Process};
use crate::container::{Container, limits, stats};
use crate::error::{Failure, Result};
use crate::sys;

/// The service.
pub(super) struct TaskService(pub(super) Arc<Agent>);

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _context: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        Ok(state(&container, &process))
    }

    async fn create(
        &self,
        _context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let agent = Arc::clone(&self.0);
        let pid = detached(async move { agent.create(request).await }).await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let agent = Arc::clone(&self.0);
        let start = async move { agent.start(&request.id, &request.exec_id).await };
        let pid = detached(start).await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let agent = Arc::clone(&self.0);
        let delete = async move { agent.delete(&request.id, &request.exec_id).await };
        let (pid, exit) = detached(delete).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.timestamp()),
            ..DeleteResponse::default()
        })
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: PidsRequest,
    ) -> ttrpc::Result<PidsResponse> {
        let container = self.0.container(&request.id)?;
        let processes = container
            .cgroup
            .processes()
            .into_iter()
            .map(|pid| info(&container, pid))
            .collect();
        Ok(PidsResponse {
            processes,
            ..PidsResponse::default()
        })
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        set_frozen(&container, true).await?;
        self.0.events.publish(
            topics::TASK_PAUSED_EVENT_TOPIC,
            &TaskPaused {
                container_id: request.id,
                ..TaskPaused::default()
            },
        );
        Ok(Empty::new())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: ResumeRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        set_frozen(&container, false).await?;
        self.0.events.publish(
            topics::TASK_RESUMED_EVENT_TOPIC,
            &TaskResumed {
                container_id: request.id,
                ..TaskResumed::default()
            },
        );
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        _request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        Err(Failure::unsupported(
            "a single container cannot be checkpointed; the sandbox as a whole is what can be saved",
        )
        .into())
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let signal = i32::try_from(request.signal)
            .map_err(|_| Failure::argument(format!("signal {} does not exist", request.signal)))?;
        if request.all && process.is_init() {
            kill_all(&container, signal)?;
        } else {
            process.signal(signal)?;
        }
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.add(request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let size = |field: &str, value: u32| {
            u16::try_from(value)
                .map_err(|_| Failure::argument(format!("{field} {value} is too large")))
        };
        let (rows, columns) = (
            size("height", request.height)?,
            size("width", request.width)?,
        );
        let stdio = process
            .stdio()
            .ok_or_else(|| Failure::state(format!("{} is not started", process.name())))?;
        stdio.resize(rows, columns)?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin
            && let Some(stdio) = process.stdio()
        {
            stdio.close_input();
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _context: &TtrpcContext,
        request: UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let resources = json("resources", RESOURCES_TYPE_URL, &request.resources)?;
        limits::apply(&container.cgroup, &resources)?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: WaitRequest,
    ) -> ttrpc::Result<WaitResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let (name, exited) = (process.name(), process.exited());
        // Its deletion must be seen, so it must not be kept.
        drop(process);
        let exit = exited
            .await
            .ok_or_else(|| Failure::not_found(format!("{name} has been deleted")))?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(exit.timestamp()),
            ..WaitResponse::default()
        })
    }

    async fn stats(
        &self,
        _context: &TtrpcContext,
        request: StatsRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let container = self.0.container(&request.id)?;
        let stats = any(stats::TYPE_URL, &stats::read(&container.cgroup))?;
        Ok(StatsResponse {
            stats: MessageField::some(stats),
            ..StatsResponse::default()
        })
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        let container = self.0.container(&request.id)?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.init.pid(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(
        &self,
        _context: &TtrpcContext,
        request: ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        // As containerd's own shims do it: not while there are containers.
        if request.now || self.0.containers().is_empty() {
            self.0.shut_down();
        }
        Ok(Empty::new())
    }
}

/// Runs to its end even if nobody waits for the answer any more.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal(format!("the agent gave up: {error}"))))
}

fn state(container: &Container, process: &Process) -> StateResponse {
    let mut response = StateResponse {
        id: container.id.clone(),
        bundle: container.bundle.clone(),
        pid: process.pid(),
        stdin: process.request.stdin.clone(),
        stdout: process.request.stdout.clone(),
        stderr: process.request.stderr.clone(),
        terminal: process.request.terminal,
        exec_id: process.exec.clone(),
        ..StateResponse::default()
    };
    let status = match &*process.phase() {
        Phase::Added(_) | Phase::Waiting { .. } | Phase::Starting(_) => Status::CREATED,
        Phase::Running if container.paused.load(Ordering::Relaxed) => Status::PAUSED,
        Phase::Running => Status::RUNNING,
        Phase::Stopped(exit) => {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.timestamp());
            Status::STOPPED
        }
    };
    response.status = status.into();
    response
}

/// A process of a container, with its exec id if it has one.
fn info(container: &Container, pid: u32) -> ProcessInfo {
    let exec = container
        .execs()
        .values()
        .find(|exec| exec.pid() == pid)
        .map(|exec| {
            let details = ProcessDetails {
                exec_id: exec.exec.clone(),
                ..ProcessDetails::default()
            };
            any("containerd.runc.v1.ProcessDetails", &details).unwrap_or_default()
        });
    ProcessInfo {
        pid,
        info: exec.into(),
        ..ProcessInfo::default()
    }
}

fn any(type_url: &str, message: &impl Message) -> Result<Any> {
    let value = message
        .write_to_bytes()
        .map_err(|error| Failure::internal(format!("write {type_url}: {error}")))?;
    Ok(Any {
        type_url: type_url.into(),
        value,
        ..Any::default()
    })
}

async fn set_frozen(container: &Container, frozen: bool) -> Result<()> {
    if !matches!(*container.init.phase(), Phase::Running) {
        return Err(Failure::state(format!(
            "container {:?} is not running",
            container.id
        )));
    }
    if container.paused.swap(frozen, Ordering::Relaxed) == frozen {
        let state = if frozen {
            "paused already"
        } else {
            "not paused"
        };
        return Err(Failure::state(format!(
            "container {:?} is {state}",
            container.id
        )));
    }
    container.cgroup.freeze(frozen).await
}

/// Signals every process of a container.
fn kill_all(container: &Container, signal: i32) -> Result<()> {
    if signal == sys::KILL {
        return container.cgroup.kill();
    }
    // The ids are pinned first and looked up again then: one that is still in
    // the cgroup cannot belong to anybody else.
    let pinned: Vec<_> = container
        .cgroup
        .processes()
        .into_iter()
        .filter_map(|pid| {
            let fd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
            Some((pid, fd))
        })
        .collect();
    let present = container.cgroup.processes();
    for (_, process) in pinned.iter().filter(|(pid, _)| present.contains(pid)) {
        // Any other failure: it ended by itself, which is what was wanted.
        if sys::send_signal(process.as_fd(), signal) == Err(Errno::INVAL) {
            return Err(Failure::argument(format!("signal {signal} does not exist")));
        }
    }
    Ok(())
}
