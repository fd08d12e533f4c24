//! nerite's virtual machine monitor.
//!
//! It parses what a hostile guest writes, so it is made to be worth nothing
//! to an attacker: it opens no path, listens to nothing, dials nothing. Every
//! descriptor that it ever uses comes over one control socket.
//!
//! ```text
//!              control socket                      KVM
//!  keeper ◀──────────────────▶ session ──starts──▶ vcpu threads
//!                                 │ epoll             │ exits
//!      streams' sockets ──────────┤                   ▼
//!                                 └──drain──▶ slots: transport + device
//! ```
//!
//! One event loop, one thread per processor, no async runtime: a device is a
//! plain structure behind a lock that is almost never contended.

#![deny(unsafe_code)]

pub mod arch;
pub mod boot;
pub mod devices;
pub mod judge;
mod kvm;
pub mod machine;
pub mod memory;
mod registers;
pub mod session;
pub mod slots;
pub mod sys;
mod vcpu;
pub mod virtio;
