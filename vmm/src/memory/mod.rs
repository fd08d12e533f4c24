//! Guest memory: where RAM lies, and the one mapping behind it.
//!
//! RAM is private and anonymous (a memfd would pay twice for each page that
//! is written, and faults on shared memory cost more), advised to use huge
//! pages and populated by nobody: what the guest never touches never exists.
//!
//! ```text
//!  0 ───────────── 3 GiB ───────── 4 GiB ───────────── … ──────────────▶
//!  │ RAM, up to 3 GiB │ devices, APICs │ RAM beyond 3 GiB │ pmem windows │
//! ```

mod layout;
pub(crate) mod mmap;

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub use layout::{BadMemorySize, MemoryLayout, PMEM_ALIGNMENT, RamRange};
use mmap::{Mapping, NO_ACCESS};

/// Guest memory as the devices see it: checked access by guest address. RAM,
/// and the windows above it ([`is_ram`]).
pub type GuestRam = GuestMemoryMmap<()>;

/// Whether a region is RAM. In a window there are pages of files, or none: it
/// must not be touched but by system calls.
pub(crate) fn is_ram(region: &GuestRegionMmap<()>) -> bool {
    region.prot() != NO_ACCESS
}

/// Guest RAM and the mapping that backs it.
#[derive(Debug)]
pub struct GuestMemory {
    layout: MemoryLayout,
    ram: GuestRam,
    mapping: Mapping,
}

/// Guest memory that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size makes no sense.
    #[error(transparent)]
    Size(#[from] BadMemorySize),
    /// The system refused the mapping.
    #[error("map {bytes} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The regions could not be combined.
    #[error("arrange guest memory")]
    Arrange(#[source] io::Error),
}

impl GuestMemory {
    /// Maps RAM of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`MemoryError`]: a bad size, or what the system said.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let layout = MemoryLayout::new(bytes)?;
        let map = |source| MemoryError::Map { bytes, source };
        let length = usize::try_from(bytes).map_err(|error| map(io::Error::other(error)))?;
        let mapping = Mapping::anonymous(length).map_err(map)?;
        let mut regions = Vec::with_capacity(2);
        for range in layout.ram() {
            let region = mapping
                .region(range.offset, range.bytes)
                .map_err(MemoryError::Arrange)?;
            regions.push(
                GuestRegionMmap::new(region, range.start)
                    .ok_or_else(|| MemoryError::Arrange(io::ErrorKind::InvalidInput.into()))?,
            );
        }
        let ram = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MemoryError::Arrange(io::Error::other(error)))?;
        Ok(Self {
            layout,
            ram,
            mapping,
        })
    }

    /// Where RAM lies.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// RAM, for reading and writing. Clones are cheap but must not outlive
    /// this object, which owns the mapping.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Lets drivers name buffers in a window of `bytes` bytes at `start`, in
    /// which `mapping` is. Whoever calls keeps that as long as this object.
    pub(crate) fn add_window(
        &mut self,
        start: GuestAddress,
        mapping: &Mapping,
        bytes: u64,
    ) -> Result<(), MemoryError> {
        let arrange = || {
            let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
            let region = GuestRegionMmap::new(mapping.window_region(bytes)?, start)
                .ok_or(io::ErrorKind::InvalidInput)?;
            self.ram
                .insert_region(Arc::new(region))
                .map_err(io::Error::other)
        };
        self.ram = arrange().map_err(MemoryError::Arrange)?;
        Ok(())
    }

    /// The ranges of RAM with their host addresses, for KVM.
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (GuestAddress, u64, u64)> {
        self.layout.ram().map(|range| {
            (
                range.start,
                self.mapping.host_address() + range.offset as u64,
                range.bytes as u64,
            )
        })
    }
}
