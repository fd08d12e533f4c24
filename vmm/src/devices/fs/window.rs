//! Files in the guest's memory (DAX; virtio 1.2, section 5.11.6.4): a window
//! above guest RAM in which the guest asks for pieces of files.
//!
//! ```text
//!  guest-physical:  RAM │ images │ window: ░░▓▓▓▓░░░░▓▓░░░   ▓ pages of files
//! ```
//!
//! The window is divided into units of 2 MiB, which is what Linux maps at a
//! time, so that what is kept about it has a fixed size. The VMM never looks
//! into it but by system calls.
//!
//! Where a file is shorter than what is mapped of it, there is no page: a
//! guest that goes there, because somebody on the host has shortened the file,
//! leaves KVM with `EFAULT`, and KVM does not tell where. Then every unit
//! whose file has ended gets zeros behind its end ([`FileWindow::mend`]). The
//! files are put back with the next request, for they may have grown.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddress;

use crate::memory::mmap::{Mapping, Part};

/// Bytes of a unit. The binary logarithm goes to the guest with INIT.
pub(super) const UNIT: u64 = 2 << 20;
/// Largest window, of which there may be two: with the most RAM they end within
/// the physical addresses of every processor.
const LARGEST: u64 = 8 << 30;
/// The host's smallest page, beyond which a file's end cannot be seen.
const PAGE: u64 = 4096;

/// A request for a place that is not in the window, or is not what it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BadRange;

impl From<BadRange> for io::Error {
    fn from(_: BadRange) -> Self {
        Self::from_raw_os_error(libc::EINVAL)
    }
}

/// Units of a window, at least one, all of which exist.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Units(std::ops::Range<usize>);

/// What is in a unit.
#[derive(Debug)]
struct Shown {
    node: u64,
    file: Arc<File>,
    position: i64,
    writable: bool,
    /// Where the zeros begin that are there instead of the file's missing end,
    /// in bytes from the window's beginning.
    zeros: Option<usize>,
}

/// A window of one device.
#[derive(Debug)]
pub struct FileWindow {
    mapping: Mapping,
    start: GuestAddress,
    units: Mutex<Vec<Option<Shown>>>,
    /// Some unit is mended.
    mended: AtomicBool,
    /// How often that was done.
    mendings: AtomicU64,
}

impl FileWindow {
    /// Reserves a window of `bytes` bytes, a multiple of [`UNIT`], for `start`.
    ///
    /// # Errors
    ///
    /// When so much cannot be had.
    pub fn new(start: GuestAddress, bytes: u64) -> io::Result<Self> {
        if bytes == 0 || !bytes.is_multiple_of(UNIT) || bytes > LARGEST {
            return Err(io::Error::other(format!(
                "a window of {bytes} bytes is not a multiple of 2 MiB up to 8 GiB"
            )));
        }
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let count = bytes.checked_div(UNIT).unwrap_or(0);
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let mut units = Vec::new();
        units.resize_with(count, || None);
        Ok(Self {
            mapping: Mapping::window(length)?,
            start,
            units: Mutex::new(units),
            mended: AtomicBool::new(false),
            mendings: AtomicU64::new(0),
        })
    }

    fn units(&self) -> MutexGuard<'_, Vec<Option<Shown>>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapping, of which the window is all.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// First guest-physical address and bytes.
    #[must_use]
    pub fn place(&self) -> (GuestAddress, u64) {
        let count = u64::try_from(self.units().len()).unwrap_or(0);
        (self.start, count.saturating_mul(UNIT))
    }

    /// Checks what a guest says of a place.
    pub(super) fn range(&self, offset: u64, bytes: u64) -> Result<Units, BadRange> {
        if bytes == 0 || !offset.is_multiple_of(UNIT) || !bytes.is_multiple_of(UNIT) {
            return Err(BadRange);
        }
        let end = offset.checked_add(bytes).ok_or(BadRange)?;
        let index = |offset: u64| {
            let index = offset.checked_div(UNIT).ok_or(BadRange)?;
            usize::try_from(index).map_err(|_| BadRange)
        };
        let (first, end) = (index(offset)?, index(end)?);
        if end > self.units().len() {
            return Err(BadRange);
        }
        Ok(Units(first..end))
    }

