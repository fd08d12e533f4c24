//! The device: copies what the guest writes, ignores the other direction.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io::Write;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::Tail;
use crate::virtio::queue::{copy_from, part, total};
use crate::virtio::{Device, QueueFault, Queues};

/// Queue 0 takes input, of which there is none.
const TRANSMIT: usize = 1;
/// Bytes taken from one buffer at a time.
const PIECE: usize = 1024;
/// Bytes taken from one request; a driver that sends more loses the rest.
const LONGEST: usize = 64 << 10;

/// The console.
#[derive(Debug)]
pub struct Console {
    tail: Tail,
    log: Option<File>,
}

impl Console {
    /// A console whose output also goes to `log`.
    #[must_use]
    pub fn new(log: Option<File>) -> Self {
        Self {
            tail: Tail::default(),
            log,
        }
    }

    /// Takes output, wherever in the guest it comes from.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        if let Some(log) = &mut self.log
            && log.write_all(bytes).is_err()
        {
            // Whoever wanted the log has gone, or does not read it: a guest
            // does not wait for that. The tail is kept all the same.
            self.log = None;
        }
    }

    /// The end of the output, for the exit report.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }
}

impl Device for Console {
    fn kind(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[4, 64]
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        queues.serve(TRANSMIT, |chain| {
            let text = chain.readable();
            let mut piece = [0; PIECE];
            let length = total(text).min(LONGEST);
            for start in (0..length).step_by(PIECE) {
                let copied = copy_from(&part(text, start, PIECE), &mut piece);
                self.write(piece.get(..copied).unwrap_or_default());
            }
            0
        })
    }
}
