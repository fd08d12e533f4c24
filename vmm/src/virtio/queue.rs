//! One split virtqueue, seen from the device: chains come out checked.
//!
//! The ring arithmetic is `virtio-queue`'s. What it leaves open is closed
//! here: its chain iterator ends silently on a loop, a wild index or an
//! unreadable descriptor, so a chain whose last descriptor points further is
//! broken; readable buffers must precede writable ones; every buffer must lie
//! in guest memory, every ring in RAM. A fault is the driver's, and stops its device only.
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
use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, VolatileSlice,
};

use crate::memory::{GuestRam, is_ram};
use crate::sys;

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

/// A slice of guest memory. The guest may change it at any time; where it is
/// no RAM but a window on a file, it may even vanish, when somebody cuts that
/// file short: then only system calls touch it, which fail.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'m> {
    bytes: VolatileSlice<'m, ()>,
    window: bool,
}

/// Of RAM.
impl<'m> From<VolatileSlice<'m, ()>> for GuestSlice<'m> {
    fn from(bytes: VolatileSlice<'m, ()>) -> Self {
        Self {
            bytes,
            window: false,
        }
    }
}

impl<'m> GuestSlice<'m> {
    /// What lies at `address`; `None` unless it is one stretch of RAM or of a
    /// window.
    pub(crate) fn at(ram: &'m GuestRam, address: GuestAddress, length: usize) -> Option<Self> {
        let region = ram.find_region(address)?;
        Self::within(region, region.to_region_addr(address)?, length)
    }

