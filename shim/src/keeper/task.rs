//! containerd's Task service, versions 2 and 3, over a keeper.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use protobuf::MessageField;
use protobuf::well_known_types::empty::Empty;
use protocol::agent::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use protocol::agent::task::{Task, create_task};
use protocol::error::chain;
use ttrpc::r#async::{Service, TtrpcContext};

use super::container::{Container, Phase, Process};
use super::lifecycle::{ANSWER, name};
use super::{Keeper, KeeperError, Result};
use crate::sandbox::SandboxError;

/// The names of the two versions, which share their messages.
const VERSIONS: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The services of a keeper, by name.
#[must_use]
pub fn services(keeper: &Arc<Keeper>) -> HashMap<String, Service> {
    VERSIONS
        .into_iter()
        .flat_map(|name| {
            let service = create_task(Arc::new(TaskService(Arc::clone(keeper))));
            service
                .into_values()
                .map(move |service| (name.to_owned(), service))
        })
        .collect()
}

impl From<KeeperError> for ttrpc::Error {
    fn from(error: KeeperError) -> Self {
        use ttrpc::Code;
        let code = match &error {
            KeeperError::NotFound(_) | KeeperError::Finished => Code::NOT_FOUND,
            KeeperError::Exists(_) => Code::ALREADY_EXISTS,
            KeeperError::State(_) => Code::FAILED_PRECONDITION,
            KeeperError::Unsupported(_) => Code::UNIMPLEMENTED,
            KeeperError::Bundle(_) | KeeperError::Mount(_) | KeeperError::Size(_) => {
                Code::INVALID_ARGUMENT
            }
            KeeperError::Sandbox(SandboxError::Refused { code, .. }) => *code,
            KeeperError::Sandbox(_) | KeeperError::Root(_) | KeeperError::Stream { .. } => {
                Code::UNKNOWN
            }
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, chain(&error)))
    }
}

struct TaskService(Arc<Keeper>);

/// Runs to its end even if nobody waits for the answer any more.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ttrpc::Error::Others(format!("the keeper gave up: {error}"))),
    }
}

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
        let keeper = Arc::clone(&self.0);
        let pid = detached(async move { keeper.create(request).await }).await?;
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
        let keeper = Arc::clone(&self.0);
        let start = async move { keeper.start(&request.id, &request.exec_id).await };
        Ok(StartResponse {
            pid: detached(start).await?,
            ..StartResponse::default()
        })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let keeper = Arc::clone(&self.0);
        let delete = async move { keeper.delete(&request.id, &request.exec_id).await };
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
        match self.0.container(&request.id)?.sandbox() {
            Some(sandbox) => Ok(sandbox.pids(request).await.map_err(KeeperError::from)?),
            None => Ok(PidsResponse::default()),
        }
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.0.container(&request.id)?.running()?;
        sandbox.pause(request).await.map_err(KeeperError::from)?;
        Ok(Empty::new())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: ResumeRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = self.0.container(&request.id)?.running()?;
        sandbox.resume(request).await.map_err(KeeperError::from)?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        _request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let what = "nerite cannot checkpoint a container yet";
        Err(KeeperError::Unsupported(what.into()).into())
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if matches!(process.phase(), Phase::Stopped(_)) {
            return Err(KeeperError::Finished.into());
        }
        let sandbox = container.running()?;
        let ends = process.is_init() && request.signal == libc::SIGKILL.unsigned_abs();
        match tokio::time::timeout(ANSWER, sandbox.signal(request)).await {
            Ok(done) => done.map_err(KeeperError::from)?,
            // A guest that does not answer is ended as a whole.
            Err(_) if ends => container.end(),
            Err(_) => {
                let what = format!("the guest of {:?} does not answer", container.id);
                return Err(KeeperError::State(what).into());
            }
        }
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let keeper = Arc::clone(&self.0);
        detached(async move { keeper.add(request).await }).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        // The last size of a terminal that is gone concerns nobody.
        if let (Phase::Running, Some(sandbox)) = (process.phase(), container.sandbox()) {
            let resized = sandbox.resize_process(request).await;
            resized.map_err(KeeperError::from)?;
        }
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.streams.close_input();
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _context: &TtrpcContext,
        request: UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = self.0.container(&request.id)?.running()?;
        sandbox.update(request).await.map_err(KeeperError::from)?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: WaitRequest,
    ) -> ttrpc::Result<WaitResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let ended = process.ended();
        // Its deletion must be seen, so it must not be kept.
        drop(process);
        let gone = || KeeperError::NotFound(name(&request.id, &request.exec_id));
        let exit = ended.await.ok_or_else(gone)?;
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
        let sandbox = self.0.container(&request.id)?.running()?;
        Ok(sandbox.stats(request).await.map_err(KeeperError::from)?)
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
        _request: ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.shut_down();
        Ok(Empty::new())
    }
}

fn state(container: &Container, process: &Process) -> StateResponse {
    let paths = &process.streams.paths;
    let mut response = StateResponse {
        id: container.id.clone(),
        bundle: container.bundle.display().to_string(),
        pid: process.pid(),
        stdin: paths.stdin.clone(),
        stdout: paths.stdout.clone(),
        stderr: paths.stderr.clone(),
        terminal: process.terminal,
        exec_id: process.exec.clone(),
        ..StateResponse::default()
    };
    let status = match process.phase() {
        Phase::Created => Status::CREATED,
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
