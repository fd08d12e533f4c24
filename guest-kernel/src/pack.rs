//! The linked kernel as the smallest file that boots the same.
//!
//! ```text
//!  linked:  2 MB of nothing │ text ░░░░ entry ░░░░ rodata │ ░░ data │ … │ symbols
//!  packed:  headers │ text │ entry │ rodata │ data │ …
//! ```
//!
//! The linker aligns segments and the entry text to huge pages, in the file as
//! in memory, and fills between with zeros or breakpoints: 4 to 6 MB that would
//! be read into each guest. Here every long run of filling becomes the zero
//! tail of a segment, which costs nothing in a guest's fresh memory, and what a
//! boot does not need (section headers, symbols) goes. `strip` does the latter
//! only, and the linker's page size cannot be set from outside the kernel's
//! makefiles. Addresses and content stay; the kernel never runs into the
//! filling. Fields by the System V ABI, "Object Files".

use std::ops::Range;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PAGE: usize = 4096;
/// Runs of filling shorter than this stay: a segment's header and a read of its
/// own cost more.
const SHORTEST_RUN: usize = 16 * PAGE;
/// What the linker fills with between functions.
const BREAKPOINT: u8 = 0xcc;

/// A file that is no linked kernel.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Not an ELF file of 64-bit little-endian programs.
    #[error("not a 64-bit ELF file")]
    Format,
    /// Offsets or counts that do not fit the file.
    #[error("damaged ELF file: {0}")]
    Damaged(&'static str),
}

/// One program header, in file order of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: usize,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: usize,
    memory_bytes: usize,
}

/// Packs the linked kernel `linked`.
///
/// # Errors
///
/// [`PackError`] if it is not a whole 64-bit ELF file.
pub fn pack(linked: &[u8]) -> Result<Vec<u8>, PackError> {
    let header = linked.get(..HEADER_BYTES).ok_or(PackError::Format)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(PackError::Format);
    }
    let segments = read_segments(linked)?;
    let mut pieces = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        pieces.extend(cut(segment, content(linked, segment)?));
    }
    let notes: Vec<_> = segments
        .iter()
        .filter(|segment| segment.kind == PT_NOTE)
        .collect();
    let count = pieces.len() + notes.len();
    let mut packed = header.to_vec();
    packed.resize(
        (HEADER_BYTES + count * PROGRAM_HEADER_BYTES).next_multiple_of(PAGE),
        0,
    );
    let mut headers = Vec::with_capacity(count);
    for piece in &pieces {
        headers.push(Segment {
            offset: packed.len(),
            ..*piece
        });
        packed.extend_from_slice(content(linked, piece)?);
        packed.resize(packed.len().next_multiple_of(PAGE), 0);
    }
    for note in notes {
        let place = pieces.iter().zip(&headers).find_map(|(piece, placed)| {
            let inside = note.offset.checked_sub(piece.offset)?;
            (inside + note.file_bytes <= piece.file_bytes).then_some(placed.offset + inside)
        });
        let offset = place.ok_or(PackError::Damaged("notes outside every segment"))?;
        headers.push(Segment { offset, ..*note });
    }
    for (slot, segment) in packed[HEADER_BYTES..]
        .chunks_exact_mut(PROGRAM_HEADER_BYTES)
        .zip(&headers)
    {
        write_segment(slot, segment);
    }
    let count = u16::try_from(count).map_err(|_| PackError::Damaged("too many segments"))?;
    packed[32..40].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes()); // e_phoff
    packed[40..48].fill(0); // e_shoff
    packed[56..58].copy_from_slice(&count.to_le_bytes()); // e_phnum
    packed[60..64].fill(0); // e_shnum, e_shstrndx
    Ok(packed)
}

/// The parts of `segment` between runs of filling. Each part's memory reaches to
/// the next, so that together they cover what the segment covered.
fn cut(segment: &Segment, content: &[u8]) -> Vec<Segment> {
    let kept = kept_ranges(content, segment.flags & PF_X != 0);
    let starts: Vec<usize> = kept.iter().map(|range| range.start).collect();
    kept.iter()
        .enumerate()
        .map(|(index, range)| Segment {
            offset: segment.offset + range.start,
            virtual_address: segment.virtual_address + range.start as u64,
            physical_address: segment.physical_address + range.start as u64,
            file_bytes: range.len(),
            memory_bytes: starts.get(index + 1).unwrap_or(&segment.memory_bytes) - range.start,
            ..*segment
        })
        .collect()
}

/// What is left of `content` without long runs of filling, in whole pages. The
/// first page always stays, so that a segment keeps its start.
fn kept_ranges(content: &[u8], executable: bool) -> Vec<Range<usize>> {
    let filling = |page: &[u8]| {
        page.iter().all(|byte| *byte == 0)
            || executable && page.iter().all(|byte| *byte == BREAKPOINT)
    };
    let mut kept: Vec<Range<usize>> = Vec::new();
    for (index, page) in content.chunks(PAGE).enumerate() {
        let (start, end) = (index * PAGE, index * PAGE + page.len());
        match kept.last_mut() {
            Some(_) if filling(page) => {}
            Some(last) if start - last.end < SHORTEST_RUN => last.end = end,
            _ => kept.push(start..end),
        }
    }
    kept
}

fn content<'a>(linked: &'a [u8], segment: &Segment) -> Result<&'a [u8], PackError> {
    segment
        .offset
        .checked_add(segment.file_bytes)
        .and_then(|end| linked.get(segment.offset..end))
        .ok_or(PackError::Damaged("segment beyond the file"))
}

