//! The only place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, Write};

/// Prints text to standard output as it is.
///
/// # Errors
///
/// The system's; a closed pipe is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Prints one line to standard error; there is nowhere to report a failure.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Prints an error as one sentence, its causes behind colons.
pub(crate) fn error(error: &anyhow::Error) {
    note(format_args!("nerite: {error:#}"));
}
