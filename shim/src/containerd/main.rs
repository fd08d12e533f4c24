//! `containerd-shim-nerite-v2`: nerite as containerd starts it.
//!
//! ```text
//!  containerd ──start──▶ this ──spawns──▶ this, serving ──▶ keeper
//!             ◀─address─             stdin: the listening socket
//!  containerd ──delete─▶ this: what is left when the keeper is gone
//! ```
//!
//! containerd reads both output streams as one answer: nothing but that answer
//! is ever printed.

mod delete;
mod events;
mod flags;
mod serve;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use crate::flags::{Action, Flags};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let flags = Flags::parse(&arguments);
    let serves = flags
        .as_ref()
        .is_ok_and(|flags| flags.action == Action::Serve);
    let done = flags.and_then(|flags| match flags.action {
        Action::Version => {
            print(format!("{} {}\n", flags::NAME, env!("CARGO_PKG_VERSION")).as_bytes())
        }
        Action::Start => print(start::start(&flags)?.as_bytes()),
        Action::Delete => print(&delete::delete(&flags)?),
        Action::Serve => serve::serve(&flags),
    });
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    let reason = format!("{}: {error:#}\n", flags::NAME);
    if serves {
        // containerd's log; who cannot be told cannot be told.
        let _ = std::io::stderr().write_all(reason.as_bytes());
    } else {
        // The reason is the answer then.
        let _ = print(reason.as_bytes());
    }
    ExitCode::FAILURE
}

fn print(answer: &[u8]) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(answer).context("answer containerd")?;
    output.flush().context("answer containerd")
}