    /// Puts a file into units, from `position` on, in place of what is there.
    ///
    /// # Errors
    ///
    /// The system's; `EINVAL` for positions that no file has.
    pub(super) fn set_up(
        &self,
        units: Units,
        node: u64,
        file: &Arc<File>,
        position: u64,
        writable: bool,
    ) -> io::Result<()> {
        let mut all = self.units();
        for (number, index) in (0..).zip(units.0) {
            let position = u64::checked_mul(number, UNIT)
                .and_then(|offset| position.checked_add(offset))
                .filter(|position| position.is_multiple_of(UNIT))
                .and_then(|position| i64::try_from(position).ok())
                .ok_or(BadRange)?;
            let shown = Shown {
                node,
                file: Arc::clone(file),
                position,
                writable,
                zeros: None,
            };
            self.show(index, &shown)?;
            if let Some(unit) = all.get_mut(index) {
                *unit = Some(shown);
            }
        }
        Ok(())
    }

    /// Takes files out of units, each of which must have one.
    ///
    /// # Errors
    ///
    /// `EINVAL` for one that has none.
    pub(super) fn remove(&self, units: Units) -> io::Result<()> {
        let mut all = self.units();
        for index in units.0 {
            let unit = all.get_mut(index).ok_or(BadRange)?;
            if unit.is_none() {
                return Err(BadRange.into());
            }
            self.mapping.hide(whole(index))?;
            *unit = None;
        }
        Ok(())
    }

    /// Takes everything out.
    pub(super) fn clear(&self) {
        for (index, unit) in self.units().iter_mut().enumerate() {
            // What cannot be hidden stays where it is, and the guest with it.
            if unit.is_some() && self.mapping.hide(whole(index)).is_ok() {
                *unit = None;
            }
        }
    }

    /// Whether a node's file is shown.
    pub(super) fn shows(&self, node: u64) -> bool {
        self.units()
            .iter()
            .flatten()
            .any(|shown| shown.node == node)
    }

    /// Shows `file` wherever a node's file is shown: overlayfs has made
    /// another file of it for whoever writes.
    pub(super) fn renew(&self, node: u64, file: &Arc<File>) -> io::Result<()> {
        for (index, unit) in self.units().iter_mut().enumerate() {
            if let Some(shown) = unit
                && shown.node == node
                && !Arc::ptr_eq(&shown.file, file)
            {
                shown.file = Arc::clone(file);
                shown.zeros = None;
                self.show(index, shown)?;
            }
        }
        Ok(())
    }

    /// Before a request: the answer may tell the guest, in whatever way, that a
    /// file has grown since it had ended too early.
    pub(super) fn restore(&self) {
        if !self.mended.load(Ordering::Acquire) {
            return;
        }
        let mut left = false;
        let mut all = self.units();
        for (index, unit) in all.iter_mut().enumerate() {
            let Some(shown) = unit.as_mut().filter(|shown| shown.zeros.is_some()) else {
                continue;
            };
            if self.show(index, shown).is_ok() {
                shown.zeros = None;
            }
            left |= shown.zeros.is_some();
        }
        self.mended.store(left, Ordering::Release);
    }

