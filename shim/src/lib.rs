//! nerite's core: one sandbox with containers in it, and the keeper that owns
//! everything the sandbox costs the host.
//!
//! ```text
//!  doors (command line, containerd shim)     this library             other processes
//!  ───────────────────────────────────▶ Sandbox ─┬─ Vmm ──control──▶ nerite-vmm
//!                                                ├─ Broker ──setup──▶ nerite-fs
//!                                                └─ ttrpc over a stream ──▶ agent
//! ```
//!
//! The doors parse and call; no feature exists behind one door only.

pub mod assets;
pub mod broker;
pub mod bundle;
pub mod check;
pub mod disks;
mod idmap;
pub mod keeper;
pub mod machine;
pub mod mounts;
mod ports;
mod reaper;
pub mod root;
pub mod rootfs;
pub mod rootmount;
pub mod sandbox;
pub mod size;
pub mod sockets;
pub mod spec;
pub mod trace;
pub mod vmm;
