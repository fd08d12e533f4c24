//! `nerite-agent`, `/init` of the guest.
//!
//! Without arguments it reaches its keeper by vsock. With `--socket PATH` it
//! uses a Unix socket instead and needs no virtual machine, but still mount
//! and pid namespaces of its own.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use agent::Transport;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let transport = match (arguments.next(), arguments.next()) {
        (Some(option), Some(path)) if option == "--socket" => Transport::Unix(PathBuf::from(path)),
        _ => Transport::Vsock,
    };
    // An error ends PID 1, the kernel panics, and the VMM reports that with
    // the log's last lines: this is what a guest that cannot serve is.
    agent::run(transport).map_err(|error| anyhow::anyhow!("{error}"))?;
    agent::power_off()?;
    Ok(())
}
