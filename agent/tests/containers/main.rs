//! Containers by a real agent, without a virtual machine.
//!
//! Run with `--ignored`, as root, where cgroup v2 with its controllers and a
//! busybox root at `/srv/roots/busybox` are: in the machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

mod copy;
mod isolation;
mod limits;
mod processes;
mod service;
mod streams;
mod support;
mod terminal;
