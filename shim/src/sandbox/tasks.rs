//! The agent's Task service, as a keeper passes it on to engines.

use protocol::agent::api::{
    DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, StartRequest, StatsRequest, StatsResponse, UpdateTaskRequest,
};
use protocol::agent::sandbox::NextEventsRequest;
use ttrpc::context::Context;

use super::{Sandbox, SandboxError, Stdio};

/// Something that the agent reports.
#[derive(Clone, Debug)]
pub struct Reported {
    /// Its number; the next one's is larger.
    pub sequence: u64,
    /// containerd's topic.
    pub topic: String,
    /// The message of that topic.
    pub payload: Vec<u8>,
}

impl Sandbox {
    /// Waits for what happens behind the event number `after`.
    ///
    /// # Errors
    ///
    /// The machine's end, when that comes first.
    pub async fn events(&self, after: u64) -> Result<Vec<Reported>, SandboxError> {
        let request = NextEventsRequest {
            after,
            ..NextEventsRequest::default()
        };
        let call = self.agent.next_events(Context::default(), &request);
        let events = self.call("report events", call).await?.events;
        let reported = events.into_iter().map(|event| Reported {
            sequence: event.sequence,
            topic: event.topic,
            payload: event.payload,
        });
        Ok(reported.collect())
    }

    /// Starts a process, the container's first if `exec` is empty; returns its
    /// id in the guest.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` when the program does not exist, `PERMISSION_DENIED` when
    /// it cannot be executed, as [`SandboxError::Refused`].
    pub async fn start_process(&self, id: &str, exec: &str) -> Result<u32, SandboxError> {
        let request = StartRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..StartRequest::default()
        };
        let call = self.tasks.start(Context::default(), &request);
        Ok(self.call("start a process", call).await?.pid)
    }

    /// Adds a process to a container. Which streams it has is what `request`
    /// has addresses for, whatever they are.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn exec(&self, mut request: ExecProcessRequest) -> Result<Stdio, SandboxError> {
        let wanted = !request.stdin.is_empty();
        let (address, stdin) = self.optional_stream(wanted).await?;
        request.stdin = address;
        let (address, stdout) = self.stream().await?;
        request.stdout = address;
        let (address, stderr) = self.optional_stream(!request.terminal).await?;
        request.stderr = address;
        let call = self.tasks.exec(Context::default(), &request);
        self.call("add a process", call).await?;
        Ok(Stdio {
            stdin,
            stdout,
            stderr,
        })
    }

    /// Removes a process that has ended.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn delete_process(&self, id: &str, exec: &str) -> Result<(), SandboxError> {
        let request = DeleteRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..DeleteRequest::default()
        };
        let call = self.tasks.delete(Context::default(), &request);
        self.call("delete a process", call).await.map(|_| ())
    }

    /// Sends a signal to a process, or to all in a container.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn signal(&self, request: KillRequest) -> Result<(), SandboxError> {
        let call = self.tasks.kill(Context::default(), &request);
        self.call("send a signal", call).await.map(|_| ())
    }

    /// Sets a terminal's size.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn resize_process(&self, request: ResizePtyRequest) -> Result<(), SandboxError> {
        let call = self.tasks.resize_pty(Context::default(), &request);
        self.call("resize a terminal", call).await.map(|_| ())
    }

    /// Stops a container's processes until [`Sandbox::resume`].
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn pause(&self, request: PauseRequest) -> Result<(), SandboxError> {
        let call = self.tasks.pause(Context::default(), &request);
        self.call("pause a container", call).await.map(|_| ())
    }

    /// Lets a container's processes go on.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn resume(&self, request: ResumeRequest) -> Result<(), SandboxError> {
        let call = self.tasks.resume(Context::default(), &request);
        self.call("resume a container", call).await.map(|_| ())
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn update(&self, request: UpdateTaskRequest) -> Result<(), SandboxError> {
        let call = self.tasks.update(Context::default(), &request);
        self.call("change limits", call).await.map(|_| ())
    }

    /// The ids of a container's processes in the guest.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn pids(&self, request: PidsRequest) -> Result<PidsResponse, SandboxError> {
        let call = self.tasks.pids(Context::default(), &request);
        self.call("list processes", call).await
    }

    /// What a container uses, as containerd's metrics of version 2.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn stats(&self, request: StatsRequest) -> Result<StatsResponse, SandboxError> {
        let call = self.tasks.stats(Context::default(), &request);
        self.call("measure a container", call).await
    }
}