    /// A processor has met a page that is not there: puts zeros behind the end
    /// of each file that ends within its unit ([`FileWindow::mendings`]).
    pub(crate) fn mend(&self) {
        let mut found = false;
        // Counted under the lock: who finds nothing left to do must see that
        // somebody has just done it.
        let mut all = self.units();
        for (index, unit) in all.iter_mut().enumerate() {
            if let Some(shown) = unit
                && let Some(part) = missing(index, shown)
                && shown.zeros.is_none_or(|zeros| part.offset < zeros)
                && self.mapping.blank(part).is_ok()
            {
                shown.zeros = Some(part.offset);
                found = true;
            }
        }
        if found {
            self.mended.store(true, Ordering::Release);
            self.mendings.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often anything was mended.
    pub(crate) fn mendings(&self) -> u64 {
        self.mendings.load(Ordering::Relaxed)
    }

    fn show(&self, index: usize, shown: &Shown) -> io::Result<()> {
        self.mapping
            .show(whole(index), &shown.file, shown.position, shown.writable)
    }
}

/// All of a unit.
fn whole(index: usize) -> Part {
    let bytes = usize::try_from(UNIT).unwrap_or(0);
    Part {
        offset: index.saturating_mul(bytes),
        bytes,
    }
}

/// The part of a unit that is behind its file's end.
fn missing(index: usize, shown: &Shown) -> Option<Part> {
    let length = shown.file.metadata().map_or(0, |data| data.len());
    let there = length
        .saturating_sub(shown.position.unsigned_abs())
        .checked_next_multiple_of(PAGE)?;
    let rest = UNIT.checked_sub(there).filter(|rest| *rest > 0)?;
    let place = whole(index);
    Some(Part {
        offset: place.offset.saturating_add(usize::try_from(there).ok()?),
        bytes: usize::try_from(rest).ok()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::GuestMemory;
    use crate::virtio::queue::{GuestSlice, copy_from};

    const UNITS: u64 = 8;

    fn window() -> FileWindow {
        FileWindow::new(GuestAddress(1 << 32), UNITS * UNIT).unwrap()
    }

    fn file(bytes: u64) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; usize::try_from(bytes).unwrap()])
            .unwrap();
        Arc::new(file)
    }

    /// The first byte of each page from the window's beginning, as long as
    /// there are pages.
    fn pages(window: &FileWindow) -> Vec<u8> {
        let mut memory = GuestMemory::new(64 << 20).unwrap();
        let (start, bytes) = window.place();
        memory.add_window(start, window.mapping(), bytes).unwrap();
        let mut pages = Vec::new();
        for offset in (0..bytes).step_by(4096) {
            let address = GuestAddress(start.0 + offset);
            let slice = [GuestSlice::at(memory.ram(), address, 1).unwrap()];
            let mut byte = [0];
            if copy_from(&slice, &mut byte) == 0 {
                break;
            }
            pages.push(byte[0]);
        }
        pages
    }

    #[test]
    fn files_come_and_go_once() {
        let window = window();
        let file = file(UNIT + 1);
        let units = window.range(0, 2 * UNIT).unwrap();
        window.set_up(units.clone(), 3, &file, 0, true).unwrap();
        assert_eq!(pages(&window).len(), 513);
        assert!(window.shows(3) && !window.shows(4));
        window.remove(units.clone()).unwrap();
        assert_eq!(pages(&window).len(), 0);
        let again = window.remove(units).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn file_that_ends_early_is_zeros_until_it_grows() {
        let window = window();
        let file = file(3 * 4096);
        let units = window.range(0, UNIT).unwrap();
        window.set_up(units, 3, &file, 0, true).unwrap();
        assert_eq!(pages(&window), [7; 3]);
        file.set_len(4097).unwrap();
        window.mend();
        assert_eq!(window.mendings(), 1);
        let all = pages(&window);
        assert_eq!(all.len(), 512);
        assert_eq!(all.iter().filter(|byte| **byte == 7).count(), 2);
        window.mend();
        assert_eq!(window.mendings(), 1, "mended twice");
        file.set_len(4096).unwrap();
        window.mend();
        assert_eq!(window.mendings(), 2, "it has become shorter still");
        assert_eq!(pages(&window).len(), 512);
        file.set_len(4097).unwrap();
        window.restore();
        assert_eq!(pages(&window).len(), 2);
    }

    #[test]
    fn another_file_takes_the_place_of_all_of_a_node() {
        let window = window();
        let (old, new) = (file(UNIT), file(4096));
        for (node, place) in [(3, 0), (4, 1), (3, 2)] {
            let units = window.range(place * UNIT, UNIT).unwrap();
            window.set_up(units, node, &old, 0, false).unwrap();
        }
        window.renew(3, &new).unwrap();
        assert_eq!(pages(&window).len(), 1);
        window.clear();
        assert!(!window.shows(3));
    }

    #[test]
    fn positions_that_no_file_has_are_refused() {
        let window = window();
        let file = file(UNIT);
        for position in [1, 4096, 1 << 63, u64::MAX, u64::MAX - UNIT + 1] {
            let units = window.range(0, UNIT).unwrap();
            let result = window.set_up(units, 3, &file, position, false);
            assert!(result.is_err(), "{position}");
        }
        assert!(!window.shows(3));
    }

    proptest! {
        #[test]
        fn ranges_are_within_the_window(offset: u64, bytes: u64, align: bool) {
            let (offset, bytes) = if align {
                (offset % 16 * UNIT, bytes % 16 * UNIT)
            } else {
                (offset, bytes)
            };
            let window = window();
            let right = bytes > 0
                && offset % UNIT == 0
                && bytes % UNIT == 0
                && offset.checked_add(bytes).is_some_and(|end| end <= UNITS * UNIT);
            let range = window.range(offset, bytes);
            prop_assert_eq!(range.is_ok(), right);
            if let Ok(Units(units)) = range {
                prop_assert!(units.start < units.end && units.end as u64 <= UNITS);
            }
        }
    }
}
