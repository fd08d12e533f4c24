//! A process's streams between the engine and the guest.
//!
//! Engines name FIFOs, which outlive the engine: the keeper holds both ends of
//! an output, so that a container whose engine restarts is neither killed by a
//! broken pipe nor loses anything, and a writing end of the input until the
//! engine says that there is no more of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{KeeperError, Result};
use crate::sandbox::Stdio;

/// Bytes on their way at a time.
const BUFFER: usize = 32 << 10;

/// What an engine names as a process's streams; empty for none.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Paths {
    /// Whether output can go where it is to.
    pub(super) fn check(&self) -> Result<()> {
        for (what, path) in [
            ("standard output", &self.stdout),
            ("standard error", &self.stderr),
        ] {
            split(path).map_err(|source| KeeperError::Stream {
                what,
                path: path.into(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A process's streams on their way.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) paths: Paths,
    /// The guest's ends, until they are joined to the engine's.
    waiting: Mutex<Option<Stdio>>,
    /// Keeps the input open between the engine's clients.
    input: Mutex<Option<pipe::Sender>>,
    copies: Mutex<Vec<AbortHandle>>,
    /// How many outputs are not at their end.
    open: watch::Sender<usize>,
}

impl Streams {
    /// Streams of which nothing is passed on yet.
    pub(super) fn new(paths: Paths, stdio: Stdio) -> Self {
        Self {
            paths,
            waiting: Mutex::new(Some(stdio)),
            input: Mutex::default(),
            copies: Mutex::default(),
            open: watch::Sender::new(0),
        }
    }

    /// Joins the guest's ends to what the engine names, once.
    pub(super) fn join(&self) -> Result<()> {
        let Some(stdio) = lock(&self.waiting).take() else {
            return Ok(());
        };
        self.copy_out("standard output", &self.paths.stdout, stdio.stdout)?;
        if let Some(stderr) = stdio.stderr {
            self.copy_out("standard error", &self.paths.stderr, stderr)?;
        }
        if let Some(stdin) = stdio.stdin {
            *lock(&self.input) = Some(copy_in(&self.paths.stdin, stdin)?);
        }
        Ok(())
    }

    /// There is no more input than what the engine's client still writes.
    pub(super) fn close_input(&self) {
        drop(lock(&self.input).take());
    }

    /// Waits until all that the process wrote has been passed on.
    pub(super) async fn finished(&self) {
        // The sender is this one's own: it does not go meanwhile.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Passes nothing on any more.
    pub(super) fn abort(&self) {
        for copy in lock(&self.copies).drain(..) {
            copy.abort();
        }
    }

    fn copy_out(&self, what: &'static str, path: &str, stream: UnixStream) -> Result<()> {
        let failed = |source| KeeperError::Stream {
            what,
            path: path.into(),
            source,
        };
        let stream = tokio_stream(stream).map_err(failed)?;
        let target = Target::open(path).map_err(failed)?;
        self.open.send_modify(|open| *open += 1);
        let open = self.open.clone();
        let copy = tokio::spawn(async move {
            let _ = match target {
                Target::Nowhere => copy(stream, &mut tokio::io::sink()).await,
                Target::Fifo(mut fifo) => copy(stream, &mut fifo).await,
                Target::File(file) => copy_to_file(stream, file).await,
            };
            open.send_modify(|open| *open = open.saturating_sub(1));
        });
        lock(&self.copies).push(copy.abort_handle());
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy_in(path: &str, stream: UnixStream) -> Result<pipe::Sender> {
    let failed = |source| KeeperError::Stream {
        what: "standard input",
        path: path.into(),
        source,
    };
    let reader = pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(failed)?;
    let writer = pipe::OpenOptions::new().open_sender(path).map_err(failed)?;
    let mut stream = tokio_stream(stream).map_err(failed)?;
    tokio::spawn(async move {
        // An error on either side ends the input just as its end does.
        let _ = copy(reader, &mut stream).await;
        let _ = stream.shutdown().await;
        // Held until the process closes its side, so that one which never
        // reads its input still gets all of it from the VMM's buffers.
        let _ = stream.read(&mut [0]).await;
    });
    Ok(writer)
}

/// Where output goes.
enum Target {
    Nowhere,
    Fifo(pipe::Sender),
    File(File),
}

impl Target {
    fn open(path: &str) -> io::Result<Self> {
        if path.is_empty() {
            return Ok(Self::Nowhere);
        }
        let (path, is_url) = split(path)?;
        if is_fifo(&path) {
            let fifo = pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(path)?;
            return Ok(Self::Fifo(fifo));
        }
        let mut options = OpenOptions::new();
        options.append(true).create(is_url).mode(0o600);
        Ok(Self::File(options.open(path)?))
    }
}

/// The path in what an engine names, and whether that is a URL.
fn split(path: &str) -> io::Result<(PathBuf, bool)> {
    match path.strip_prefix("file://") {
        Some(path) => Ok((PathBuf::from(path), true)),
        None if path.contains("://") => {
            let what = format!("nerite writes output to a FIFO or to file:///PATH, not to {path}");
            Err(io::Error::new(io::ErrorKind::Unsupported, what))
        }
        None => Ok((PathBuf::from(path), false)),
    }
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn tokio_stream(stream: UnixStream) -> io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())
            .await?;
    }
}

/// Files take what is written at once, as far as anybody waits for a disk.
async fn copy_to_file(mut from: tokio::net::UnixStream, mut to: File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        io::Write::write_all(&mut to, buffer.get(..count).unwrap_or_default())?;
    }
}
