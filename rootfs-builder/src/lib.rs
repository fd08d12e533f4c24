//! Read-only EROFS layers for nerite's guests.
//!
//! ```text
//!  agent's binary ───────────────▶ os ────┐
//!  directory ────▶ image::directory ──┐   ├──▶ tree ──▶ erofs ──▶ FILE
//!  root tar ─────▶ image::layer ──────┼───┘
//!  docker save ──▶ image::{store, manifest} ──▶ image::layer, layer upon layer
//!  OCI layout ───▶ (the same)
//! ```
//!
//! [`os`] builds the layer that every guest boots from; [`image`] makes a
//! layer of a container image and keeps it in a cache. Both write with one
//! small EROFS writer of their own; README.md says why not `mkfs.erofs`.
#![forbid(unsafe_code)]

mod erofs;
pub mod image;

pub mod os;
mod tree;
