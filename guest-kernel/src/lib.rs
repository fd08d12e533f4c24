//! Builds nerite's guest kernel: the distribution's source, a
//! configuration made of reviewed fragments, hardly a patch, one `vmlinux`.
//!
//! ```text
//!  fragments/*.config ──▶ fragment ──▶ digest ──▶ cached? ──▶ path
//!                            │                      │ no
//!                            ▼                      ▼
//!                    allnoconfig + requests     source (apt, tar), patches
//!                            │                      │
//!                            └──▶ config: did every option survive?
//!                                           │
//!                                   make ──▶ pack ──▶ cache/<digest>/
//! ```
//!
//! The kernel's own kconfig decides what options depend on; this crate only
//! asks and then checks the answer, because kconfig drops what it cannot grant
//! without a word. A `.config` kept in the repository would be shorter to
//! build, but nobody could review it: two thousand lines without a reason.

#![forbid(unsafe_code)]

pub mod builder;
pub mod cache;
pub mod command;
pub mod config;
pub mod digest;
pub mod fragment;
pub mod initcalls;
mod listing;
pub mod make;
pub mod pack;
pub mod patch;
pub mod progress;
pub mod size;
pub mod source;
