//! Mappings that the guest sees, and the only code that makes them.
//!
//! `vm-memory` could map RAM itself, but not at an address aligned to huge
//! pages, without which the kernel cannot give any.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// Alignment of every mapping's host address: one huge page.
const ALIGNMENT: usize = 2 << 20;

/// Memory of this process that ends with this object.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What was reserved: up to one huge page more than asked for.
    reserved: *mut libc::c_void,
    reserved_bytes: usize,
    /// The first aligned address in it.
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the pointers are addresses of a mapping that no thread owns; all
// access goes through vm-memory's volatile accessors or the kernel.
unsafe impl Send for Mapping {}
// SAFETY: as above; the object itself is never changed after construction.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `bytes` bytes, aligned to [`ALIGNMENT`].
    fn reserve(bytes: usize, protection: libc::c_int) -> io::Result<Self> {
        let reserved_bytes = bytes
            .checked_add(ALIGNMENT)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice
        // touches no memory that exists.
        let reserved =
            unsafe { libc::mmap(ptr::null_mut(), reserved_bytes, protection, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = reserved as usize;
        let skip = address.next_multiple_of(ALIGNMENT) - address;
        Ok(Self {
            reserved,
            reserved_bytes,
            start: reserved.cast::<u8>().wrapping_add(skip),
            bytes,
        })
    }

    /// Private anonymous memory for guest RAM, by huge pages where possible.
    pub(crate) fn anonymous(bytes: usize) -> io::Result<Self> {
        let mapping = Self::reserve(bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        // Refused where the host's kernel has no huge pages: then there are
        // none, and nothing else changes.
        // SAFETY: the range lies in the mapping just made; the advice changes
        // how it is backed, never its content.
        unsafe { libc::madvise(mapping.start.cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(mapping)
    }

    /// A file's pages, shared and read-only, followed by zeros up to
    /// `window` bytes.
    pub(crate) fn file(file: &File, bytes: usize, window: usize) -> io::Result<Self> {
        debug_assert!(0 < bytes && bytes <= window);
        let mapping = Self::reserve(window, libc::PROT_READ)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: `start..start + bytes` lies within the reservation made
        // above (bytes <= window), which nothing else knows of yet.
        let mapped = unsafe {
            libc::mmap(
                mapping.start.cast(),
                bytes,
                libc::PROT_READ,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// The first byte's address in this process, for KVM.
    pub(crate) fn host_address(&self) -> u64 {
        self.start as u64
    }

    /// A part of the mapping for `vm-memory`. It borrows in all but the type:
    /// whoever builds guest memory from it keeps the mapping beside it.
    pub(crate) fn region(&self, offset: usize, bytes: usize) -> io::Result<MmapRegion<()>> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let builder = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the range was just checked to lie within this mapping, and
        // `GuestMemory` keeps the mapping as long as the region.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.start.wrapping_add(offset)) };
        builder.build().map_err(io::Error::other)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `reserve` mapped; its owner goes
        // away, and with it whoever could use the addresses.
        unsafe { libc::munmap(self.reserved, self.reserved_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, VolatileMemory};

    use super::*;

    #[test]
    fn anonymous_mapping_is_aligned_zero_and_writable() {
        let mapping = Mapping::anonymous(4 << 20).unwrap();
        assert!(mapping.host_address().is_multiple_of(ALIGNMENT as u64));
        let region = mapping.region(2 << 20, 2 << 20).unwrap();
        let slice = region.as_volatile_slice();
        let last = (2 << 20) - 8;
        assert_eq!(slice.read_obj::<u64>(last).unwrap(), 0);
        slice.write_obj(7u64, last).unwrap();
        assert_eq!(slice.read_obj::<u64>(last).unwrap(), 7);
    }

    #[test]
    fn region_beyond_the_mapping_is_refused() {
        let mapping = Mapping::anonymous(2 << 20).unwrap();
        assert!(mapping.region(1, 2 << 20).is_err());
        assert!(mapping.region(usize::MAX, 2).is_err());
    }

    #[test]
    fn file_mapping_shows_the_file_then_zeros() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 5000]).unwrap();
        let mapping = Mapping::file(&file, 5000, 2 << 20).unwrap();
        let region = mapping.region(0, 2 << 20).unwrap();
        let slice = region.as_volatile_slice();
        assert_eq!(slice.read_obj::<u8>(4999).unwrap(), 5);
        assert_eq!(slice.read_obj::<u8>(5000).unwrap(), 0);
        assert_eq!(slice.read_obj::<u8>((2 << 20) - 1).unwrap(), 0);
    }
}
