//! x86_64: 64-bit entry by the Linux boot protocol, MP table, no firmware.
//!
//! Low memory as the guest finds it (all below the first MiB):
//!
//! ```text
//!  0x00500 GDT        0x07000 zero page   0x09000 page tables (3 pages)
//!  0x10000 speed judge's loop             0x20000 command line
//!  0x9e000 MP table   0x9fc00 pointer to it    0xa0000 end of base memory
//! ```

pub mod cpuid;
pub mod mptable;
pub mod registers;
pub mod zero_page;

use vm_memory::GuestAddress;

/// Global descriptor table: what the boot protocol wants in CS, DS, SS, ES.
pub(crate) const GDT: GuestAddress = GuestAddress(0x500);
/// `boot_params`, handed to the kernel in RSI.
pub(crate) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Page tables that map the first GiB onto itself.
pub(crate) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The speed judge's loop; free for the guest afterwards.
pub(crate) const JUDGE_CODE: GuestAddress = GuestAddress(0x1_0000);
/// The kernel's command line, zero-terminated.
pub(crate) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line that Linux takes on x86, terminator included.
pub(crate) const COMMAND_LINE_LIMIT: usize = 2048;
/// The MP table proper; RAM that the guest may use ends here.
pub(crate) const MP_TABLE: GuestAddress = GuestAddress(0x9_e000);
/// The MP floating pointer: Linux looks in the last KiB of base memory.
pub(crate) const MP_POINTER: GuestAddress = GuestAddress(0x9_fc00);
/// From here on RAM is the guest's again.
pub(crate) const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// Interrupt lines that the IOAPIC has.
pub(crate) const IOAPIC_LINES: u8 = 24;
/// Three pages that KVM wants for itself on Intel processors, in the hole.
pub(crate) const TSS: usize = 0xfffb_d000;
/// One more page for KVM, for the same reason.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
