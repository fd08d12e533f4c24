//! Standard streams of a process.
//!
//! ```text
//!  keeper ══vsock══▶ copy ──pipe──▶ stdin    process
//!  keeper ◀══vsock══ copy ◀──pipe── stdout, stderr
//! ```
//!
//! The process gets pipes, not the vsock connections themselves: `/dev/stdout`
//! must be openable again, and a pipe ends in a way that every program knows.
//! Each stream has one task with one buffer of a fixed size, so a reader that
//! stalls stops its own stream and nothing else.
//!
//! A process's end and its streams' end are two things: the end is
//! reported at once, while what the pipes hold is still passed on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use protocol::stream::{HostPort, StreamAddress};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Attempt, Failure, Result};
use crate::sys;
use crate::transport::{Stream, Transport};

/// Bytes copied at a time: what a pipe holds.
const BUFFER: usize = 65_536;

/// Which streams a process has, as the request says it.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioRequest {
    /// One terminal instead of three streams.
    pub(crate) terminal: bool,
    /// As given.
    pub(crate) stdin: String,
    /// As given.
    pub(crate) stdout: String,
    /// As given.
    pub(crate) stderr: String,
}

/// Connections for the streams.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl StdioRequest {
    /// Connects every stream that has an address.
    pub(crate) async fn connect(&self, transport: &Transport) -> Result<Connections> {
        if self.terminal && !self.stderr.is_empty() {
            return Err(Failure::argument(
                "stderr: a terminal has no stream of its own for it",
            ));
        }
        let (stdin, stdout, stderr) = tokio::try_join!(
            connect(transport, "stdin", &self.stdin),
            connect(transport, "stdout", &self.stdout),
            connect(transport, "stderr", &self.stderr),
        )?;
        Ok(Connections {
            stdin,
            stdout,
            stderr,
        })
    }
}

async fn connect(transport: &Transport, field: &str, address: &str) -> Result<Option<Stream>> {
    if address.is_empty() {
        return Ok(None);
    }
    let StreamAddress(port): StreamAddress = address
        .parse()
        .map_err(|error| Failure::argument(format!("{field}: {error}")))?;
    connect_port(transport, field, port).await.map(Some)
}

async fn connect_port(transport: &Transport, field: &str, port: HostPort) -> Result<Stream> {
    transport
        .connect(port)
        .await
        .attempt(|| format!("connect {field} to port {port}"))
}

/// The agent's ends of a process's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Connections {
    /// Makes a pipe for each connection, and gives the process's three ends:
    /// `/dev/null` where there is no connection.
    pub(crate) fn pipes(&self, null: &OwnedFd) -> Result<(Pipes, [OwnedFd; 3])> {
        let pair = |connected: bool| {
            if connected {
                pipe_with(PipeFlags::CLOEXEC)
                    .attempt(|| "make a pipe".into())
                    .map(Some)
            } else {
                Ok(None)
            }
        };
        let closed = || null.try_clone().attempt(|| "open /dev/null".into());
        let (stdin, theirs_in) = match pair(self.stdin.is_some())? {
            Some((read, write)) => (Some(write), read),
            None => (None, closed()?),
        };
        let (stdout, theirs_out) = match pair(self.stdout.is_some())? {
            Some((read, write)) => (Some(read), write),
            None => (None, closed()?),
        };
        let (stderr, theirs_err) = match pair(self.stderr.is_some())? {
            Some((read, write)) => (Some(read), write),
            None => (None, closed()?),
        };
        Ok((
            Pipes {
                stdin,
                stdout,
                stderr,
            },
            [theirs_in, theirs_out, theirs_err],
        ))
    }
}

/// When a process's output is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Until {
    /// When nobody holds the pipe any more: everything that could is killed
    /// with the process.
    End,
    /// When what the pipe held at the process's end has been passed on:
    /// others may keep it open for ever.
    Exit,
}

