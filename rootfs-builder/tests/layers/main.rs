//! Layers as users make them, judged by erofs-utils.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod archive;
mod common;
mod directory;
mod documents;
mod hostile;
mod os;
