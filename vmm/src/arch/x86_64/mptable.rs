//! The MP table (Intel MultiProcessor Specification 1.4): which processors,
//! which IOAPIC, which interrupt lines.
//!
//! A table from 1997 instead of ACPI, because Linux reads it in microseconds
//! and the guest's kernel then carries no ACPI interpreter. It lists the most
//! processors that the machine may have; the guest starts with one.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{IOAPIC_LINES, MP_POINTER, MP_TABLE};
use crate::memory::GuestRam;

const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const SPEC_REVISION: u8 = 4;
const ISA_BUS: u8 = 0;

/// Interrupt types of the table's entries.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// To every LAPIC.
const ALL_LAPICS: u8 = 0xff;

/// Writes the table for `cpus` processors and the pointer to it.
///
/// # Errors
///
/// When base memory is not there.
pub fn write(ram: &GuestRam, cpus: u8) -> Result<(), GuestMemoryError> {
    ram.write_slice(&table(cpus), MP_TABLE)?;
    ram.write_slice(&pointer(MP_TABLE), MP_POINTER)
}

fn pointer(table: GuestAddress) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    let address = u32::try_from(table.0).unwrap_or_default();
    bytes[4..8].copy_from_slice(&address.to_le_bytes());
    bytes[8] = 1; // length in paragraphs
    bytes[9] = SPEC_REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

fn table(cpus: u8) -> Vec<u8> {
    let ioapic = cpus; // the first APIC id after the processors'
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        let enabled_and_boot = 1 | u8::from(id == 0) << 1;
        let mut cpu = [0u8; 20];
        cpu[..4].copy_from_slice(&[0, id, LAPIC_VERSION, enabled_and_boot]);
        add(&cpu);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut io = [2, ioapic, IOAPIC_VERSION, 1, 0, 0, 0, 0];
    io[4..].copy_from_slice(&IOAPIC_ADDRESS.to_le_bytes());
    add(&io);
    // Flags 0: polarity and trigger as the bus has them; ISA means rising
    // edge, which is what an irqfd without resampling gives.
    for line in 0..IOAPIC_LINES {
        add(&[3, INT, 0, 0, ISA_BUS, line, ioapic, line]);
    }
    add(&[4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]);

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    let length = u16::try_from(44 + entries.len()).unwrap_or_default();
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"NERITE  ");
    table.extend_from_slice(b"MICROVM     ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&LAPIC_ADDRESS.to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::HIGH_MEMORY;

    #[test]
    fn table_sums_to_zero_and_says_its_length() {
        for cpus in [1, 2, 64] {
            let table = table(cpus);
            assert_eq!(checksum(&table), 0);
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
            let entries = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(entries, u16::from(cpus) + 2 + u16::from(IOAPIC_LINES) + 2);
            assert!(MP_TABLE.0 + table.len() as u64 <= MP_POINTER.0);
        }
        assert_eq!(checksum(&pointer(MP_TABLE)), 0);
        const { assert!(MP_POINTER.0 < HIGH_MEMORY.0) };
    }
}
