//! Fills what the driver offers, a bounded piece at a time: the driver's
//! length never sizes anything here.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::sys;
use crate::virtio::queue::copy_to;
use crate::virtio::{Device, QueueFault, Queues};

/// Bytes given per request at most; Linux asks for 64 at a time.
const PIECE: usize = 256;
const QUEUE: usize = 0;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {}

impl Rng {
    /// A device that draws from the host's generator.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[8]
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        queues.serve(QUEUE, |chain| {
            let mut piece = [0; PIECE];
            let filled = sys::random(&mut piece);
            let written = copy_to(chain.writable(), piece.get(..filled).unwrap_or_default());
            u32::try_from(written).unwrap_or(0)
        })
    }
}
