//! Guest-physical addresses of RAM and of what lies above it.

use vm_memory::GuestAddress;

/// The smallest unit of RAM: one huge page.
const UNIT: u64 = 2 << 20;
/// Below this a kernel with an OS layer cannot boot.
const SMALLEST: u64 = 64 << 20;
/// Far below the end of every processor's physical addresses (2^36 for the
/// smallest), with room above for the pmem windows.
const LARGEST: u64 = 32 << 30;
/// RAM below 4 GiB ends here; devices and APICs live between.
const LOW_END: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;

/// Alignment of pmem windows. Linux hot-adds device memory in subsections of
/// 2 MiB and maps it with 2 MiB pages.
pub const PMEM_ALIGNMENT: u64 = 2 << 20;

/// One contiguous range of RAM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: GuestAddress,
    /// Where it lies in the host's mapping.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// A RAM size that no machine can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("guest memory of {bytes} bytes is not a multiple of 2 MiB between 64 MiB and 32 GiB")]
pub struct BadMemorySize {
    bytes: u64,
}

/// Where RAM lies in guest-physical memory: one range, or two around the
/// hole between 3 and 4 GiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemoryLayout {
    low: usize,
    high: usize,
}

impl MemoryLayout {
    /// The layout of a machine with `bytes` bytes of RAM.
    ///
    /// # Errors
    ///
    /// [`BadMemorySize`] unless a multiple of 2 MiB from 64 MiB to 32 GiB.
    pub fn new(bytes: u64) -> Result<Self, BadMemorySize> {
        let bad = BadMemorySize { bytes };
        if !(SMALLEST..=LARGEST).contains(&bytes) || !bytes.is_multiple_of(UNIT) {
            return Err(bad);
        }
        let low = bytes.min(LOW_END);
        Ok(Self {
            low: usize::try_from(low).map_err(|_| bad)?,
            high: usize::try_from(bytes - low).map_err(|_| bad)?,
        })
    }

    /// The ranges of RAM, lowest first.
    pub fn ram(&self) -> impl Iterator<Item = RamRange> + use<> {
        let low = RamRange {
            start: GuestAddress(0),
            offset: 0,
            bytes: self.low,
        };
        let high = RamRange {
            start: GuestAddress(HIGH_START),
            offset: self.low,
            bytes: self.high,
        };
        [low, high].into_iter().filter(|range| range.bytes > 0)
    }

    /// End of the RAM that starts at address 0.
    #[must_use]
    pub fn low_end(&self) -> GuestAddress {
        GuestAddress(self.low as u64)
    }

    /// The first address above all RAM and above the hole, where pmem
    /// windows begin.
    #[must_use]
    pub fn windows(&self) -> GuestAddress {
        GuestAddress(HIGH_START + self.high as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_splits_at_three_gib() {
        let layout = MemoryLayout::new(LOW_END + UNIT).unwrap();
        let ranges: Vec<_> = layout.ram().collect();
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[1].start, GuestAddress(HIGH_START));
        assert_eq!(ranges[1].bytes as u64, UNIT);
        assert_eq!(MemoryLayout::new(LOW_END).unwrap().ram().count(), 1);
    }

    #[test]
    fn layout_refuses_absurd_sizes() {
        for bytes in [
            0,
            UNIT,
            SMALLEST - 1,
            SMALLEST + 4096,
            LARGEST + UNIT,
            u64::MAX,
        ] {
            assert_eq!(MemoryLayout::new(bytes), Err(BadMemorySize { bytes }));
        }
    }

    proptest! {
        #[test]
        fn ranges_cover_the_size_without_touching_the_hole(units in 32u64..16_384) {
            let layout = MemoryLayout::new(units * UNIT).unwrap();
            let mut total = 0;
            for range in layout.ram() {
                let end = range.start.0 + range.bytes as u64;
                prop_assert!(end <= LOW_END || range.start.0 >= HIGH_START);
                prop_assert!(end <= LOW_END || end <= layout.windows().0);
                prop_assert_eq!(range.offset as u64, total);
                total += range.bytes as u64;
            }
            prop_assert_eq!(total, units * UNIT);
            prop_assert!(layout.windows().0.is_multiple_of(PMEM_ALIGNMENT));
        }
    }
}
