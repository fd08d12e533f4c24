//! Running the system's tools for their answer.
//!
//! Their language and environment are fixed, and a failure carries what the
//! tool itself said. Programs whose output is watched while they run (make) do
//! not come through here.

use std::io;
use std::process::{Command, Stdio};

/// A tool that could not be started or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Not found, or not to be executed.
    #[error("run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended with another status than 0.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// The last line of its error output, or its status.
        said: String,
    },
}

/// Variables of an outer make or of a kernel developer that would change a build.
const FOREIGN_VARIABLES: [&str; 9] = [
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "GNUMAKEFLAGS",
    "LOCALVERSION",
    "KCFLAGS",
    "KBUILD_OUTPUT",
    "KCONFIG_CONFIG",
];

/// `program` in the C locale and without variables that would steer it.
#[must_use]
pub fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    for name in FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Runs `command` to its end; both of its outputs, the standard one first.
///
/// # Errors
///
/// [`CommandError`] with the tool's own last words.
pub fn run(command: &mut Command) -> Result<(String, String), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => return Err(CommandError::Start { program, source }),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        return Ok((out, err));
    }
    let said = err
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map_or_else(|| output.status.to_string(), str::to_owned);
    Err(CommandError::Failed { program, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_gives_both_outputs() {
        let mut command = tool("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        assert_eq!(run(&mut command).unwrap(), ("out\n".into(), "err\n".into()));
    }

    #[test]
    fn run_reports_the_tools_last_words_or_its_status() {
        let mut speaking = tool("sh");
        speaking.args(["-c", "echo a >&2; echo 'no such thing' >&2; exit 3"]);
        assert_eq!(
            run(&mut speaking).unwrap_err().to_string(),
            "sh failed: no such thing"
        );
        assert_eq!(
            run(&mut tool("false")).unwrap_err().to_string(),
            "false failed: exit status: 1"
        );
    }

    #[test]
    fn run_names_a_missing_program() {
        let error = run(&mut tool("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "run no-such-program");
    }
}
