//! Virtio: queues, and the one transport that all devices share.
//!
//! ```text
//!  guest driver ──registers──▶ transport ──ready queues──▶ device
//!       │                                                    ▲
//!       └────────── kick (eventfd) ──▶ event loop ───drain───┘
//! ```

#[cfg(any(test, feature = "test-utils"))]
pub mod driver;
pub mod queue;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::memory::GuestRam;
use crate::registers::Page;
pub use queue::{Chain, QueueFault, Ring};

/// Feature bits that every device offers: modern, event indexes. Not
/// IN_ORDER (it only adds ways to lose a completion), not INDIRECT_DESC (the
/// devices here take short chains).
pub(crate) const COMMON_FEATURES: u64 = 1 << VERSION_1 | 1 << EVENT_IDX;
const VERSION_1: u32 = 32;
const EVENT_IDX: u32 = 29;

/// Memory that a device shares with its driver (virtio 1.2, section 2.10): a
/// window in guest-physical memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SharedMemory {
    /// Which one, of those that the kind of device has.
    pub id: u32,
    /// Its first guest-physical address.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// A device behind the transport: a plain structure that is told when to
/// work. It sees only queues that the transport has checked.
pub trait Device: Send + fmt::Debug {
    /// Virtio's number for the kind of device.
    fn kind(&self) -> u32;

    /// Feature bits of its own.
    fn features(&self) -> u64 {
        0
    }

    /// Largest size of each queue, in the order that virtio gives them.
    fn queue_sizes(&self) -> &'static [u16];

    /// The configuration space, read-only for the driver.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Memory that it shares with its driver.
    fn shared_memory(&self) -> Option<SharedMemory> {
        None
    }

    /// Whether threads of its own serve its queues ([`crate::slots::Slot::take`])
    /// instead of the event loop.
    fn has_threads(&self) -> bool {
        false
    }

    /// A driver begins, with these features.
    fn activate(&mut self, _features: u64) {}

    /// Does all work that there is, on every queue, in bounded time.
    ///
    /// # Errors
    ///
    /// A queue that the driver has broken; the device then waits for a reset.
    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault>;

    /// Its driver is about to go: threads of its own give back soon what they
    /// have taken, which is waited for.
    fn retire(&self) {}

    /// Forgets everything that the driver caused.
    fn reset(&mut self) {}
}

/// A running device's queues with what they need.
#[derive(Debug)]
pub struct Queues<'a> {
    /// The queues, in virtio's order.
    pub rings: &'a mut [Ring],
    /// Guest RAM.
    pub ram: &'a GuestRam,
    /// The driver wants to know of what was completed.
    pub(crate) interrupt: bool,
    /// The device stopped before the queues were empty.
    pub(crate) again: bool,
}

/// Chains that one call serves at most, so that a driver that never stops
/// does not keep the event loop from everybody else.
const BATCH: usize = 512;

impl<'a> Queues<'a> {
    /// Over `rings` in `ram`.
    pub fn new(rings: &'a mut [Ring], ram: &'a GuestRam) -> Self {
        Self {
            rings,
            ram,
            interrupt: false,
            again: false,
        }
    }

    /// Feeds the chains of queue `index` to `work`, which says how many bytes
    /// it has written, until none is left or the device has had its share.
    ///
    /// # Errors
    ///
    /// A broken queue.
    pub fn serve(
        &mut self,
        index: usize,
        mut work: impl FnMut(&Chain<'a>) -> u32,
    ) -> Result<(), QueueFault> {
        self.again = true;
        for _ in 0..BATCH {
            if let Some(chain) = self.pop(index)? {
                let written = work(&chain);
                self.complete(index, chain.head(), written)?;
            } else if !self.arm(index)? {
                self.again = false;
                break;
            }
        }
        self.settle(index)
    }

    /// Takes the next chain of queue `index`, `None` when there is none (or
    /// no such queue).
    ///
    /// # Errors
    ///
    /// A broken queue.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain<'a>>, QueueFault> {
        match self.rings.get_mut(index) {
            Some(ring) => ring.pop(self.ram),
            None => Ok(None),
        }
    }

    /// Puts the chain popped last from queue `index` back.
    pub fn put_back(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.put_back();
        }
    }

    /// Returns a chain to the driver with `length` bytes written.
    ///
    /// # Errors
    ///
    /// A used ring that is not there.
    pub fn complete(&mut self, index: usize, head: u16, length: u32) -> Result<(), QueueFault> {
        match self.rings.get_mut(index) {
            Some(ring) => ring.complete(self.ram, head, length),
            None => Ok(()),
        }
    }

    /// Asks to be told about new chains of queue `index`; true when some are
    /// there already.
    ///
    /// # Errors
    ///
    /// A ring that is not there.
    pub fn arm(&mut self, index: usize) -> Result<bool, QueueFault> {
        match self.rings.get_mut(index) {
            Some(ring) => ring.arm(self.ram),
            None => Ok(false),
        }
    }

    /// Notes an interrupt if the driver wants one for what was completed on
    /// queue `index` since the last call.
    ///
    /// # Errors
    ///
    /// A ring that is not there.
    pub fn settle(&mut self, index: usize) -> Result<(), QueueFault> {
        if let Some(ring) = self.rings.get_mut(index) {
            self.interrupt |= ring.wants_interrupt(self.ram)?;
        }
        Ok(())
    }
}

/// What carries a device's interrupt to the guest.
pub trait Line: Send + Sync + fmt::Debug {
    /// One rising edge.
    fn pulse(&self);
}

/// A device's interrupt: the reason in a register, and the line.
///
/// That a queue has used buffers stays in the register: whoever answers to it
/// looks at the queues anyway, and need not be waited for. A machine lets KVM
/// swallow that answer (`machine::attach`).
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    status: AtomicU32,
    page: OnceLock<Page>,
    line: OnceLock<Box<dyn Line>>,
}

impl Interrupt {
    /// InterruptStatus: a queue has used buffers.
    pub(crate) const USED: u32 = 1;
    /// InterruptStatus: the configuration (or the status) has changed.
    const CONFIG: u32 = 2;

    /// Connects the line, once.
    pub(crate) fn connect(&self, line: Box<dyn Line>) {
        // A second one would be a mistake of the machine's; the first stays.
        let _ = self.line.set(line);
    }

    /// Shows the reason on a page of registers, once.
    pub(crate) fn show(&self, page: Page) {
        // A second one would be a mistake of the machine's; the first stays.
        let _ = self.page.set(page);
    }

    pub(crate) fn used(&self) {
        self.raise(Self::USED);
    }

    pub(crate) fn config(&self) {
        self.raise(Self::CONFIG);
    }

    fn raise(&self, reason: u32) {
        let before = self.status.fetch_or(reason, Ordering::SeqCst);
        if before & reason != reason {
            self.publish();
        }
        if let Some(line) = self.line.get() {
            line.pulse();
        }
    }

    pub(crate) fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
        self.publish();
    }

    /// Two that publish at a time may do so in the wrong order: so each looks
    /// again until the page shows what it has found.
    fn publish(&self) {
        let Some(page) = self.page.get() else { return };
        let mut shown = None;
        loop {
            let status = self.status.load(Ordering::SeqCst);
            if shown == Some(status) {
                return;
            }
            page.put(transport::INTERRUPT_STATUS, status);
            shown = Some(status);
        }
    }
}
