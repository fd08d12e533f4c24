//! The few uses of KVM that its safe wrapper leaves unsafe.

#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestAddress;

use crate::arch::x86_64::IOAPIC_LINES;
use crate::virtio::Line;

/// Takes over a descriptor of `/dev/kvm`.
pub(crate) fn from_descriptor(descriptor: OwnedFd) -> Kvm {
    // SAFETY: `into_raw_fd` hands over sole ownership. Should the descriptor
    // be something else, its ioctls fail.
    unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Memory of this process that the guest sees at `guest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) slot: u32,
    pub(crate) guest: GuestAddress,
    pub(crate) host: u64,
    pub(crate) bytes: u64,
    pub(crate) read_only: bool,
}

/// Gives a mapping to the guest.
pub(crate) fn map(vm: &VmFd, window: Window) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: window.slot,
        flags: if window.read_only {
            KVM_MEM_READONLY
        } else {
            0
        },
        guest_phys_addr: window.guest.0,
        memory_size: window.bytes,
        userspace_addr: window.host,
    };
    // SAFETY: `host` and `bytes` are those of a `Mapping` that the machine
    // keeps as long as its processors run (`Machine` owns both).
    unsafe { vm.set_user_memory_region(region) }
}

/// The sub-error of an internal-error exit.
pub(crate) fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: the last exit reason was KVM_EXIT_INTERNAL_ERROR, for which KVM
    // fills this member; any bytes are a valid number.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// An interrupt line of the machine. Pulsed by whoever raises the interrupt:
/// an irqfd would leave it to a worker of the host's kernel, two switches
/// between threads away.
#[derive(Debug)]
pub(crate) struct IrqLine {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) number: u32,
}

/// Who pulses a line, by its number: there is one machine in a process. A
/// second thread that raised a line before the first has lowered it would
/// cause no edge, and what it has to tell would never be heard. Slots may
/// share a line.
static TURNS: [Mutex<()>; IOAPIC_LINES as usize] =
    [const { Mutex::new(()) }; IOAPIC_LINES as usize];

/// Pulses a line, when it is this thread's turn.
fn in_turn(line: u32, pulse: impl FnOnce()) {
    let turn = usize::try_from(line)
        .ok()
        .and_then(|line| TURNS.get(line))
        .map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
    pulse();
    drop(turn);
}

impl Line for IrqLine {
    fn pulse(&self) {
        in_turn(self.number, || {
            // Fails only without interrupt controllers, which a machine has.
            let _ = self.vm.set_irq_line(self.number, true);
            let _ = self.vm.set_irq_line(self.number, false);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn each_of_many_threads_raises_an_edge() {
        const THREADS: u32 = 4;
        const PULSES: u32 = 1000;
        // As an interrupt controller's input, it has no edge to give while it
        // is up.
        let (up, edges) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..PULSES {
                        in_turn(5, || {
                            if !up.swap(true, Ordering::SeqCst) {
                                edges.fetch_add(1, Ordering::SeqCst);
                            }
                            thread::yield_now();
                            up.store(false, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(edges.into_inner(), THREADS * PULSES);
    }
}
