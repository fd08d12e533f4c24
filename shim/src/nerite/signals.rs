//! Signals that a person or a supervisor sends to `nerite try`.
//!
//! As with `docker run`: they go to the container's process, which as PID 1
//! may well ignore them; the third SIGINT or SIGTERM ends everything. Before
//! the process runs there is nobody to pass them to, so the first one that
//! usually ends a program ends the start.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Signals passed on. Not among them: those that the kernel sends for this
/// process's own faults, job control, and SIGCHLD and SIGPIPE.
const PASSED_ON: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGIO,
    libc::SIGPWR,
];

/// How many SIGINT or SIGTERM end everything, whatever the container does.
pub(crate) const FORCE_AFTER: usize = 3;

/// The incoming signals, window changes among them.
#[derive(Debug)]
pub(crate) struct Signals {
    incoming: mpsc::UnboundedReceiver<i32>,
}

impl Signals {
    /// Takes the signals over.
    pub(crate) fn listen() -> io::Result<Self> {
        let (sender, incoming) = mpsc::unbounded_channel();
        for number in PASSED_ON.into_iter().chain([libc::SIGWINCH]) {
            let stream = signal(SignalKind::from_raw(number))?;
            tokio::spawn(pass(number, stream, sender.clone()));
        }
        Ok(Self { incoming })
    }

    /// The next signal's number.
    pub(crate) async fn next(&mut self) -> i32 {
        match self.incoming.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        }
    }
}

async fn pass(number: i32, mut stream: Signal, sender: mpsc::UnboundedSender<i32>) {
    while stream.recv().await.is_some() {
        if sender.send(number).is_err() {
            return;
        }
    }
}

/// Whether a signal ends a program that does nothing about it.
pub(crate) fn ends_a_start(number: i32) -> bool {
    number != libc::SIGWINCH && number != libc::SIGCONT
}