fn read_segments(linked: &[u8]) -> Result<Vec<Segment>, PackError> {
    let damaged = PackError::Damaged("program headers beyond the file");
    let start = usize::try_from(number(linked, 32)).map_err(|_| PackError::Format)?;
    let count = usize::from(u16::from_le_bytes([linked[56], linked[57]]));
    let Some(table) = start
        .checked_add(count * PROGRAM_HEADER_BYTES)
        .and_then(|end| linked.get(start..end))
    else {
        return Err(damaged);
    };
    table
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(read_segment)
        .collect()
}

fn read_segment(entry: &[u8]) -> Result<Segment, PackError> {
    let size = |at| {
        usize::try_from(number(entry, at)).map_err(|_| PackError::Damaged("segment too large"))
    };
    let kind_and_flags = number(entry, 0).to_le_bytes();
    let [k0, k1, k2, k3, f0, f1, f2, f3] = kind_and_flags;
    Ok(Segment {
        kind: u32::from_le_bytes([k0, k1, k2, k3]),
        flags: u32::from_le_bytes([f0, f1, f2, f3]),
        offset: size(8)?,
        virtual_address: number(entry, 16),
        physical_address: number(entry, 24),
        file_bytes: size(32)?,
        memory_bytes: size(40)?,
    })
}

fn write_segment(entry: &mut [u8], segment: &Segment) {
    let align = if segment.kind == PT_LOAD {
        PAGE as u64
    } else {
        4
    };
    entry[0..4].copy_from_slice(&segment.kind.to_le_bytes());
    entry[4..8].copy_from_slice(&segment.flags.to_le_bytes());
    let rest = [
        segment.offset as u64,
        segment.virtual_address,
        segment.physical_address,
        segment.file_bytes as u64,
        segment.memory_bytes as u64,
        align,
    ];
    for (field, value) in entry[8..].chunks_exact_mut(8).zip(rest) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

/// The 64-bit number at `at`, which the caller knows to be inside.
fn number(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of one executable segment at 16 MB, with a note inside.
    fn linked(content: &[u8], memory_bytes: usize) -> Vec<u8> {
        let offset = 0x20_0000;
        let load = Segment {
            kind: PT_LOAD,
            flags: 5,
            offset,
            virtual_address: 0xffff_ffff_8100_0000,
            physical_address: 0x100_0000,
            file_bytes: content.len(),
            memory_bytes,
        };
        let note = Segment {
            kind: PT_NOTE,
            offset: offset + 16,
            file_bytes: 4,
            ..load
        };
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(offset, 0);
        file[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[32] = 64;
        file[40..48].fill(9);
        file[56] = 2;
        file[60..64].fill(9);
        write_segment(&mut file[64..120], &load);
        write_segment(&mut file[120..176], &note);
        file.extend_from_slice(content);
        file
    }

    /// What a loader makes of a file: memory from 16 MB on.
    fn loaded(file: &[u8], bytes: usize) -> Vec<u8> {
        let mut memory = vec![0; bytes];
        for segment in read_segments(file).unwrap() {
            if segment.kind == PT_LOAD {
                let at = usize::try_from(segment.physical_address).unwrap() - 0x100_0000;
                memory[at..at + segment.file_bytes]
                    .copy_from_slice(content(file, &segment).unwrap());
            }
        }
        memory
    }

    fn text_and_filling(filling: u8, pages: usize) -> Vec<u8> {
        let mut content = vec![0x90; PAGE];
        content.resize(PAGE * (1 + pages), filling);
        content.extend([0x55; 100]);
        content
    }

    #[test]
    fn pack_drops_long_runs_and_loads_the_same() {
        let content = text_and_filling(0, 512);
        let file = linked(&content, content.len() + 5 * PAGE);
        let packed = pack(&file).unwrap();
        assert_eq!(packed.len(), 3 * PAGE);
        assert_eq!(loaded(&packed, content.len()), content);
        assert_eq!(number(&packed, 24), 0x100_0000);
        let segments = read_segments(&packed).unwrap();
        assert_eq!(segments.len(), 3);
        assert_eq!(segments[0].memory_bytes, 513 * PAGE);
        assert_eq!(segments[1].memory_bytes, 100 + 5 * PAGE);
        assert_eq!(segments[2].offset, segments[0].offset + 16);
    }

    #[test]
    fn pack_treats_breakpoints_as_filling_in_text_only() {
        let content = text_and_filling(BREAKPOINT, 512);
        let mut file = linked(&content, content.len());
        assert!(pack(&file).unwrap().len() < 4 * PAGE);
        file[68] = 6;
        assert!(pack(&file).unwrap().len() > 512 * PAGE);
    }

    #[test]
    fn pack_keeps_short_runs() {
        let content = text_and_filling(0, 15);
        let packed = pack(&linked(&content, content.len())).unwrap();
        assert_eq!(read_segments(&packed).unwrap().len(), 2);
        assert_eq!(loaded(&packed, content.len()), content);
    }

    #[test]
    fn pack_refuses_other_and_truncated_files() {
        assert!(matches!(pack(b"MZ"), Err(PackError::Format)));
        assert!(matches!(pack(&[0; 100]), Err(PackError::Format)));
        let file = linked(&[0x90; 100], 100);
        for end in 64..file.len() {
            if matches!(end % 997, 0) || end < 200 {
                assert!(pack(&file[..end]).is_err(), "{end}");
            }
        }
    }
}
