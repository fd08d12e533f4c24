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

/// Protection of the regions that are windows: nobody touches them.
pub(super) const NO_ACCESS: libc::c_int = libc::PROT_NONE;

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

/// A part of a mapping, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    /// From its beginning.
    pub(crate) offset: usize,
    /// How many.
    pub(crate) bytes: usize,
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

    /// Addresses for files to come: no page, no memory, no access.
    pub(crate) fn window(bytes: usize) -> io::Result<Self> {
        Self::reserve(bytes, libc::PROT_NONE)
    }

    /// Puts pages of a file into a part of a window, from `position` on.
    /// `writable`: it may be written through, for which it must be open so.
    pub(crate) fn show(
        &self,
        part: Part,
        file: &File,
        position: i64,
        writable: bool,
    ) -> io::Result<()> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        self.replace(
            part,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            position,
        )
    }

    /// Takes away what is in a part of a window.
    pub(crate) fn hide(&self, part: Part) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(part, libc::PROT_NONE, flags, -1, 0)
    }

    /// Puts zeros into a part of a window, which may be written to and forgotten.
    pub(crate) fn blank(&self, part: Part) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(part, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    /// The one place where something is mapped at a fixed address that the
    /// guest has a say in: only within this mapping.
    fn replace(
        &self,
        part: Part,
        protection: libc::c_int,
        flags: libc::c_int,
        descriptor: libc::c_int,
        position: i64,
    ) -> io::Result<()> {
        let end = part.offset.checked_add(part.bytes);
        if part.bytes == 0 || end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = self.start.wrapping_add(part.offset);
        // SAFETY: `offset..offset + bytes` was just checked to lie within this
        // mapping; of a window nobody but the kernel uses the addresses, and
        // what is mapped meanwhile fails or succeeds for it as it would have.
        let mapped = unsafe {
            libc::mmap(
                place.cast(),
                part.bytes,
                protection,
                flags | libc::MAP_FIXED,
                descriptor,
                position,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The first byte's address in this process, for KVM.
    pub(crate) fn host_address(&self) -> u64 {
        self.start as u64
    }

    /// A part of the mapping for `vm-memory`. It borrows in all but the type:
    /// whoever builds guest memory from it keeps the mapping beside it.
    pub(crate) fn region(&self, offset: usize, bytes: usize) -> io::Result<MmapRegion<()>> {
        self.part(offset, bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// The mapping's first `bytes` bytes as a window: only their addresses are
    /// of use.
    pub(super) fn window_region(&self, bytes: usize) -> io::Result<MmapRegion<()>> {
        self.part(0, bytes, NO_ACCESS)
    }

    fn part(
        &self,
        offset: usize,
        bytes: usize,
        protection: libc::c_int,
    ) -> io::Result<MmapRegion<()>> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let builder = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(protection)
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

    #[test]
    fn window_changes_only_within_itself() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 8192]).unwrap();
        let window = Mapping::window(2 << 20).unwrap();
        for (offset, bytes) in [
            (0, 0),
            (0, (2 << 20) + 4096),
            (2 << 20, 4096),
            (usize::MAX - 4095, 8192),
        ] {
            let part = Part { offset, bytes };
            assert!(window.show(part, &file, 0, false).is_err(), "{part:?}");
            assert!(window.hide(part).is_err());
            assert!(window.blank(part).is_err());
        }
        let whole = Part {
            offset: 0,
            bytes: 2 << 20,
        };
        window.show(whole, &file, 0, false).unwrap();
        window.hide(whole).unwrap();
        window.hide(whole).unwrap();
    }
}
