//! The file broker: names and metadata of what a sandbox shares with its
//! guest. Its program is `nerite-fs`.
//!
//! ```text
//!  guest ──virtio-fs──▶ nerite-vmm ──channel──▶ serve ─▶ device ─▶ operations
//!                            ▲                             │
//!                            └──── open descriptor ────────┴─ nodes ─▶ share trees
//! ```
//!
//! Both its peers are hostile: the guest, whose requests it reads, and the
//! VMM that passes them on. A node is a place below a share, held by parent
//! and name and opened when it is needed; a name is one component and never
//! followed if it is a link; so nothing that a peer says can name anything
//! outside of the shares. Data never passes through here: the VMM gets a
//! descriptor of a regular file and reads and writes by itself.

mod answer;
mod caller;
#[cfg(any(test, feature = "test-utils"))]
mod census;
mod device;
pub mod jail;
mod news;
mod nodes;
mod operations;
mod request;
pub mod serve;
pub mod session;
mod status;
mod streams;
mod sys;
#[cfg(test)]
mod tests;
mod watch;

#[cfg(any(test, feature = "test-utils"))]
pub use census::Census;
pub use device::Device;
