//! Shared directories (virtio 1.2, section 5.11): the data half of the file
//! server.
//!
//! ```text
//!  guest driver ──kick──▶ worker ─┬─ data ──▶ files: preadv, pwritev … ──────────┐
//!                                 └─ names ─▶ channel ─▶ broker ─(descriptor)──▶─┤
//!                                                             used ring, interrupt
//! ```
//!
//! What takes little time is served at once, on the processor whose guest
//! waits for it (`front`); what may block, a read from a disk, is left to
//! workers, which are threads. Each has a channel to the broker, so that it
//! asks and waits without a table of what is on its way. Data move straight between file and guest memory, on descriptors that
//! the broker has opened; the VMM knows nodes by number and no name at all.

mod channel;
mod device;
mod files;
mod forgets;
mod front;
mod known;
#[cfg(test)]
mod lock_tests;
mod locks;
mod ranges;
mod server;
#[cfg(test)]
mod tests;
mod waits;
mod window;
mod worker;

pub use device::Fs;
pub use front::FsFront;
pub use server::{Served, Server};
pub use window::FileWindow;
pub use worker::start;
