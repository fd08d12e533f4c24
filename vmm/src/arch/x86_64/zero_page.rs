//! The zero page (`struct boot_params`, Documentation/arch/x86/boot.rst):
//! memory map and command line for a kernel entered in 64-bit mode.
//!
//! Written field by field at the protocol's offsets: the ten fields that a
//! kernel without set-up code reads, not a copy of its 4 KiB structure.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{COMMAND_LINE, HIGH_MEMORY, MP_TABLE, ZERO_PAGE};
use crate::memory::{GuestRam, MemoryLayout};

const E820_ENTRIES: u64 = 0x1e8;
const BOOT_FLAG: u64 = 0x1fe;
const HEADER: u64 = 0x202;
const VERSION: u64 = 0x206;
const TYPE_OF_LOADER: u64 = 0x210;
const LOAD_FLAGS: u64 = 0x211;
const CMD_LINE_PTR: u64 = 0x228;
const CMDLINE_SIZE: u64 = 0x238;
const E820_TABLE: u64 = 0x2d0;
const E820_ENTRY_BYTES: u64 = 20;

/// No boot loader that the protocol has a number for.
const UNDEFINED_LOADER: u8 = 0xff;
/// The kernel lies at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
const E820_RAM: u32 = 1;

/// Writes the zero page and the command line, which is terminated here.
///
/// # Errors
///
/// When low memory is not there.
pub fn write(
    ram: &GuestRam,
    layout: &MemoryLayout,
    command_line: &str,
) -> Result<(), GuestMemoryError> {
    ram.write_slice(command_line.as_bytes(), COMMAND_LINE)?;
    ram.write_obj(
        0u8,
        GuestAddress(COMMAND_LINE.0 + command_line.len() as u64),
    )?;

    let at = |offset| GuestAddress(ZERO_PAGE.0 + offset);
    ram.write_obj(0xaa55u16, at(BOOT_FLAG))?;
    ram.write_slice(b"HdrS", at(HEADER))?;
    ram.write_obj(0x020fu16, at(VERSION))?;
    ram.write_obj(UNDEFINED_LOADER, at(TYPE_OF_LOADER))?;
    ram.write_obj(LOADED_HIGH, at(LOAD_FLAGS))?;
    let address = u32::try_from(COMMAND_LINE.0).unwrap_or_default();
    ram.write_obj(address, at(CMD_LINE_PTR))?;
    let length = u32::try_from(command_line.len()).unwrap_or_default();
    ram.write_obj(length, at(CMDLINE_SIZE))?;

    let mut entries = 0u8;
    for (start, end) in memory_map(layout) {
        let entry = at(E820_TABLE + u64::from(entries) * E820_ENTRY_BYTES);
        ram.write_obj(start, entry)?;
        ram.write_obj(end - start, GuestAddress(entry.0 + 8))?;
        ram.write_obj(E820_RAM, GuestAddress(entry.0 + 16))?;
        entries += 1;
    }
    ram.write_obj(entries, at(E820_ENTRIES))
}

/// RAM that the guest may use: base memory up to the MP table, then
/// everything from 1 MiB on.
fn memory_map(layout: &MemoryLayout) -> impl Iterator<Item = (u64, u64)> {
    let above = layout.ram().map(|range| {
        let end = range.start.0 + range.bytes as u64;
        (range.start.0.max(HIGH_MEMORY.0), end)
    });
    std::iter::once((0, MP_TABLE.0)).chain(above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    #[test]
    fn zero_page_carries_map_and_command_line() {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let ram = memory.ram();
        write(ram, memory.layout(), "quiet x=1").unwrap();
        let read = |offset| GuestAddress(ZERO_PAGE.0 + offset);
        assert_eq!(ram.read_obj::<u8>(read(E820_ENTRIES)).unwrap(), 2);
        assert_eq!(ram.read_obj::<u64>(read(E820_TABLE + 20)).unwrap(), 1 << 20);
        assert_eq!(
            ram.read_obj::<u64>(read(E820_TABLE + 28)).unwrap(),
            63 << 20
        );
        assert_eq!(ram.read_obj::<u32>(read(CMDLINE_SIZE)).unwrap(), 9);
        let mut line = [0; 10];
        ram.read_slice(&mut line, COMMAND_LINE).unwrap();
        assert_eq!(&line, b"quiet x=1\0");
    }

    #[test]
    fn memory_map_of_a_large_machine_leaves_the_hole_out() {
        let layout = MemoryLayout::new(4 << 30).unwrap();
        let map: Vec<_> = memory_map(&layout).collect();
        assert_eq!(map[1], (1 << 20, 3 << 30));
        assert_eq!(map[2], (4 << 30, 5 << 30));
    }
}
