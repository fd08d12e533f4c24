//! The control messages between the keeper and `nerite-vmm`.
//!
//! One `SOCK_SEQPACKET` socketpair, on the VMM's descriptor 0. One datagram is
//! one message: JSON, with the descriptors that it speaks of beside it
//! (`SCM_RIGHTS`), referred to by their index ([`Fd`]). JSON because there are
//! a dozen messages in a machine's life and they can be read in a system-call
//! trace; a datagram because a message then arrives whole or not at all.
//!
//! ```text
//!  keeper                                        nerite-vmm
//!    │ Start{memory, vcpus, pmem…} + descriptors ──▶ │
//!    │ Stream{port} + descriptor  (any time) ──────▶ │
//!    │ ◀──────────────────────────── Running{clock} │  about to enter the guest
//!    │ ◀───────────── Exited{reason, console tail}  │  the last message
//! ```
//!
//! Closing the keeper's end ends the VMM: it never outlives its keeper. The
//! VMM creates no descriptor that leads outside; everything comes from here.

mod message;
mod socket;

pub use message::{
    BlockConfig, BlockEngine, BlockLimits, Exit, ExitReason, Fd, FromVmm, FsConfig, MachineConfig,
    PmemConfig, Probe, StreamConfig, ToVmm,
};
pub use socket::{ControlError, MAX_DESCRIPTORS, MAX_MESSAGE, pair, receive, send};
