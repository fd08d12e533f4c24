//! The only place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints text to standard output as it is.
///
/// # Errors
///
/// The system's; a closed pipe is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
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

/// Prints help or the version as asked for; or what is wrong with the command
/// line, which is 125 as with `docker run`, for 2 may be a program's own status.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // There is nowhere to report a failure.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(125)
    } else {
        ExitCode::SUCCESS
    }
}

/// Text that may come from a guest, made harmless for a terminal: control
/// characters are written out, quotes stay as they are.
pub(crate) fn printable(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            result.extend(character.escape_default());
        } else {
            result.push(character);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_writes_control_characters_out() {
        assert_eq!(printable("a \"b\" \u{1b}[2Jc\n"), "a \"b\" \\u{1b}[2Jc\\n");
    }
}
