//! One split virtqueue, seen from the device: chains come out checked.
//!
//! The ring arithmetic is `virtio-queue`'s. What it leaves open is closed
//! here: its chain iterator ends silently on a loop, a wild index or an
//! unreadable descriptor, so a chain whose last descriptor points further is
//! broken; readable buffers must precede writable ones; every buffer must lie
//! in guest RAM. A fault is the driver's, and stops its device only.
//! Virtio 1.2, section 2.7.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestRam;

/// A queue that its driver has broken.
#[derive(Debug, thiserror::Error)]
pub enum QueueFault {
    /// An index that cannot be, or a ring outside memory.
    #[error("virtqueue ring is broken")]
    Ring(#[from] virtio_queue::Error),
    /// A chain with a loop, a wild index or an unreadable descriptor.
    #[error("descriptor chain {head} does not end")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A readable buffer after a writable one.
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer outside guest RAM.
    #[error("descriptor chain {head} has a buffer outside guest memory")]
    Buffer {
        /// Index of its first descriptor.
        head: u16,
    },
}

/// A slice of guest RAM. The guest may change it at any time.
pub type GuestSlice<'m> = VolatileSlice<'m, ()>;

/// A request: buffers that lie in guest RAM, readable ones first.
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    slices: Vec<GuestSlice<'m>>,
    readable: usize,
}

impl<'m> Chain<'m> {
    /// Index of the first descriptor: the chain's name in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver has written for the device.
    #[must_use]
    pub fn readable(&self) -> &[GuestSlice<'m>] {
        self.slices.get(..self.readable).unwrap_or_default()
    }

    /// Where the device may write.
    #[must_use]
    pub fn writable(&self) -> &[GuestSlice<'m>] {
        self.slices.get(self.readable..).unwrap_or_default()
    }
}

/// Bytes in all of `slices`. A chain is at most 4 GiB long.
#[must_use]
pub fn total(slices: &[GuestSlice<'_>]) -> usize {
    slices
        .iter()
        .fold(0, |sum, slice| sum.saturating_add(slice.len()))
}

/// Copies the beginning of `slices` into `buffer`; returns how much.
#[must_use]
pub fn copy_from(slices: &[GuestSlice<'_>], buffer: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        done = done.saturating_add(slice.read(rest, 0).unwrap_or(0));
    }
    done
}

/// Copies `bytes` to the beginning of `slices`; returns how much fitted.
#[must_use]
pub fn copy_to(slices: &[GuestSlice<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        done = done.saturating_add(slice.write(rest, 0).unwrap_or(0));
    }
    done
}

/// `slices` without their first `skip` bytes and not beyond `length` more.
#[must_use]
pub fn part<'m>(slices: &[GuestSlice<'m>], skip: usize, length: usize) -> Vec<GuestSlice<'m>> {
    let (mut skip, mut length) = (skip, length);
    let mut parts = Vec::with_capacity(slices.len());
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip = skip.saturating_sub(skipped);
        let taken = slice.len().saturating_sub(skipped).min(length);
        length = length.saturating_sub(taken);
        if taken > 0
            && let Ok(part) = slice.subslice(skipped, taken)
        {
            parts.push(part);
        }
    }
    parts
}

/// A queue that is in use. Its geometry no longer changes.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
}

impl Ring {
    /// Takes over a queue that the driver has set up, or has left alone;
    /// `None` if a ring of a queue in use lies outside guest memory.
    #[must_use]
    pub fn from_driver(queue: Queue, ram: &GuestRam) -> Option<Self> {
        (!queue.ready() || queue.is_valid(ram)).then_some(Self { queue })
    }

    /// Whether the driver uses this queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    pub(super) fn pop<'m>(&mut self, ram: &'m GuestRam) -> Result<Option<Chain<'m>>, QueueFault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let Some(mut descriptors) = self.queue.iter(ram)?.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        let mut chain = Chain {
            head,
            slices: Vec::with_capacity(2),
            readable: 0,
        };
        let mut ended = false;
        for descriptor in &mut descriptors {
            ended = !descriptor.has_next();
            let length =
                usize::try_from(descriptor.len()).map_err(|_| QueueFault::Buffer { head })?;
            if !descriptor.is_write_only() {
                if chain.slices.len() != chain.readable {
                    return Err(QueueFault::Order { head });
                }
                chain.readable = chain.readable.saturating_add(usize::from(length > 0));
            }
            if length > 0 {
                let slice = ram
                    .get_slice(descriptor.addr(), length)
                    .map_err(|_| QueueFault::Buffer { head })?;
                chain.slices.push(slice);
            }
        }
        if ended {
            Ok(Some(chain))
        } else {
            Err(QueueFault::Chain { head })
        }
    }

    pub(super) fn has_more(&self, ram: &GuestRam) -> bool {
        self.queue.ready()
            && self
                .queue
                .avail_idx(ram, Ordering::Acquire)
                .is_ok_and(|next| next.0 != self.queue.next_avail())
    }

    /// Puts the chain popped last back: it will be popped again.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    pub(super) fn complete(
        &mut self,
        ram: &GuestRam,
        head: u16,
        length: u32,
    ) -> Result<(), QueueFault> {
        Ok(self.queue.add_used(ram, head, length)?)
    }

    pub(super) fn arm(&mut self, ram: &GuestRam) -> Result<bool, QueueFault> {
        Ok(self.queue.ready() && self.queue.enable_notification(ram)?)
    }

    pub(super) fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueFault> {
        Ok(self.queue.ready() && self.queue.needs_notification(ram)?)
    }
}
