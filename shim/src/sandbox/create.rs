//! A container in a sandbox, up to where only its start is missing.

use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use protocol::agent::SPEC_TYPE_URL;
use protocol::agent::api::CreateTaskRequest;
use protocol::oci;
use ttrpc::context::Context;

use super::{BOOT_DEADLINE, Sandbox, SandboxError, Stdio, StdioRequest};
use crate::rootfs::{RootFs, root_mounts};
use crate::sockets::HostSocket;

/// What a container is made of.
#[derive(Debug)]
pub struct NewContainer<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its configuration, as the agent is to read it.
    pub spec: &'a oci::Spec,
    /// Its root file system.
    pub root: &'a RootFs,
    /// The streams of its first process.
    pub stdio: StdioRequest,
    /// The host's sockets that it may connect to.
    pub sockets: Vec<HostSocket>,
    /// Processors that it is to have.
    pub vcpus: u8,
}

impl Sandbox {
    /// Creates a container. A broker that ends meanwhile ends that.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Refused`] with the agent's sentence, or the end of the
    /// machine or of its broker.
    pub async fn create(&self, container: NewContainer<'_>) -> Result<Stdio, SandboxError> {
        let vcpus = container.vcpus;
        let stdio = tokio::select! {
            stdio = self.ask_for(container) => stdio?,
            error = self.broker_ended() => return Err(error.into()),
        };
        if vcpus > 1 {
            self.online_cpus(vcpus).await?;
        }
        Ok(stdio)
    }

    async fn ask_for(&self, container: NewContainer<'_>) -> Result<Stdio, SandboxError> {
        self.forward_sockets(0, container.sockets).await?;
        let wanted = container.stdio;
        let (request_stdin, stdin) = self.optional_stream(wanted.stdin).await?;
        let (request_stdout, stdout) = self.stream().await?;
        let (request_stderr, stderr) = self.optional_stream(!wanted.terminal).await?;
        let request = CreateTaskRequest {
            id: container.id.into(),
            rootfs: root_mounts(container.root),
            terminal: wanted.terminal,
            stdin: request_stdin,
            stdout: request_stdout,
            stderr: request_stderr,
            options: MessageField::some(spec_any(container.spec)?),
            ..CreateTaskRequest::default()
        };
        let boot = tokio::time::sleep(BOOT_DEADLINE);
        let answer = self.call(
            "create a container",
            self.tasks.create(Context::default(), &request),
        );
        tokio::select! {
            answer = answer => answer?,
            () = boot => return Err(SandboxError::Deadline),
        };
        Ok(Stdio {
            stdin,
            stdout,
            stderr,
        })
    }
}

fn spec_any(spec: &oci::Spec) -> Result<Any, SandboxError> {
    let value = serde_json::to_vec(spec).map_err(|error| SandboxError::Host {
        act: "write the container's configuration as JSON".into(),
        source: error.into(),
    })?;
    Ok(Any {
        type_url: SPEC_TYPE_URL.into(),
        value,
        ..Any::default()
    })
}