/// The running streams of a process.
#[derive(Debug)]
pub(crate) struct Stdio {
    exited: watch::Sender<bool>,
    input_over: watch::Sender<bool>,
    master: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Stdio {
    /// Begins to copy between connections and pipes.
    pub(crate) fn with_pipes(connections: Connections, pipes: Pipes, until: Until) -> Result<Self> {
        let (exited, exit) = watch::channel(false);
        let (input_over, over) = watch::channel(false);
        if let (Some(stream), Some(pipe)) = (connections.stdin, pipes.stdin) {
            let pipe = asynchronous(pipe, Interest::WRITABLE)?;
            let copy = Input {
                stream,
                over,
                exit: exit.clone(),
            };
            tokio::spawn(async move { copy.run(&pipe).await });
        }
        let outputs = [
            (connections.stdout, pipes.stdout),
            (connections.stderr, pipes.stderr),
        ];
        for (stream, pipe) in outputs {
            if let (Some(stream), Some(pipe)) = (stream, pipe) {
                let pipe = asynchronous(pipe, Interest::READABLE)?;
                let copy = Output {
                    stream,
                    exit: exit.clone(),
                    until,
                };
                tokio::spawn(async move { copy.run(&pipe).await });
            }
        }
        Ok(Self {
            exited,
            input_over,
            master: None,
        })
    }

    /// Begins to copy between connections and a terminal. Its output ends by
    /// itself: a terminal is hung up when the process that it was made for
    /// has ended.
    pub(crate) fn with_terminal(connections: Connections, master: OwnedFd) -> Result<Self> {
        let (exited, exit) = watch::channel(false);
        let (input_over, over) = watch::channel(false);
        let master = Arc::new(asynchronous(
            master,
            Interest::READABLE | Interest::WRITABLE,
        )?);
        if let Some(stream) = connections.stdin {
            let copy = Input {
                stream,
                over,
                exit: exit.clone(),
            };
            let master = Arc::clone(&master);
            tokio::spawn(async move { copy.run(&master).await });
        }
        if let Some(stream) = connections.stdout {
            let copy = Output {
                stream,
                exit,
                until: Until::End,
            };
            let master = Arc::clone(&master);
            tokio::spawn(async move { copy.run(&master).await });
        }
        Ok(Self {
            exited,
            input_over,
            master: Some(master),
        })
    }

    /// The process has exited.
    pub(crate) fn process_exited(&self) {
        self.exited.send_replace(true);
    }

    /// No more input comes: the input ends when what has arrived is passed on.
    pub(crate) fn close_input(&self) {
        self.input_over.send_replace(true);
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let master = self
            .master
            .as_ref()
            .ok_or_else(|| Failure::state("the process has no terminal"))?;
        tcsetwinsize(master.as_fd(), window(rows, columns)).attempt(|| "resize the terminal".into())
    }
}

/// A terminal's size, of which only characters count.
pub(crate) fn window(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn asynchronous(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    let act = || "prepare a stream".into();
    let flags = fcntl_getfl(&fd).attempt(act)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).attempt(act)?;
    sys::asynchronous(fd, interest).attempt(act)
}

/// From the keeper to the process.
struct Input {
    stream: Stream,
    over: watch::Receiver<bool>,
    exit: watch::Receiver<bool>,
}

impl Input {
    /// Copies until the stream ends, nothing more is to come, or nobody reads.
    async fn run(mut self, pipe: &AsyncFd<OwnedFd>) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let received = tokio::select! {
                biased;
                received = self.stream.receive(&mut buffer) => received,
                () = signalled(&mut self.over) => return,
                () = signalled(&mut self.exit) => return,
            };
            let data = match received {
                Ok(length) if length > 0 => buffer.get(..length).unwrap_or_default(),
                _ => return,
            };
            let written = tokio::select! {
                written = write_all(pipe, data) => written,
                () = signalled(&mut self.exit) => return,
            };
            if written.is_err() {
                return;
            }
        }
    }
}

/// From the process to the keeper.
struct Output {
    stream: Stream,
    exit: watch::Receiver<bool>,
    until: Until,
}

impl Output {
    /// Copies until the pipe ends, or, after the process has exited, as long
    /// as `until` says. A keeper that has closed the stream ends it as well:
    /// closing the pipe is how the process learns of it.
    async fn run(mut self, pipe: &AsyncFd<OwnedFd>) {
        let mut buffer = vec![0; BUFFER];
        if self.until == Until::Exit {
            loop {
                let length = tokio::select! {
                    biased;
                    length = read(pipe, &mut buffer) => length,
                    () = signalled(&mut self.exit) => break,
                };
                if !self.pass(length, &buffer).await {
                    return;
                }
            }
            // What was written between the last look and the exit is still
            // there; asked of the pipe itself, as no event tells of it.
            let mut left = ioctl_fionread(pipe).unwrap_or(0);
            while left > 0 {
                let length = rustix::io::read(pipe, buffer.as_mut_slice());
                left = left.saturating_sub(length.unwrap_or(0) as u64);
                if !self.pass(length.map_err(Into::into), &buffer).await {
                    return;
                }
            }
        } else {
            loop {
                let length = read(pipe, &mut buffer).await;
                if !self.pass(length, &buffer).await {
                    return;
                }
            }
        }
    }

    /// Sends what was read; false at the end.
    async fn pass(&self, length: io::Result<usize>, buffer: &[u8]) -> bool {
        match length {
            Ok(length) if length > 0 => self
                .stream
                .send_all(buffer.get(..length).unwrap_or_default())
                .await
                .is_ok(),
            _ => false,
        }
    }
}

/// Returns when the signal is given, or can be given no more.
async fn signalled(signal: &mut watch::Receiver<bool>) {
    let _ = signal.wait_for(|&given| given).await;
}

/// Reads what is there, waiting until something is; 0 at the end. A terminal
/// without a process ends with EIO.
async fn read(pipe: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = pipe.readable().await?;
        let result = guard.try_io(|fd| match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::IO) => Ok(0),
            result => Ok(result?),
        });
        if let Ok(result) = result {
            return result;
        }
    }
}

async fn write_all(pipe: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut guard = pipe.writable().await?;
        if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
            data = data.get(result?..).unwrap_or_default();
        }
    }
    Ok(())
}

/// The guest's `/dev/null`.
pub(crate) fn null() -> Result<OwnedFd> {
    rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| "open /dev/null".into())
}
