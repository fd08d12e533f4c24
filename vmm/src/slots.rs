//! The machine's virtio-mmio slots: a fixed row of register windows.
//!
//! The kernel command line declares every slot, filled or not; an empty one
//! answers DeviceID 0, which Linux takes for a placeholder. That is how a
//! running machine will get devices without ACPI: fill a slot, let the agent
//! bind it. Linux names the n-th declared slot `virtio-mmio.n`.
//!
//! Which device is where: image k in slot k, then disks, entropy, vsock,
//! console, shared directories. There are fewer interrupt lines than slots, so
//! the last slots share theirs with the first: images, which raise none.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::IOAPIC_LINES;
use crate::memory::GuestRam;
use crate::registers::{PAGE, Page, Registers};
use crate::virtio::transport::{
    Drained, INTERRUPT_ACK, Lease, MAGIC, QUEUE_NOTIFY, Request, STATUS, Taken, Transport, VERSION,
};
use crate::virtio::{Chain, Device, Interrupt, Line};

/// Slots that a machine can have.
pub const SLOTS: usize = 32;

/// Slots that the kernel is told of at least; more only if there are devices in
/// them, because an empty one costs a boot 0.2 ms.
pub const LEAST_SLOTS: usize = 8;

/// Slots that the machine's own devices take: entropy, vsock, console.
pub const OWN_SLOTS: usize = 3;

/// Guest-physical address of the first slot's registers.
pub(crate) const FIRST_ADDRESS: GuestAddress = GuestAddress(0xd000_0000);
const WINDOW: u64 = PAGE as u64;
const FIRST_LINE: u32 = 5;
/// Lines that slots have, up to the IOAPIC's last.
const LINES: u32 = IOAPIC_LINES as u32 - FIRST_LINE;

/// Position of a slot.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SlotAddress(pub usize);

impl SlotAddress {
    fn base(self) -> u64 {
        let inside = WINDOW.saturating_mul(self.0 as u64);
        FIRST_ADDRESS.0.saturating_add(inside)
    }

    /// Guest-physical address of the register that a driver kicks.
    pub(crate) fn notify_address(self) -> u64 {
        self.base().saturating_add(QUEUE_NOTIFY)
    }

    /// Guest-physical address of the register that answers an interrupt.
    pub(crate) fn acknowledge_address(self) -> u64 {
        self.base().saturating_add(INTERRUPT_ACK)
    }

    /// Interrupt line at the IOAPIC.
    pub(crate) fn line(self) -> u32 {
        u32::try_from(self.0)
            .ok()
            .and_then(|number| number.checked_rem(LINES))
            .unwrap_or(0)
            .saturating_add(FIRST_LINE)
    }

    /// The word that declares the slot to Linux.
    pub(crate) fn kernel_argument(self) -> String {
        format!("virtio_mmio.device=4K@{:#x}:{}", self.base(), self.line())
    }
}

/// A device in its slot, shared by the event loop (which lets it work) and
/// the processors (which write its registers).
#[derive(Debug)]
pub struct Slot<D> {
    transport: Mutex<Transport<D>>,
    /// Told when a thread of the device gives a chain back.
    given_back: Condvar,
    threads: bool,
    front: OnceLock<Box<dyn Front<D>>>,
    interrupt: Interrupt,
    kick: EventFd,
}

/// What a front has left over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Work for the device's threads.
    Work,
}

/// Serves requests on the very processor that brings them: the guest waits
/// for most of them anyway, and two switches between threads are more work
/// than many a request.
pub trait Front<D>: Send + Sync + fmt::Debug {
    /// Serves what is quick to serve.
    fn serve(&self, slot: &Slot<D>, ram: &GuestRam) -> Left;
}

impl<D: Device> Slot<D> {
    /// `device`, not yet in any slot.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new(device: D) -> io::Result<Self> {
        Ok(Self {
            threads: device.has_threads(),
            transport: Mutex::new(Transport::new(device)),
            given_back: Condvar::new(),
            front: OnceLock::new(),
            interrupt: Interrupt::default(),
            kick: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn transport(&self) -> MutexGuard<'_, Transport<D>> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `front` see every kick first. Once, before the slot is attached.
    pub fn put_front(&self, front: Box<dyn Front<D>>) {
        // A second one would be a mistake of the machine's; the first stays.
        let _ = self.front.set(front);
    }

    /// Takes the next chain of queue `index` for a thread of the device.
    /// `arm`: when there is none, the next one is to be told by a kick.
    pub fn take<'m>(&self, index: usize, ram: &'m GuestRam, arm: bool) -> Taken<'m> {
        self.take_if(index, ram, arm, |_| true)
    }

