//! Files into and out of a container, as tar archives.

use std::future::Future;
use std::os::unix::net::UnixStream;

use protocol::agent::sandbox::{CopyInRequest, CopyOutRequest};
use ttrpc::context::Context;

use super::{Sandbox, SandboxError};

impl Sandbox {
    /// Begins to copy what is at `path` in a container, as a tar archive whose
    /// entries begin with the path's last name. The archive comes from the
    /// stream while the answer is awaited; only that says whether it is whole.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]; that of the answer names the path.
    pub async fn copy_out<'a>(
        &'a self,
        id: &str,
        path: &str,
    ) -> Result<
        (
            UnixStream,
            impl Future<Output = Result<(), SandboxError>> + 'a,
        ),
        SandboxError,
    > {
        let (address, stream) = self.stream().await?;
        let request = CopyOutRequest {
            id: id.into(),
            path: path.into(),
            stream: address,
            ..CopyOutRequest::default()
        };
        let answer = async move {
            let call = self.agent.copy_out(Context::default(), &request);
            self.call("copy files out", call).await.map(|_| ())
        };
        Ok((stream, answer))
    }

    /// Begins to unpack a tar archive in a directory of a container. The
    /// archive goes into the stream while the answer is awaited.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]; that of the answer names the file.
    pub async fn copy_in<'a>(
        &'a self,
        id: &str,
        directory: &str,
    ) -> Result<
        (
            UnixStream,
            impl Future<Output = Result<(), SandboxError>> + 'a,
        ),
        SandboxError,
    > {
        let (address, stream) = self.stream().await?;
        let request = CopyInRequest {
            id: id.into(),
            directory: directory.into(),
            stream: address,
            ..CopyInRequest::default()
        };
        let answer = async move {
            let call = self.agent.copy_in(Context::default(), &request);
            self.call("copy files in", call).await.map(|_| ())
        };
        Ok((stream, answer))
    }
}
