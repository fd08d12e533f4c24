//! What a command line may show while an image is read.

/// Is told how far the work is.
pub trait Progress {
    /// `done` of `total` bytes have been read. Called often, from the thread
    /// that called [`prepare`](super::prepare), and not at all for an image
    /// that is in the cache.
    fn update(&self, done: u64, total: u64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _done: u64, _total: u64) {}
}
