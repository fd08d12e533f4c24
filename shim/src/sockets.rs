//! Unix sockets of the host that a guest may connect to.
//!
//! The agent listens in the guest and asks here for each connection
//! ([`Dialled`]). The connected socket itself goes to the VMM as a stream: its
//! bytes never pass through the keeper, and closing or half-closing it is the
//! server's own affair. How many a guest may have is bounded by the VMM.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use protocol::stream::Dialled;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ports::Ports;
use crate::vmm::Vmm;

/// A socket of the host, held as what it was when the container was created.
#[derive(Debug)]
pub struct HostSocket {
    /// A reference to it.
    pub socket: OwnedFd,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl HostSocket {
    /// Connects as any program on the host does; whoever listens sees the
    /// keeper's ids.
    fn dial(&self) -> io::Result<OwnedFd> {
        // Not blocking: a server whose queue is full is no server for now.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let path = format!("/proc/self/fd/{}", self.socket.as_raw_fd());
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }
}

/// Answers the agent on a socket's control stream until that ends.
pub(crate) async fn serve(
    socket: HostSocket,
    control: UnixStream,
    vmm: Arc<Vmm>,
    ports: Arc<Ports>,
) -> io::Result<()> {
    control.set_nonblocking(true)?;
    let mut control = tokio::net::UnixStream::from_std(control)?;
    loop {
        // What a byte says is of no interest: each is one connection.
        if control.read(&mut [0]).await? == 0 {
            return Ok(());
        }
        let answer = match socket.dial() {
            Ok(server) => {
                let port = ports.next();
                vmm.give_stream(port, std::os::fd::AsFd::as_fd(&server))
                    .await
                    .map_err(io::Error::other)?;
                Dialled::Port(port)
            }
            Err(error) => Dialled::Refused(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        control.write_all(&answer.to_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    #[test]
    fn server_is_the_one_that_was_there_and_its_absence_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let host = HostSocket {
            socket: openat(CWD, &path, flags, Mode::empty()).unwrap(),
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        // Another one in its place is another one.
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        UnixStream::from(host.dial().unwrap())
            .write_all(b"x")
            .unwrap();
        listener.accept().unwrap();
        drop(listener);
        let error = host.dial().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
