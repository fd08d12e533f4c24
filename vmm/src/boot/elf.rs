//! The kernel: an uncompressed 64-bit ELF `vmlinux`, and nothing else.
//!
//! A compressed kernel would spend 40 ms unpacking itself in every guest, so
//! other formats are refused by name. Segments are read with `pread` straight
//! into guest memory: the descriptor's file offset is shared with whoever
//! sent it and stays where it is, which is why no loader crate that seeks is
//! used. Only what is inside guest memory is ever written.
//!
//! Fields by the System V ABI, "Object Files".

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::arch::x86_64::HIGH_MEMORY;
use crate::memory::GuestRam;
use crate::sys;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A kernel has five or so; a file that claims thousands is no kernel.
const MOST_PROGRAM_HEADERS: u16 = 64;
const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;
/// End of the memory that the page tables at entry map.
const MAPPED_END: u64 = 1 << 30;

/// A kernel that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Another format; what it looks like.
    #[error("kernel is {0}, not an uncompressed 64-bit x86_64 ELF vmlinux")]
    Format(&'static str),
    /// An ELF file, but broken.
    #[error("kernel image is damaged: {0}")]
    Damaged(&'static str),
    /// It does not fit into guest memory.
    #[error("kernel needs memory up to {end:#x}, which the guest does not have")]
    NoRoom {
        /// The first address beyond the segment.
        end: u64,
    },
    /// The file could not be read.
    #[error("read kernel image")]
    Read(#[from] io::Error),
    /// Guest memory refused the range.
    #[error("write kernel into guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// One segment to be loaded, checked against guest memory.
#[derive(Debug)]
struct Segment {
    file_offset: u64,
    address: GuestAddress,
    bytes: usize,
}

/// Loads `kernel` and returns its entry point.
///
/// # Errors
///
/// [`KernelError`]: not a kernel, or one that does not fit.
pub fn load(ram: &GuestRam, kernel: &File) -> Result<GuestAddress, KernelError> {
    let mut header = [0; HEADER_BYTES];
    let length = read_up_to(kernel, &mut header, 0)?;
    if let Some(format) = other_format(header.get(..length).unwrap_or_default()) {
        return Err(KernelError::Format(format));
    }
    let entry = GuestAddress(u64_at(&header, 24));
    let mut entry_is_loaded = false;
    for number in 0..header_count(&header)? {
        let offset = u64::from(number)
            .checked_mul(PROGRAM_HEADER_BYTES as u64)
            .and_then(|offset| u64_at(&header, 32).checked_add(offset))
            .ok_or(KernelError::Damaged("program headers beyond the file"))?;
        let mut program_header = [0; PROGRAM_HEADER_BYTES];
        kernel
            .read_exact_at(&mut program_header, offset)
            .map_err(|error| truncated(error, "program headers beyond the file"))?;
        if let Some(segment) = parse_segment(ram, &program_header)? {
            entry_is_loaded |= entry
                .0
                .checked_sub(segment.address.0)
                .is_some_and(|inside| inside < segment.bytes as u64);
            let slice = ram.get_slice(segment.address, segment.bytes)?;
            sys::pread_exact(kernel, &slice.into(), segment.file_offset)
                .map_err(|error| truncated(error, "segment beyond the file"))?;
        }
    }
    if !entry_is_loaded {
        return Err(KernelError::Damaged("entry point outside every segment"));
    }
    Ok(entry)
}

fn header_count(header: &[u8; HEADER_BYTES]) -> Result<u16, KernelError> {
    let (entry_bytes, count) = (u16_at(header, 54), u16_at(header, 56));
    if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES {
        return Err(KernelError::Damaged("odd program header size"));
    }
    if count == 0 || count > MOST_PROGRAM_HEADERS {
        return Err(KernelError::Damaged("odd number of program headers"));
    }
    Ok(count)
}

/// A program header as a segment that fits, `None` if it loads nothing.
fn parse_segment(
    ram: &GuestRam,
    header: &[u8; PROGRAM_HEADER_BYTES],
) -> Result<Option<Segment>, KernelError> {
    let (file_bytes, memory_bytes) = (u64_at(header, 32), u64_at(header, 40));
    if u32_at(header, 0) != PT_LOAD || memory_bytes == 0 {
        return Ok(None);
    }
    if file_bytes > memory_bytes {
        return Err(KernelError::Damaged(
            "segment larger in the file than in memory",
        ));
    }
    let address = u64_at(header, 24);
    if address < HIGH_MEMORY.0 {
        return Err(KernelError::Damaged("segment below 1 MiB"));
    }
    let end = address.saturating_add(memory_bytes);
    // Guest memory is zero already: the part beyond the file needs no write,
    // but it must be there.
    let room = usize::try_from(memory_bytes)
        .is_ok_and(|bytes| ram.check_range(GuestAddress(address), bytes));
    if !room || end > MAPPED_END {
        return Err(KernelError::NoRoom { end });
    }
    Ok(Some(Segment {
        file_offset: u64_at(header, 8),
        address: GuestAddress(address),
        bytes: usize::try_from(file_bytes).map_err(|_| KernelError::NoRoom { end })?,
    }))
}

/// What `header` is if it is no kernel for this machine.
fn other_format(header: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 9] = [
        (b"MZ", "a compressed kernel (bzImage or PE)"),
        (b"\x1f\x8b", "compressed with gzip"),
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"\x89LZO", "compressed with lzo"),
        (b"\x04\x22\x4d\x18", "compressed with lz4"),
        (b"\x02\x21\x4c\x18", "compressed with lz4"),
        (b"BZh", "compressed with bzip2"),
        (b"#!", "a script"),
    ];
    if !header.starts_with(b"\x7fELF") {
        return Some(
            magics
                .iter()
                .find(|(magic, _)| header.starts_with(magic))
                .map_or("no known kernel format", |(_, name)| name),
        );
    }
    let Ok(header) = <&[u8; HEADER_BYTES]>::try_from(header) else {
        return Some("a truncated ELF file");
    };
    const ELF64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const EXECUTABLE: u16 = 2;
    match (header.get(4), header.get(5)) {
        (Some(&ELF64), Some(&LITTLE_ENDIAN)) => {}
        (Some(&ELF64), _) => return Some("a big-endian ELF file"),
        _ => return Some("a 32-bit ELF file"),
    }
    if u16_at(header, 18) != EM_X86_64 {
        return Some("an ELF file for another processor");
    }
    (u16_at(header, 16) != EXECUTABLE).then_some("an ELF file that is no fixed-address executable")
}

fn truncated(error: io::Error, what: &'static str) -> KernelError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        KernelError::Damaged(what)
    } else {
        error.into()
    }
}

