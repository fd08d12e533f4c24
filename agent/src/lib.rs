//! The agent: PID 1 of a guest, which makes its containers.
//!
//! ```text
//!  keeper ══ttrpc over vsock══▶ server ─▶ container ─▶ child ─execve▶ workload
//!         ◀═stdio, own streams═════════ stdio ◀──pipes──────────────┘
//! ```
//!
//! It speaks containerd's own Task service, so that the keeper forwards
//! instead of translating. It is a library with a small program around it
//! only so that its parts can be tested.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod boot;
mod container;
mod copy;
mod error;
mod events;
mod log;
mod reaper;
mod server;
mod sockets;
#[allow(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]
mod sys;
mod timeline;
mod transport;
mod watches;

use std::error::Error;
use std::io;

use protocol::timeline::AGENT_START;

pub use crate::transport::Transport;

/// Runs the agent until its keeper goes or asks for the end.
///
/// # Errors
///
/// What kept it from serving.
pub fn run(transport: Transport) -> Result<(), Box<dyn Error>> {
    let timeline = timeline::Timeline::default();
    timeline.stamp(AGENT_START);
    let served = serve(transport, timeline);
    if let Err(error) = &served {
        log::line(&protocol::error::chain(&**error));
    }
    served
}

fn serve(transport: Transport, timeline: timeline::Timeline) -> Result<(), Box<dyn Error>> {
    boot::prepare()?;
    let child_signals = sys::child_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(server::serve(transport, timeline, child_signals))?;
    // What still runs is of no use to anybody.
    runtime.shutdown_background();
    Ok(())
}

/// Ends the guest. Returns only where the caller is not PID 1.
///
/// # Errors
///
/// The kernel's refusal.
pub fn power_off() -> io::Result<()> {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Ok(());
    }
    rustix::fs::sync();
    // With `reboot=k` the VMM sees this at once; powering off would need ACPI.
    rustix::system::reboot(rustix::system::RebootCommand::Restart)?;
    Ok(())
}
