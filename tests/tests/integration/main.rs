//! nerite as a person meets it, in the test machine with real KVM.
//!
//! Run by `make integration`; on a host without the machine's roots or KVM
//! every test fails, none is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test says what failed by panicking"
)]

mod apt;
mod bad_input;
mod bad_shares;
mod basics;
mod bundle;
mod check;
mod conformance;
mod containerd;
mod disks;
mod durability;
mod events;
mod hostile;
mod isolation;
mod leftovers;
mod limits;
mod locks;
mod mounts;
mod signals;
mod sockets;
mod stdio;
mod terminal;
mod window;
