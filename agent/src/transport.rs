//! Connections from the guest to its keeper.
//!
//! The agent only ever connects, once per port (see `protocol::stream`).
//! In a guest that is vsock. Over a Unix socket, where each connection opens
//! with its port number, the same agent runs on any Linux without a virtual
//! machine: that is what its tests do.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use protocol::stream::{HOST_CID, HostPort};
use rustix::net::{self, AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};

use crate::sys;

/// How the keeper is reached.
#[derive(Clone, Debug)]
pub enum Transport {
    /// By the guest's vsock.
    Vsock,
    /// By the Unix socket at this path. A connection's first four bytes are
    /// its port, little-endian.
    Unix(PathBuf),
}

impl Transport {
    /// Connects to a port of the keeper.
    ///
    /// # Errors
    ///
    /// The system's, for example `ECONNRESET` when the keeper has not given
    /// that port.
    pub async fn connect(&self, port: HostPort) -> io::Result<Stream> {
        match self {
            Self::Vsock => {
                let stream = Stream::new(sys::connect_vsock(HOST_CID, port.0)?)?;
                stream.connected().await?;
                Ok(stream)
            }
            Self::Unix(path) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                net::connect(&fd, &SocketAddrUnix::new(path)?)?;
                let mut stream = Stream::new(fd)?;
                stream.write_all(&port.0.to_le_bytes()).await?;
                Ok(stream)
            }
        }
    }
}

/// A connected stream socket of any family.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Takes a non-blocking stream socket.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::asynchronous(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Waits until a connection under way is made, or has failed.
    async fn connected(&self) -> io::Result<()> {
        // Readiness stays set: the first write has to find it.
        let _guard = self.0.writable().await?;
        net::sockopt::socket_error(&self.0)??;
        Ok(())
    }

    /// Reads what is there, waiting until something is; 0 at the end.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
                return result;
            }
        }
    }

    /// Waits until there is something to read, or the end.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // Readiness that is left from before is none.
            let peek = |fd: &AsyncFd<OwnedFd>| {
                net::recv(fd, &mut [0], net::RecvFlags::PEEK)?;
                Ok(())
            };
            if let Ok(result) = guard.try_io(peek) {
                return result;
            }
        }
    }

    /// Sends all of it.
    pub(crate) async fn send_all(&self, mut buffer: &[u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let mut guard = self.0.writable().await?;
            if let Ok(result) = guard.try_io(|fd| send(fd, buffer)) {
                buffer = buffer.get(result?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Sends without SIGPIPE.
fn send(fd: &AsyncFd<OwnedFd>, buffer: &[u8]) -> io::Result<usize> {
    Ok(net::send(fd, buffer, net::SendFlags::NOSIGNAL)?)
}

/// Receives bytes. Descriptors beside them are an error: they cannot leave the
/// guest, and whoever sent them should not think that they did.
fn receive(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    let received = net::recvmsg(
        fd,
        &mut [io::IoSliceMut::new(buffer)],
        &mut net::RecvAncillaryBuffer::default(),
        net::RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.flags.contains(net::ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(received.bytes)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            if let Ok(result) = guard.try_io(|fd| receive(fd, unfilled)) {
                return Poll::Ready(result.map(|count| buf.advance(count)));
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| send(fd, buf)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(net::shutdown(&self.0, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn descriptors_beside_bytes_are_an_error() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let mut stream = Stream::new(ours).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let bytes = [io::IoSlice::new(b"x")];
        net::sendmsg(&theirs, &bytes, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        let descriptors = [theirs.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        net::sendmsg(&theirs, &bytes, &mut control, SendFlags::empty()).unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
