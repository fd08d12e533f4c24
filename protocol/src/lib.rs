//! The messages between nerite's processes, and nothing else.
//!
//! ```text
//!  keeper ──control socketpair (`control`)──▶ nerite-vmm
//!     │                                          │ virtio-vsock
//!     ├──ttrpc: Task, Sandbox (`agent`)──────────┴──────▶ agent
//!     └──setup (`broker`)──▶ nerite-fs ◀──requests (`fuse`)── nerite-vmm
//! ```
//!
//! The keeper's two peers speak two languages on purpose: the VMM gets a few
//! plain messages with descriptors beside them and links no RPC code; the
//! agent speaks containerd's own Task service, so that the keeper forwards
//! instead of translating.

#[cfg(feature = "rpc")]
pub mod agent;
pub mod broker;
pub mod control;
pub mod error;
pub mod fuse;
pub mod news;
pub mod oci;
pub mod stream;
pub mod timeline;
