//! `nerite-vmm`: runs one virtual machine for the keeper on its descriptor 0.
//!
//! Not a command for people: everything that it needs comes as messages with
//! descriptors (`protocol::control`). How the machine ended is a message too,
//! so the exit status only says whether it could be sent.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        return answer(&argument.to_string_lossy());
    }
    let result = vmm::sys::confine()
        .map_err(|error| Box::new(error) as Box<dyn Error>)
        .and_then(|()| Ok(vmm::session::run(stdin().as_fd())?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = format!("nerite-vmm: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                line.push_str(&format!(": {error}"));
                cause = error.source();
            }
            // Nobody is left to tell if this fails too.
            let _ = writeln!(stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

fn answer(argument: &str) -> ExitCode {
    let text = match argument {
        "--version" => concat!("nerite-vmm ", env!("CARGO_PKG_VERSION")),
        "--help" => {
            "nerite-vmm runs a virtual machine for nerite, which starts it; \
             descriptor 0 is its control socket. See `nerite try`."
        }
        _ => {
            let _ = writeln!(stderr(), "nerite-vmm: takes no arguments, see --help");
            return ExitCode::FAILURE;
        }
    };
    if writeln!(stdout(), "{text}").is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
