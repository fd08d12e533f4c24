//! The guest's streams to the host (virtio 1.2, section 5.10): a user-space
//! multiplexer between one virtio device and a socketpair per stream.
//!
//! ```text
//!  guest connect(host, port) ──▶ offered socket for that port, once
//!  guest send ──tx queue──▶ socket ──(no room)──▶ pending, ≤ 256 KiB
//!  guest recv ◀──rx queue── socket   only as much as the guest's credit
//! ```
//!
//! Not vhost-vsock: it would need a global address per VM, a listening socket
//! on the host that any guest may name, and a kernel module. Here nothing
//! listens and nothing is dialled: a port works when the keeper has given a
//! socket for it, and works once.
//!
//! Back-pressure is credit in both directions. A reader that stalls fills its
//! own stream's buffer, then its writer in the guest waits; nobody else does.
//! Packets reach the sockets in the order in which the guest sent them, over
//! all streams, except where a socket has no room.

mod connection;
mod device;
mod packet;
#[cfg(test)]
mod tests;

pub use connection::{BUFFER, StreamKey};
pub use device::Vsock;