    /// As [`Slot::take`], if it is accepted.
    pub fn take_if<'m>(
        &self,
        index: usize,
        ram: &'m GuestRam,
        arm: bool,
        accepts: impl FnOnce(&Chain<'m>) -> bool,
    ) -> Taken<'m> {
        self.transport()
            .take(index, ram, arm, accepts, &self.interrupt)
    }

    /// Whether queue `index` has chains waiting for another thread.
    pub fn has_more(&self, index: usize, ram: &GuestRam) -> bool {
        self.transport().has_more(index, ram)
    }

    /// Returns a chain with `length` bytes written.
    pub fn give_back(&self, lease: Lease, length: u32, ram: &GuestRam) {
        let mut transport = self.transport();
        let tell = transport.give_back(lease, length, ram, &self.interrupt);
        let retiring = transport.is_retiring();
        drop(transport);
        // Not under the lock: the driver's answer to an interrupt may want it.
        if tell {
            self.interrupt.used();
        }
        if retiring {
            self.given_back.notify_all();
        }
    }

    /// Returns chains with the bytes written to each, for one interrupt.
    pub fn give_back_all(&self, chains: &mut Vec<(Lease, u32)>, ram: &GuestRam) {
        if chains.is_empty() {
            return;
        }
        let mut tell = false;
        let mut transport = self.transport();
        for (lease, length) in chains.drain(..) {
            tell |= transport.give_back(lease, length, ram, &self.interrupt);
        }
        let retiring = transport.is_retiring();
        drop(transport);
        if tell {
            self.interrupt.used();
        }
        if retiring {
            self.given_back.notify_all();
        }
    }

    /// The transport, when no thread of the device works for the driver any
    /// more: after a reset the driver may use its memory for anything.
    fn retired(&self) -> MutexGuard<'_, Transport<D>> {
        let mut transport = self.transport();
        transport.retire();
        self.given_back
            .wait_while(transport, |transport| {
                let waits = transport.taken() > 0;
                if waits {
                    // Another processor may have begun anew meanwhile.
                    transport.retire();
                }
                waits
            })
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the device itself.
    pub fn with_device<T>(&self, work: impl FnOnce(&mut D) -> T) -> T {
        work(self.transport().device_mut())
    }
}

/// A slot, whatever device is in it.
pub trait Occupant: Send + Sync + fmt::Debug {
    /// A guest's write to its registers.
    fn write(&self, offset: u64, data: &[u8], ram: &GuestRam);
    /// Whether the event loop lets the device work; else its own threads do.
    fn is_drained(&self) -> bool;
    /// Whether kicks come as writes to its registers, not as events.
    fn has_front(&self) -> bool;
    /// Lets the device work.
    fn drain(&self, ram: &GuestRam);
    /// Becomes readable when the device has work.
    fn kick(&self) -> &EventFd;
    /// Connects the slot's interrupt line.
    fn connect(&self, line: Box<dyn Line>);
    /// Gives the device its page of registers.
    fn show(&self, page: ShownRegisters);
}

impl<D: Device> Occupant for Slot<D> {
    fn write(&self, offset: u64, data: &[u8], ram: &GuestRam) {
        if let (INTERRUPT_ACK, &[a, b, c, d]) = (offset, data) {
            self.interrupt.acknowledge(u32::from_le_bytes([a, b, c, d]));
            return;
        }
        if let (QUEUE_NOTIFY, Some(front)) = (offset, self.front.get()) {
            if front.serve(self, ram) == Left::Work {
                // Fails only when it is readable already.
                let _ = self.kick.write(1);
            }
            return;
        }
        let reset = offset == STATUS && data.iter().all(|byte| *byte == 0);
        let mut transport = if reset && self.threads {
            self.retired()
        } else {
            self.transport()
        };
        let request = transport.write(offset, data, ram, &self.interrupt);
        drop(transport);
        if request == Request::Drain {
            // Fails only when it is readable already.
            let _ = self.kick.write(1);
        }
    }

    fn is_drained(&self) -> bool {
        !self.threads
    }

    fn has_front(&self) -> bool {
        self.front.get().is_some()
    }

    fn drain(&self, ram: &GuestRam) {
        // The counter is reset before the queues are read, so that a kick in
        // between is not lost.
        let _ = self.kick.read();
        match self.transport().drain(ram, &self.interrupt) {
            Drained::Idle | Drained::Broken(_) => {}
            Drained::More => {
                let _ = self.kick.write(1);
            }
        }
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }

    fn connect(&self, line: Box<dyn Line>) {
        self.interrupt.connect(line);
    }

    fn show(&self, ShownRegisters(page): ShownRegisters) {
        self.interrupt.show(page.clone());
        self.transport().show(page);
    }
}

/// A page of registers, from the slots to the device in one of them.
#[derive(Debug)]
pub struct ShownRegisters(Page);

