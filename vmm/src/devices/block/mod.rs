//! Disks (virtio 1.2, section 5.2): raw images and block devices of the host.
//!
//! ```text
//!  driver ─▶ queues ─▶ parse ─▶ job ─┬─ io_uring ─────────────▶ image
//!                                    └─ threads (no io_uring) ─▶ image
//! ```
//!
//! A request is checked once, against the disk's size, into a [`Job`]: the
//! system calls that it takes, one after the other. An engine performs them. One
//! thread with an io_uring keeps as many requests on their way as the driver
//! offers, from all queues; hosts that refuse io_uring get a few threads that
//! each perform one call at a time, and the keeper is told so.
//!
//! An image is raw, whatever its first bytes say: formats that describe
//! themselves let a guest write a header that the next start believes.
//!
//! Whatever the host's file answers (a full disk, a bad sector, an image that
//! has been cut short) is an I/O error in the guest, never the machine's end.
//!
//! [`Job`]: job::Job

mod device;
mod engine;
mod job;
mod limiter;
mod patience;
mod request;
mod ring;
mod sys;
#[cfg(test)]
mod tests;
mod threads;

pub use device::{Block, BlockSettings, DiskError};
pub use engine::Engine;
#[cfg(any(test, feature = "test-utils"))]
pub use threads::serve_now;
