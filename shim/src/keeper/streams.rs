//! A process's streams between the engine and the guest.
//!
//! Engines name FIFOs, which outlive the engine: the keeper holds both ends of
//! an output, so that a container whose engine restarts is neither killed by a
//! broken pipe nor loses anything, and a writing end of the input until the
//! engine says that there is no more of it.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

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

/// A process's streams on their way.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) paths: Paths,
    /// Keeps the input open between the engine's clients.
    input: Mutex<Option<pipe::Sender>>,
    output: Mutex<Vec<JoinHandle<()>>>,
}

impl Streams {
    /// Joins the guest's ends of a process's streams to what the engine names.
    pub(super) fn join(paths: Paths, stdio: Stdio) -> Result<Self> {
        let mut output = vec![copy_out("standard output", &paths.stdout, stdio.stdout)?];
        if let Some(stderr) = stdio.stderr {
            output.push(copy_out("standard error", &paths.stderr, stderr)?);
        }
        let input = match stdio.stdin {
            Some(stdin) => Some(copy_in(&paths.stdin, stdin)?),
            None => None,
        };
        Ok(Self {
            paths,
            input: Mutex::new(input),
            output: Mutex::new(output),
        })
    }

    /// There is no more input than what the engine's client still writes.
    pub(super) fn close_input(&self) {
        let input = self
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(input);
    }

    /// Waits until all that the process wrote has been passed on.
    pub(super) fn finished(&self) -> impl Future<Output = ()> + use<> {
        let output =
            std::mem::take(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner));
        async move {
            for copy in output {
                // One that panicked has ended all the same.
                let _ = copy.await;
            }
        }
    }
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

fn copy_out(what: &'static str, path: &str, stream: UnixStream) -> Result<JoinHandle<()>> {
    let failed = |source| KeeperError::Stream {
        what,
        path: path.into(),
        source,
    };
    let stream = tokio_stream(stream).map_err(failed)?;
    let target = Target::open(path).map_err(failed)?;
    Ok(tokio::spawn(async move {
        let _ = match target {
            Target::Nowhere => copy(stream, &mut tokio::io::sink()).await,
            Target::Fifo(mut fifo) => copy(stream, &mut fifo).await,
            Target::File(file) => copy_to_file(stream, file).await,
        };
    }))
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
        let (path, is_url) = match path.strip_prefix("file://") {
            Some(path) => (PathBuf::from(path), true),
            None if path.contains("://") => {
                let what =
                    format!("nerite writes output to a FIFO or to file:///PATH, not to {path}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
            None => (PathBuf::from(path), false),
        };
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