/// More devices than slots.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the machine has {SLOTS} device slots, {OWN_SLOTS} of them for itself, none left for another \
     image, disk or directory"
)]
pub struct NoSlot;

/// All slots, filled from the first.
#[derive(Clone, Debug)]
pub struct Slots {
    filled: Vec<Arc<dyn Occupant>>,
    registers: Arc<Registers>,
}

impl Slots {
    /// Slots without devices.
    ///
    /// # Errors
    ///
    /// When there is no memory for their registers.
    pub fn new() -> io::Result<Self> {
        let registers = Arc::new(Registers::new(SLOTS)?);
        for slot in 0..SLOTS {
            // A placeholder: a virtio device of kind 0.
            let page = registers.page(slot);
            page.put(VIRTIO_MMIO_MAGIC_VALUE.into(), MAGIC);
            page.put(VIRTIO_MMIO_VERSION.into(), VERSION);
        }
        Ok(Self {
            filled: Vec::new(),
            registers,
        })
    }

    /// What the guest reads in the slots' windows.
    pub(crate) fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Puts a device into the next slot.
    ///
    /// # Errors
    ///
    /// [`NoSlot`] when all are taken.
    pub fn fill(
        &mut self,
        occupant: Arc<dyn Occupant>,
    ) -> Result<(SlotAddress, &dyn Occupant), NoSlot> {
        let address = SlotAddress(self.filled.len());
        if address.0 >= SLOTS {
            return Err(NoSlot);
        }
        occupant.show(ShownRegisters(self.registers.page(address.0)));
        self.filled.push(occupant);
        let occupant = self.get(address).ok_or(NoSlot)?;
        Ok((address, occupant.as_ref()))
    }

    /// The filled slots in order.
    pub fn iter(&self) -> impl Iterator<Item = (SlotAddress, &Arc<dyn Occupant>)> {
        self.filled
            .iter()
            .enumerate()
            .map(|(index, occupant)| (SlotAddress(index), occupant))
    }

    /// The occupant of a slot.
    pub fn get(&self, address: SlotAddress) -> Option<&Arc<dyn Occupant>> {
        self.filled.get(address.0)
    }

    /// What a guest finds at a physical address: it reads most of it without
    /// asking. Where nothing is, all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let inside = address
            .checked_sub(FIRST_ADDRESS.0)
            .and_then(|inside| usize::try_from(inside).ok())
            .filter(|inside| *inside < self.registers.bytes());
        match inside {
            Some(inside) => self.registers.read(inside, data),
            None => data.fill(0xff),
        }
    }

    /// A guest's write at a physical address. Where nothing is, nothing.
    pub fn write(&self, address: u64, data: &[u8], ram: &GuestRam) {
        if let Some((slot, offset)) = locate(address)
            && let Some(occupant) = self.get(slot)
        {
            occupant.write(offset, data, ram);
        }
    }
}

fn locate(address: u64) -> Option<(SlotAddress, u64)> {
    let inside = address.checked_sub(FIRST_ADDRESS.0)?;
    let slot = usize::try_from(inside.checked_div(WINDOW)?).ok()?;
    (slot < SLOTS).then(|| (SlotAddress(slot), inside.checked_rem(WINDOW).unwrap_or(0)))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn empty_slot_is_a_placeholder_and_beyond_is_nothing() {
        let slots = Slots::new().unwrap();
        let read = |address| {
            let mut data = [0; 4];
            slots.read(address, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(0xd000_0000), MAGIC);
        assert_eq!(read(0xd001_f004), 2);
        assert_eq!(read(0xd001_f008), 0);
        assert_eq!(read(0xd002_0000), u32::MAX);
        assert_eq!(read(0xcfff_fffc), u32::MAX);
        assert_eq!(read(u64::MAX), u32::MAX);
    }

    #[test]
    fn lines_are_the_ioapics_and_shared_with_the_first_slots() {
        let line = |slot| SlotAddress(slot).line();
        assert_eq!((line(0), line(18)), (5, 23));
        assert_eq!((line(19), line(SLOTS - 1)), (5, 17));
    }

    #[test]
    fn slot_beyond_the_last_is_refused_with_the_limit() {
        let mut slots = Slots::new().unwrap();
        for number in 0..SLOTS {
            let slot = Slot::new(crate::devices::rng::Rng::new()).unwrap();
            assert_eq!(slots.fill(Arc::new(slot)).unwrap().0, SlotAddress(number));
        }
        let slot = Slot::new(crate::devices::rng::Rng::new()).unwrap();
        let error = slots.fill(Arc::new(slot)).unwrap_err();
        assert!(error.to_string().contains("32 device slots"), "{error}");
    }
}
