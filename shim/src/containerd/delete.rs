//! `delete`: what is left when containerd has lost a keeper.

use std::fs;
use std::io;
use std::time::SystemTime;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::{Message, MessageField};
use protocol::agent::api::DeleteResponse;

use crate::flags::{Flags, NAME};
use crate::start::{KEEPER, socket_path};

/// Ends the keeper, if it lives and only its connection is lost, and answers
/// how the container has ended. Machine, broker and mounts go with the keeper,
/// whatever ends it.
pub(crate) fn delete(flags: &Flags) -> anyhow::Result<Vec<u8>> {
    if let Some(keeper) = keeper(flags) {
        // It may end by itself meanwhile.
        let _ = kill(keeper, Signal::SIGKILL);
    }
    match fs::remove_file(socket_path(flags)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("remove the keeper's socket");
        }
        _ => {}
    }
    let response = DeleteResponse {
        exit_status: 137,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().context("write the answer")
}

/// The keeper that this bundle names, if it is one: the number may be
/// somebody else's by now.
fn keeper(flags: &Flags) -> Option<Pid> {
    let id = fs::read_to_string(KEEPER).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    let program = words.next()?;
    let ours = program.ends_with(NAME.as_bytes()) && words.any(|word| word == flags.id.as_bytes());
    ours.then(|| Pid::from_raw(id))
}
