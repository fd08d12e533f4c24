//! Read-only images as memory (virtio 1.2, section 5.19).
//!
//! ```text
//!  image file ──page cache──▶ shared read-only mapping ──KVM──▶ guest window
//! ```
//!
//! The guest maps the image's pages themselves (DAX): one copy in the host's
//! page cache serves all guests. KVM refuses every write to the window, so
//! the device's only request, flush, has nothing to do.

mod device;
mod request;
#[cfg(test)]
mod tests;

pub use device::{ImageError, Pmem};
