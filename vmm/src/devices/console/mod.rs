//! The boot log (virtio 1.2, section 5.3): port 0, output only.
//!
//! ```text
//!  guest's hvc0 ──transmit queue──┐
//!  early serial port ─────────────┴──▶ tail (64 KiB) ──▶ exit report
//!                                  └──▶ descriptor, if the keeper gave one
//! ```

mod device;
mod tail;
#[cfg(test)]
mod tests;

pub use device::Console;
pub(crate) use tail::Tail;
