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

mod events;
mod flags;
mod serve;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use protobuf::{Message, MessageField};
use protocol::agent::api::DeleteResponse;

use crate::flags::{Action, Flags};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = Flags::parse(&arguments).and_then(|flags| match flags.action {
        Action::Version => {
            print(format!("{} {}\n", flags::NAME, env!("CARGO_PKG_VERSION")).as_bytes())
        }
        Action::Start => print(start::start(&flags)?.as_bytes()),
        Action::Delete => print(&delete()?),
        Action::Serve => serve::serve(&flags),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reason is the answer then.
            let _ = print(format!("{}: {error:#}\n", flags::NAME).as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn print(answer: &[u8]) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(answer).context("answer containerd")?;
    output.flush().context("answer containerd")
}

/// What containerd is to know of a container whose keeper is gone. Machine,
/// broker and mounts went with it, whatever ended it.
fn delete() -> anyhow::Result<Vec<u8>> {
    let response = DeleteResponse {
        exit_status: 137,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().context("write the answer")
}
