//! CPUID: what KVM supports, plus each processor's own identity.
//!
//! The guest gets the host's features as KVM offers them: a VM that never
//! moves to another host has no reason to hide any.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: KVM emulates the LAPIC timer's deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: runs under a hypervisor, look at leaf 0x4000_0000.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: VMX. Leaf 0x8000_0001, ECX: SVM. Not offered: what the host's
/// kernel emulates for a nested hypervisor is the part of KVM that a hostile
/// guest breaks out of most often.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 1, EDX: more than one logical processor in the package.
const MULTI_THREADED: u32 = 1 << 28;

/// Writes processor `id` of `count` into what KVM supports: one package of
/// `count` cores with one thread each, APIC id equal to the processor's id.
pub fn adapt(cpuid: &mut CpuId, id: u8, count: u8, tsc_deadline: bool) {
    let (id, count) = (u32::from(id), u32::from(count.max(1)));
    // Bits of an APIC id that tell the cores of a package apart.
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ecx = (entry.ecx | HYPERVISOR) & !VMX;
                set_bit(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
                set_bit(&mut entry.edx, MULTI_THREADED, count > 1);
                entry.ebx = entry.ebx & 0x0000_ffff | count.min(255) << 16 | id << 24;
            }
            // Caches (Intel and AMD's copy): who shares them. Levels 1 and 2
            // belong to one core, level 3 to the package.
            0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 0x7 >= 3 {
                    count - 1
                } else {
                    0
                };
                let cores = if entry.function == 0x4 {
                    ((1 << core_bits) - 1) << 26
                } else {
                    0
                };
                entry.eax = entry.eax & 0x0000_3fff | sharing << 14 | cores;
            }
            0xb | 0x1f => topology(entry, id, count, core_bits),
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => {
                entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (count - 1);
            }
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id; // one thread per core, core id = processor
                entry.ecx = 0; // one node
            }
            _ => {}
        }
    }
}

/// The extended topology leaves: level 0 threads, level 1 cores.
fn topology(entry: &mut kvm_cpuid_entry2, id: u32, count: u32, core_bits: u32) {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, THREADS << 8),
        1 => (core_bits, count, CORES << 8 | 1),
        level => (0, 0, level),
    };
    entry.edx = id;
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn adapt_gives_each_processor_its_own_apic_id() {
        for id in 0..3u8 {
            let entries = [leaf(1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)];
            let mut cpuid = CpuId::from_entries(&entries).unwrap();
            adapt(&mut cpuid, id, 3, true);
            let entries = cpuid.as_slice();
            assert_eq!(entries[0].ebx >> 24, u32::from(id));
            assert_eq!(entries[0].ebx >> 16 & 0xff, 3);
            assert_eq!(entries[1].edx, u32::from(id));
            assert_eq!((entries[2].eax, entries[2].ebx), (2, 3));
            assert_eq!(entries[3].eax, u32::from(id));
        }
    }

    #[test]
    fn adapt_hides_nested_virtualization() {
        let mut cpuid = CpuId::from_entries(&[leaf(1, 0), leaf(0x8000_0001, 0)]).unwrap();
        adapt(&mut cpuid, 0, 1, true);
        assert_eq!(cpuid.as_slice()[0].ecx & VMX, 0);
        assert_eq!(cpuid.as_slice()[1].ecx & SVM, 0);
    }

    #[test]
    fn adapt_offers_the_deadline_timer_only_where_kvm_has_it() {
        for offered in [false, true] {
            let mut cpuid = CpuId::from_entries(&[leaf(1, 0)]).unwrap();
            adapt(&mut cpuid, 0, 1, offered);
            let entry = cpuid.as_slice()[0];
            assert_eq!(entry.ecx & TSC_DEADLINE != 0, offered);
            assert_eq!(entry.edx & MULTI_THREADED, 0);
        }
    }
}
