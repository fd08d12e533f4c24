//! The host's sockets, made known to the guest.

use std::sync::PoisonError;

use protocol::agent::sandbox::ForwardSocketRequest;
use ttrpc::context::Context;

use super::{BOOT_DEADLINE, Sandbox, SandboxError};
use crate::sockets::{self, HostSocket};

impl Sandbox {
    /// Makes sockets of the host known to the guest, in order from `first` on
    /// (`protocol::agent::socket_path`), before a container is created that
    /// has them.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn forward_sockets(
        &self,
        first: usize,
        sockets: Vec<HostSocket>,
    ) -> Result<(), SandboxError> {
        for (number, socket) in (first..).zip(sockets) {
            let (stream, control) = self.stream().await?;
            let request = ForwardSocketRequest {
                number: u32::try_from(number).unwrap_or(u32::MAX),
                stream,
                mode: socket.mode,
                uid: socket.uid,
                gid: socket.gid,
                ..ForwardSocketRequest::default()
            };
            let dialer = sockets::serve(socket, control, self.vmm.clone(), self.ports.clone());
            self.dialers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .spawn(async {
                    // It ends with the guest, whatever it says then.
                    let _ = dialer.await;
                });
            let answer = self.call(
                "forward a socket",
                self.agent.forward_socket(Context::default(), &request),
            );
            tokio::time::timeout(BOOT_DEADLINE, answer)
                .await
                .map_err(|_| SandboxError::Deadline)??;
        }
        Ok(())
    }
}
