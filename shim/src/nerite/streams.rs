//! Joins the container's standard streams to this process's own.
//!
//! One thread per stream with blocking copies, because standard streams may
//! be anything (terminal, pipe, file, socket), and a file cannot be polled.
//! A thread that waits for input is simply left behind at the end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use shim::sandbox::Stdio;
use tokio::sync::oneshot;

const STACK: usize = 128 * 1024;
const BUFFER: usize = 64 * 1024;

/// The output streams on their way.
#[derive(Debug)]
pub(crate) struct Output {
    ends: Vec<oneshot::Receiver<()>>,
}

impl Output {
    /// Waits until all that the container wrote has been passed on.
    pub(crate) async fn finished(self) {
        for end in self.ends {
            // A thread that ends without a word has ended all the same.
            let _ = end.await;
        }
    }
}

/// Starts copying.
pub(crate) fn attach(stdio: Stdio) -> io::Result<Output> {
    if let Some(stdin) = stdio.stdin {
        let input = own(io::stdin().as_fd())?;
        spawn("stdin", move || copy_input(input, &stdin))?;
    }
    let mut ends = vec![copy_output(
        "stdout",
        stdio.stdout,
        own(io::stdout().as_fd())?,
    )?];
    if let Some(stderr) = stdio.stderr {
        ends.push(copy_output("stderr", stderr, own(io::stderr().as_fd())?)?);
    }
    Ok(Output { ends })
}

fn own(stream: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(stream.try_clone_to_owned()?))
}

fn copy_input(mut input: File, container: &UnixStream) {
    // An error on either side ends the input just as its end does.
    let _ = copy(&mut input, &mut &*container);
    let _ = container.shutdown(Shutdown::Write);
    // Held until the container closes its side, so that a process which
    // never reads its input still gets all of it from the VMM's buffers.
    let _ = (&mut &*container).read(&mut [0]);
}

fn copy_output(
    name: &str,
    mut container: UnixStream,
    mut output: File,
) -> io::Result<oneshot::Receiver<()>> {
    let (done, end) = oneshot::channel();
    spawn(name, move || {
        // When nobody reads our output any more, dropping the stream tells
        // the container, as a broken pipe would.
        let _ = copy(&mut container, &mut output);
        let _ = done.send(());
    })?;
    Ok(end)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(work)?;
    Ok(())
}