/// Reads what there is, at most the buffer's length.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn bytes_at<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    header
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(header: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(header, offset))
}

fn u32_at(header: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(header, offset))
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(header, offset))
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::GuestMemory;

    /// A kernel with one segment at `address` holding `content`.
    fn image(address: u64, memory_bytes: u64, content: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[16..18].copy_from_slice(&2u16.to_le_bytes());
        image[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        image[24..32].copy_from_slice(&address.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&1u16.to_le_bytes());
        image[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        image[72..80].copy_from_slice(&0x1000u64.to_le_bytes());
        image[88..96].copy_from_slice(&address.to_le_bytes());
        image[96..104].copy_from_slice(&(content.len() as u64).to_le_bytes());
        image[104..112].copy_from_slice(&memory_bytes.to_le_bytes());
        image.extend_from_slice(content);
        image
    }

    fn load_bytes(image: &[u8]) -> Result<GuestMemory, KernelError> {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        load(memory.ram(), &file)?;
        Ok(memory)
    }

    #[test]
    fn load_puts_the_segment_where_it_belongs() {
        let memory = load_bytes(&image(0x100_0000, 0x3000, b"kernel")).unwrap();
        let mut text = [0; 6];
        memory
            .ram()
            .read_slice(&mut text, GuestAddress(0x100_0000))
            .unwrap();
        assert_eq!(&text, b"kernel");
    }

    #[test]
    fn load_names_other_formats() {
        let mut elf32 = image(0x100_0000, 16, b"x");
        elf32[4] = 1;
        for (bytes, name) in [
            (&b"MZ\0\0"[..], "bzImage"),
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (&b"\xfd7zXZ\0"[..], "xz"),
            (&elf32[..], "32-bit"),
            (&b""[..], "no known"),
            (&b"\x7fELF"[..], "truncated"),
        ] {
            let error = load_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn load_refuses_segments_outside_memory() {
        for (address, bytes) in [
            (0x100_0000, u64::MAX),
            (u64::MAX - 1, 1),
            (0x100_0000, 64 << 20),
            (0x1000, 16),
        ] {
            assert!(load_bytes(&image(address, bytes, b"x")).is_err());
        }
    }

    #[test]
    fn load_refuses_a_file_that_ends_too_early() {
        let mut short = image(0x100_0000, 64, b"0123456789");
        short.pop();
        let error = load_bytes(&short).unwrap_err().to_string();
        assert!(error.contains("segment beyond the file"), "{error}");
        short.truncate(80);
        let error = load_bytes(&short).unwrap_err().to_string();
        assert!(error.contains("program headers"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn load_survives_any_damage(
            changes in proptest::collection::vec((0usize..128, any::<u8>()), 1..12),
        ) {
            let mut bytes = image(0x100_0000, 0x2000, b"kernel");
            for (at, value) in changes {
                bytes[at] = value;
            }
            let _ = load_bytes(&bytes);
        }
    }
}
