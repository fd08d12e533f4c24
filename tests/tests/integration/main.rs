//! nerite as a person meets it, in the test machine with real KVM.
//!
//! Run by `make integration`; on a host without the machine's roots or KVM
//! every test fails, none is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test says what failed by panicking"
)]

mod bad_input;
mod basics;
mod bundle;
mod check;
mod disks;
mod hostile;
mod conformance;
mod isolation;
mod leftovers;
mod limits;
mod signals;
mod stdio;
mod terminal;
mod window;
