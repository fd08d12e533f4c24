//! Unix sockets of the host: a socket in the guest's own tmpfs stands for
//! each, containers get it as a bind mount, and every connection to it goes on
//! to the host's server as a stream of its own.
//!
//! ```text
//!  container ──▶ /sockets/N ──▶ relay ══ vsock stream ══▶ nerite-vmm ──▶ host's server
//! ```
//!
//! The listening is the guest's, so a container that connects hears at once;
//! if nobody listens on the host, its connection is closed. Bytes pass, both
//! ways, with half-close. Descriptors cannot: a connection that sends one is
//! closed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::agent::sandbox::ForwardSocketRequest;
use protocol::agent::{SOCKETS, socket_path};
use protocol::stream::{Dialled, StreamAddress};
use rustix::mount::{MountFlags, mount};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::error::{Attempt, Failure, Result};
use crate::log;
use crate::transport::{Stream, Transport};

/// Connections at a time, over all sockets; more wait in their socket's queue.
const MOST_CONNECTIONS: usize = 256;

/// A connection's buffer for each direction.
const BUFFER: usize = 16 << 10;

/// The sockets that stand for the host's.
#[derive(Debug)]
pub(crate) struct Sockets {
    mounted: Mutex<bool>,
    places: Arc<Semaphore>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            mounted: Mutex::new(false),
            places: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        }
    }
}

impl Sockets {
    /// Listens, and asks the keeper for a connection to the host's socket for
    /// each that comes.
    pub(crate) async fn forward(
        &self,
        transport: &Transport,
        request: &ForwardSocketRequest,
    ) -> Result<()> {
        let StreamAddress(port) = request
            .stream
            .parse()
            .map_err(|error| Failure::argument(format!("stream: {error}")))?;
        self.make_room()?;
        let number = usize::try_from(request.number).unwrap_or(usize::MAX);
        let path = socket_path(number);
        let control = transport
            .connect(port)
            .await
            .attempt(|| format!("connect to the keeper at port {port}"))?;
        let listener = UnixListener::bind(&path).attempt(|| format!("listen on {path}"))?;
        let own = || -> io::Result<()> {
            chown(&path, Some(request.uid), Some(request.gid))?;
            fs::set_permissions(&path, Permissions::from_mode(request.mode & 0o777))
        };
        own().attempt(|| format!("set the owner of {path}"))?;
        let forwarding = Forwarding {
            listener,
            control,
            transport: transport.clone(),
            places: Arc::clone(&self.places),
        };
        tokio::spawn(async move {
            if let Err(error) = forwarding.run().await {
                log::line(&format!("{path}: {}", protocol::error::chain(&error)));
                // Nobody listens any more: that is what a connection is to hear.
                let _ = fs::remove_file(path);
            }
        });
        Ok(())
    }

    /// The directory is a file system of its own: the guest's root is
    /// read-only.
    fn make_room(&self) -> Result<()> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !*mounted {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            // Outside of a guest there is no such directory.
            if !Path::new(SOCKETS).is_dir() {
                fs::create_dir(SOCKETS).attempt(|| format!("make {SOCKETS}"))?;
            }
            mount(
                "sockets",
                SOCKETS,
                "tmpfs",
                flags,
                Some(c"mode=711,size=1m"),
            )
            .attempt(|| format!("mount a file system on {SOCKETS}"))?;
            *mounted = true;
        }
        Ok(())
    }
}

struct Forwarding {
    listener: UnixListener,
    control: Stream,
    transport: Transport,
    places: Arc<Semaphore>,
}

impl Forwarding {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            let (connection, _) = self.listener.accept().await?;
            let connection = Stream::new(connection.into_std()?.into())?;
            self.control.write_all(&[1]).await?;
            let mut answer = [0; Dialled::BYTES];
            self.control.read_exact(&mut answer).await?;
            let Dialled::Port(port) = Dialled::from_bytes(answer) else {
                continue; // the connection ends with this round
            };
            let transport = self.transport.clone();
            tokio::spawn(async move {
                if let Ok(server) = transport.connect(port).await {
                    relay(connection, server).await;
                }
                drop(place);
            });
        }
    }
}

/// Passes on what either side sends until both have ended, or one is broken:
/// the other one hears that by the close.
async fn relay(mut container: Stream, mut server: Stream) {
    let _ = copy_bidirectional_with_sizes(&mut container, &mut server, BUFFER, BUFFER).await;
}
