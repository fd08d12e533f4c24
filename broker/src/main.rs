//! `nerite-fs`: shares directories with one guest, for the keeper that talks
//! to it on descriptor 0.
//!
//! Not a command for people: what to share comes as a message with
//! descriptors (`protocol::broker`).

#![forbid(unsafe_code)]

use std::io::{Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::process::ExitCode;

use broker::session;
use protocol::error::chain;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        return answer(&argument.to_string_lossy());
    }
    match session::run(stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails too.
            let _ = writeln!(stderr(), "nerite-fs: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn answer(argument: &str) -> ExitCode {
    let text = match argument {
        "--version" => concat!("nerite-fs ", env!("CARGO_PKG_VERSION")),
        "--help" => {
            "nerite-fs shares directories with a guest of nerite, which starts it; \
             descriptor 0 is its control socket. See `nerite run`."
        }
        _ => {
            let _ = writeln!(stderr(), "nerite-fs: takes no arguments, see --help");
            return ExitCode::FAILURE;
        }
    };
    if writeln!(stdout(), "{text}").is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