    fn within(
        region: &'m GuestRegionMmap<()>,
        start: MemoryRegionAddress,
        length: usize,
    ) -> Option<Self> {
        Some(Self {
            bytes: region.get_slice(start, length).ok()?,
            window: !is_ram(region),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its address, for system calls.
    #[must_use]
    pub fn ptr_guard(&self) -> PtrGuard {
        self.bytes.ptr_guard()
    }

    /// Its address, for system calls that write there.
    #[must_use]
    pub fn ptr_guard_mut(&self) -> PtrGuardMut {
        self.bytes.ptr_guard_mut()
    }

    fn subslice(&self, offset: usize, length: usize) -> Option<Self> {
        let bytes = self.bytes.subslice(offset, length).ok()?;
        Some(Self { bytes, ..*self })
    }

    /// Copies its beginning; returns how much.
    fn read(&self, buffer: &mut [u8]) -> usize {
        if self.window {
            sys::read_memory(self, buffer)
        } else {
            self.bytes.read(buffer, 0).unwrap_or(0)
        }
    }

    /// Overwrites its beginning; returns how much.
    fn write(&self, bytes: &[u8]) -> usize {
        if self.window {
            sys::write_memory(self, bytes)
        } else {
            self.bytes.write(bytes, 0).unwrap_or(0)
        }
    }
}

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

    fn push(&mut self, stretch: &Stretch<'m>) -> Result<(), QueueFault> {
        let slice = stretch
            .slice()
            .ok_or(QueueFault::Buffer { head: self.head })?;
        self.slices.push(slice);
        self.readable = self.readable.saturating_add(usize::from(!stretch.writable));
        Ok(())
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

/// Buffers of a chain that follow each other in guest memory: pages of a file
/// mostly do, and one slice costs less than many.
struct Stretch<'m> {
    region: &'m GuestRegionMmap<()>,
    start: MemoryRegionAddress,
    length: u64,
    writable: bool,
}

impl<'m> Stretch<'m> {
    /// `None` unless it is one stretch of RAM or of a window.
    fn new(ram: &'m GuestRam, address: GuestAddress, length: u64, writable: bool) -> Option<Self> {
        let region = ram.find_region(address)?;
        let stretch = Self {
            region,
            start: region.to_region_addr(address)?,
            length,
            writable,
        };
        (stretch.end()? <= region.len()).then_some(stretch)
    }

    /// Behind its last byte, in its region.
    fn end(&self) -> Option<u64> {
        self.start.0.checked_add(self.length)
    }

    /// Adds a buffer, if it follows.
    fn grow(&mut self, address: GuestAddress, length: u64, writable: bool) -> bool {
        let follows = writable == self.writable
            && self.end().is_some_and(|end| {
                self.region.start_addr().0.checked_add(end) == Some(address.0)
                    && end
                        .checked_add(length)
                        .is_some_and(|end| end <= self.region.len())
            });
        if follows {
            self.length = self.length.saturating_add(length);
        }
        follows
    }

    fn slice(&self) -> Option<GuestSlice<'m>> {
        GuestSlice::within(self.region, self.start, self.length.try_into().ok()?)
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
        done = done.saturating_add(slice.read(rest));
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
        done = done.saturating_add(slice.write(rest));
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
            && let Some(part) = slice.subslice(skipped, taken)
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

/// Whether all three rings lie in RAM, where they cannot vanish.
fn rings_are_ram(queue: &Queue, ram: &GuestRam) -> bool {
    let size = usize::from(queue.size());
    // Lengths as in 2.7, with the event indexes.
    let rings = [
        (queue.desc_table(), size.saturating_mul(16)),
        (queue.avail_ring(), size.saturating_mul(2).saturating_add(6)),
        (queue.used_ring(), size.saturating_mul(8).saturating_add(6)),
    ];
    rings.into_iter().all(|(start, bytes)| {
        let slice = GuestSlice::at(ram, GuestAddress(start), bytes);
        slice.is_some_and(|slice| !slice.window)
    })
}

impl Ring {
    /// Takes over a queue that the driver has set up, or has left alone;
    /// `None` if a ring of a queue in use lies outside guest memory.
    #[must_use]
    pub fn from_driver(queue: Queue, ram: &GuestRam) -> Option<Self> {
        let usable = !queue.ready() || queue.is_valid(ram) && rings_are_ram(&queue, ram);
        usable.then_some(Self { queue })
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
        let mut stretch: Option<Stretch<'m>> = None;
        for descriptor in &mut descriptors {
            ended = !descriptor.has_next();
            let writable = descriptor.is_write_only();
            if !writable && stretch.as_ref().is_some_and(|stretch| stretch.writable) {
                return Err(QueueFault::Order { head });
            }
            let (address, length) = (descriptor.addr(), u64::from(descriptor.len()));
            if length == 0
                || stretch
                    .as_mut()
                    .is_some_and(|stretch| stretch.grow(address, length, writable))
            {
                continue;
            }
            let next = Stretch::new(ram, address, length, writable);
            let next = next.ok_or(QueueFault::Buffer { head })?;
            if let Some(stretch) = stretch.replace(next) {
                chain.push(&stretch)?;
            }
        }
        if let Some(stretch) = stretch {
            chain.push(&stretch)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::GuestMemory;
    use crate::memory::mmap::Mapping;

    const BYTES: u64 = 2 << 20;

    /// Memory with a window in which 8 KiB of a file are.
    fn with_window(test: impl FnOnce(&GuestRam, GuestAddress, &std::fs::File)) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mapping = Mapping::file(&file, 8192, 2 << 20).unwrap();
        let mut memory = GuestMemory::new(64 << 20).unwrap();
        let start = memory.layout().windows();
        memory.add_window(start, &mapping, BYTES).unwrap();
        test(memory.ram(), start, &file);
    }

    #[test]
    fn buffer_in_a_window_outlives_its_file() {
        with_window(|ram, start, file| {
            let slices = [GuestSlice::at(ram, start, 8192).unwrap()];
            let mut bytes = [0; 8192];
            assert_eq!(copy_from(&slices, &mut bytes), 8192);
            assert_eq!(bytes, [7; 8192]);
            // Mapped to be read only.
            assert_eq!(copy_to(&slices, &bytes), 0);
            file.set_len(4096).unwrap();
            assert_eq!(copy_from(&slices, &mut bytes), 4096);
            file.set_len(0).unwrap();
            assert_eq!(copy_from(&slices, &mut bytes), 0);
            assert!(GuestSlice::at(ram, start, 2 << 20).is_some());
            assert!(GuestSlice::at(ram, start, (2 << 20) + 1).is_none());
        });
    }

    #[test]
    fn buffers_that_follow_each_other_are_one_slice() {
        with_window(|ram, window, _| {
            let mut stretch = Stretch::new(ram, GuestAddress(0x1000), 0x1000, true).unwrap();
            assert!(stretch.grow(GuestAddress(0x2000), 0x10, true));
            assert!(stretch.grow(GuestAddress(0x2010), 0xff0, true));
            for (address, writable) in [(0x3000, false), (0x2fff, true), (0x3001, true), (0, true)]
            {
                assert!(!stretch.grow(GuestAddress(address), 1, writable));
            }
            assert_eq!(stretch.slice().unwrap().len(), 0x2000);
            assert!(!stretch.grow(GuestAddress(0x3000), u64::MAX, true));

            let end = 64 << 20;
            let mut last = Stretch::new(ram, GuestAddress(end - 8), 4, true).unwrap();
            assert!(!last.grow(GuestAddress(end - 4), 5, true));
            assert!(last.grow(GuestAddress(end - 4), 4, true));
            assert!(!last.grow(GuestAddress(end), 1, true));
            assert_eq!(last.slice().unwrap().len(), 8);
            assert!(Stretch::new(ram, GuestAddress(end - 8), 9, true).is_none());
            assert!(Stretch::new(ram, GuestAddress(end), 1, true).is_none());
            assert!(Stretch::new(ram, GuestAddress(u64::MAX), u64::MAX, true).is_none());
            let inside = Stretch::new(ram, window, 4096, true).unwrap();
            assert!(inside.slice().unwrap().window);
        });
    }

    #[test]
    fn ring_in_a_window_is_refused() {
        with_window(|ram, start, _| {
            let ring = |table: u64, available: u64, used: u64| {
                let mut queue = Queue::new(16).unwrap();
                queue
                    .try_set_desc_table_address(GuestAddress(table))
                    .unwrap();
                queue
                    .try_set_avail_ring_address(GuestAddress(available))
                    .unwrap();
                queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
                queue.set_ready(true);
                Ring::from_driver(queue, ram).is_some()
            };
            assert!(ring(0, 0x400, 0x800));
            assert!(ring(0, 0x400, (64 << 20) - 136));
            for place in [start.0, start.0.saturating_add(4096)] {
                assert!(!ring(place, 0x400, 0x800));
                assert!(!ring(0, place, 0x800));
                assert!(!ring(0, 0x400, place));
            }
        });
    }
}
