//! A processor's registers at the kernel's 64-bit entry point.
//!
//! Boot protocol, "64-bit boot protocol": long mode, paging on, the image,
//! the zero page and the command line mapped onto themselves, flat segments
//! 0x10 and 0x18, interrupts off, RSI pointing to the zero page.

use kvm_bindings::{
    Msrs, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{GDT, PAGE_TABLES, ZERO_PAGE};
use crate::memory::GuestRam;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, null, code, data, task state: the descriptors that the segment
/// registers below were loaded from, should the kernel reload them.
const GDT_ENTRIES: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

const PAGE: u64 = 4096;
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
/// Delivery modes, bits 8 to 10 of an entry: in its second byte.
const DELIVER_NMI: u8 = 4;
const DELIVER_EXT_INT: u8 = 7;

/// Writes the descriptor table and the page tables.
///
/// # Errors
///
/// When low memory is not there.
pub fn write_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    for (offset, entry) in (0u64..).step_by(8).zip(GDT_ENTRIES) {
        ram.write_obj(entry, GuestAddress(GDT.0 + offset))?;
    }
    // One top-level entry, one entry below it, 512 pages of 2 MiB: 1 GiB.
    let (top, middle, leaves) = (
        PAGE_TABLES.0,
        PAGE_TABLES.0 + PAGE,
        PAGE_TABLES.0 + 2 * PAGE,
    );
    ram.write_obj(middle | PRESENT_WRITABLE, GuestAddress(top))?;
    ram.write_obj(leaves | PRESENT_WRITABLE, GuestAddress(middle))?;
    for index in 0..512u64 {
        let entry = index << 21 | PRESENT_WRITABLE | LARGE_PAGE;
        ram.write_obj(entry, GuestAddress(leaves + index * 8))?;
    }
    Ok(())
}

/// General registers at `entry`.
#[must_use]
pub fn general(entry: GuestAddress) -> kvm_regs {
    kvm_regs {
        rip: entry.0,
        rsi: ZERO_PAGE.0,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    }
}

/// Segments and control registers, on top of what KVM's reset left.
#[must_use]
pub fn special(reset: kvm_sregs) -> kvm_sregs {
    let code = segment(CODE_SELECTOR, 0xb, true);
    let data = segment(DATA_SELECTOR, 0x3, false);
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment {
            s: 0,
            db: 0,
            g: 0,
            ..segment(TASK_SELECTOR, 0xb, false)
        },
        gdt: kvm_dtable {
            base: GDT.0,
            limit: 5 * 8 - 1,
            padding: [0; 3],
        },
        idt: kvm_dtable::default(),
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: PAGE_TABLES.0,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..reset
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Floating point as after FNINIT.
#[must_use]
pub fn floating_point() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// The MSRs whose reset value is not what Linux wants to find: memory is
/// write-back by default, string instructions are fast. `None` never happens
/// for two entries.
#[must_use]
pub fn msrs() -> Option<Msrs> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, FAST_STRINGS),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .ok()
}

/// A processor's time stamp counter as the guest would read it.
///
/// # Errors
///
/// What KVM says.
pub fn time_stamp(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let no_such = || kvm_ioctls::Error::new(libc::EINVAL);
    let wanted = kvm_msr_entry {
        index: MSR_IA32_TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[wanted]).map_err(|_| no_such())?;
    vcpu.get_msrs(&mut msrs)?;
    msrs.as_slice()
        .first()
        .map(|entry| entry.data)
        .ok_or_else(no_such)
}

/// Virtual wire mode, as firmware leaves it: the boot processor's LINT0 takes
/// the old interrupt controller, LINT1 the NMI.
pub fn wire_local_interrupts(lapic: &mut kvm_lapic_state) {
    for (register, mode) in [(APIC_LVT0, DELIVER_EXT_INT), (APIC_LVT1, DELIVER_NMI)] {
        if let Some(byte) = lapic.regs.get_mut(register + 1) {
            *byte = (byte.cast_unsigned() & !0x7 | mode).cast_signed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    #[test]
    fn tables_map_the_first_gib_onto_itself() {
        let memory = GuestMemory::new(64 << 20).unwrap();
        write_tables(memory.ram()).unwrap();
        let read = |address| memory.ram().read_obj::<u64>(GuestAddress(address)).unwrap();
        let middle = read(PAGE_TABLES.0) & !0xfff;
        let leaves = read(middle) & !0xfff;
        assert_eq!(read(leaves + 8 * 511), 511 << 21 | 0x83);
        assert_eq!(read(GDT.0 + u64::from(CODE_SELECTOR)), GDT_ENTRIES[2]);
    }

    #[test]
    fn wiring_keeps_the_other_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[APIC_LVT0 + 2] = 1; // masked
        wire_local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[APIC_LVT0 + 1], 7);
        assert_eq!(lapic.regs[APIC_LVT0 + 2], 1);
        assert_eq!(lapic.regs[APIC_LVT1 + 1], 4);
    }
}
