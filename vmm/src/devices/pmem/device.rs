//! The window: where the image lies in guest-physical memory.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::GuestAddress;

use super::request;
use crate::memory::PMEM_ALIGNMENT;
use crate::memory::mmap::Mapping;
use crate::virtio::{Device, QueueFault, Queues};

const FLUSH_QUEUE: usize = 0;

/// An image that cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its size could not be read, or it could not be mapped.
    #[error("map image")]
    Map(#[from] io::Error),
    /// No bytes, no regular file, or more than an address space.
    #[error("image of {bytes} bytes cannot be mapped")]
    Size {
        /// Bytes in the file.
        bytes: u64,
    },
}

/// One image in its window.
#[derive(Debug)]
pub struct Pmem {
    mapping: Mapping,
    start: GuestAddress,
    bytes: u64,
    /// `struct virtio_pmem_config`: start and size of the window.
    config: [u8; 16],
}

impl Pmem {
    /// Maps `image` for a window that begins at `start`.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn new(image: &File, start: GuestAddress) -> Result<Self, ImageError> {
        let bytes = image.metadata()?.len();
        let refused = ImageError::Size { bytes };
        let Some(window) = bytes
            .checked_next_multiple_of(PMEM_ALIGNMENT)
            .filter(|window| *window > 0)
        else {
            return Err(refused);
        };
        let (Ok(length), Ok(window_length)) = (usize::try_from(bytes), usize::try_from(window))
        else {
            return Err(refused);
        };
        let mut config = [0; 16];
        let (first, second) = config.split_at_mut(8);
        first.copy_from_slice(&start.0.to_le_bytes());
        second.copy_from_slice(&window.to_le_bytes());
        Ok(Self {
            mapping: Mapping::file(image, length, window_length)?,
            start,
            bytes: window,
            config,
        })
    }

    /// What is in the window.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The window for KVM: guest address, host address, bytes.
    pub(crate) fn window(&self) -> (GuestAddress, u64, u64) {
        (self.start, self.mapping.host_address(), self.bytes)
    }

    /// The first address after the window, for the next one.
    #[must_use]
    pub fn end(&self) -> GuestAddress {
        GuestAddress(self.start.0.saturating_add(self.bytes))
    }
}

impl Device for Pmem {
    fn kind(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        queues.serve(FLUSH_QUEUE, request::answer)
    }
}
