//! The registers of one virtio-mmio device (virtio 1.2, section 4.2), version
//! 2 only, and the one state machine behind them.
//!
//! ```text
//!  Negotiating ──DRIVER_OK──▶ Running ──bad ring──▶ Broken
//!      ▲                         │                    │
//!      └────── status = 0 ───────┴────────────────────┘
//! ```
//!
//! What a state owns is what may be done in it: features and queue geometry
//! exist for writing only while negotiating, so nothing the driver writes
//! later can move a queue under the device. Refused writes are counted.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Queue, QueueT};

use super::{
    COMMON_FEATURES, Chain, Device, EVENT_IDX, Interrupt, QueueFault, Queues, Ring, VERSION_1,
};
use crate::memory::GuestRam;
use crate::registers::Page;

/// "virt" in little-endian.
pub(crate) const MAGIC: u32 = 0x7472_6976;
pub(crate) const VERSION: u32 = 2;
/// Tells whose device it is; no driver looks.
const VENDOR: u32 = u32::from_le_bytes(*b"nrte");

/// Offset of the InterruptStatus register.
pub(crate) const INTERRUPT_STATUS: u64 = VIRTIO_MMIO_INTERRUPT_STATUS as u64;

/// Offset of the InterruptACK register.
pub(crate) const INTERRUPT_ACK: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;

/// Offset of the Status register; zero written to it resets the device.
pub(crate) const STATUS: u64 = VIRTIO_MMIO_STATUS as u64;

/// Offset of the QueueNotify register, which KVM answers by itself.
pub(crate) const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// What the driver may do, and what there is to do it with.
#[derive(Debug)]
enum State {
    /// The driver writes features and queue geometry.
    Negotiating { features: u64, queues: Vec<Queue> },
    /// The device owns its queues.
    Running(Vec<Ring>),
    /// The driver has broken a queue and must reset.
    Broken,
}

/// What a register write asks of whoever runs the device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// Nothing.
    None,
    /// Look at the queues: they are new, or the driver has kicked one.
    Drain,
}

/// How a device left its queues.
#[derive(Debug)]
pub enum Drained {
    /// Nothing to do until the next kick.
    Idle,
    /// It has done its share; there may be more.
    More,
    /// The driver has broken a queue.
    Broken(QueueFault),
}

/// What a thread of the device gets from a queue.
#[derive(Debug)]
pub enum Taken<'m> {
    /// A request, to be given back with its [`Lease`].
    Chain(Chain<'m>, Lease),
    /// The next one is not for whoever asked.
    Refused,
    /// Nothing at present; the next kick tells if that was asked for.
    Empty,
    /// The device has no driver.
    Stopped,
}

/// The right to give a chain back, to the driver that offered it only.
#[derive(Debug)]
pub struct Lease {
    queue: usize,
    head: u16,
    epoch: u64,
}

/// One device behind its registers.
#[derive(Debug)]
pub struct Transport<D> {
    device: D,
    /// Where the driver reads the registers.
    page: Option<Page>,
    /// Counts drivers: what one has offered is not returned to the next.
    epoch: u64,
    /// Chains that threads of the device have taken and not given back.
    taken: usize,
    state: State,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    shared_memory_select: u32,
    refused: u64,
}

impl<D: Device> Transport<D> {
    /// `device`, waiting for a driver.
    pub fn new(device: D) -> Self {
        let state = Self::fresh(&device);
        Self {
            device,
            page: None,
            epoch: 0,
            taken: 0,
            state,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            shared_memory_select: 0,
            refused: 0,
        }
    }

    /// The device itself.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Writes that the state machine has refused so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether the device has its queues.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    fn fresh(device: &D) -> State {
        State::Negotiating {
            features: 0,
            // Sizes are constants of the device, powers of two.
            queues: device
                .queue_sizes()
                .iter()
                .filter_map(|size| Queue::new(*size).ok())
                .collect(),
        }
    }

    fn offered(&self) -> u64 {
        COMMON_FEATURES | self.device.features()
    }

    /// Shows the registers on `page` from now on.
    pub(crate) fn show(&mut self, page: Page) {
        self.page = Some(page);
        self.publish();
    }

    /// Brings the page up to date. The interrupt's reason is not here: who
    /// raises an interrupt shows it.
    fn publish(&self) {
        let Some(page) = &self.page else { return };
        for register in (0..VIRTIO_MMIO_CONFIG).step_by(4) {
            if register != VIRTIO_MMIO_INTERRUPT_STATUS {
                page.put(register.into(), self.register(register));
            }
        }
        let mut offset = u64::from(VIRTIO_MMIO_CONFIG);
        for word in self.device.config().chunks(4) {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(word) {
                *to = *from;
            }
            page.put(offset, u32::from_le_bytes(bytes));
            offset = offset.saturating_add(4);
        }
    }

    fn register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .device
                .queue_sizes()
                .get(self.queue_index())
                .map_or(0, |size| u32::from(*size)),
            VIRTIO_MMIO_QUEUE_READY => u32::from(self.queue_ready()),
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_SHM_LEN_LOW => half(self.shared_memory().1, 0),
            VIRTIO_MMIO_SHM_LEN_HIGH => half(self.shared_memory().1, 1),
            VIRTIO_MMIO_SHM_BASE_LOW => half(self.shared_memory().0, 0),
            VIRTIO_MMIO_SHM_BASE_HIGH => half(self.shared_memory().0, 1),
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// Start and length of the selected shared memory region; all ones for one
    /// that is not there (4.2.2).
    fn shared_memory(&self) -> (u64, u64) {
        match self.device.shared_memory() {
            Some(memory) if memory.id == self.shared_memory_select => (memory.start, memory.bytes),
            _ => (u64::MAX, u64::MAX),
        }
    }

    fn queue_index(&self) -> usize {
        usize::try_from(self.queue_select).unwrap_or(usize::MAX)
    }

    fn queue_ready(&self) -> bool {
        match &self.state {
            State::Negotiating { queues, .. } => {
                queues.get(self.queue_index()).is_some_and(QueueT::ready)
            }
            State::Running(rings) => rings.get(self.queue_index()).is_some_and(Ring::is_ready),
            State::Broken => false,
        }
    }

    /// Writes `data` at `offset`.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        ram: &GuestRam,
        interrupt: &Interrupt,
    ) -> Request {
        let request = self.take_write(offset, data, ram, interrupt);
        // A kick is the one write that changes no register.
        if offset != QUEUE_NOTIFY {
            self.publish();
        }
        request
    }

    fn take_write(
        &mut self,
        offset: u64,
        data: &[u8],
        ram: &GuestRam,
        interrupt: &Interrupt,
    ) -> Request {
        let (Ok(register), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            self.refuse();
            return Request::None;
        };
        let value = u32::from_le_bytes(bytes);
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_SHM_SEL => self.shared_memory_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => return Request::Drain,
            VIRTIO_MMIO_STATUS => return self.write_status(value, ram, interrupt),
            _ => self.write_queue(register, value),
        }
        Request::None
    }

    fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }

    fn write_features(&mut self, value: u32) {
        let select = self.driver_features_select;
        let open = self.status & (DRIVER | FEATURES_OK) == DRIVER;
        match &mut self.state {
            State::Negotiating { features, .. } if open && select < 2 => {
                let (shift, keep) = if select == 0 {
                    (0, !0xffff_ffff)
                } else {
                    (32, 0xffff_ffff)
                };
                *features = *features & keep | u64::from(value) << shift;
            }
            // Banks that nobody offers anything in.
            _ if open && value == 0 => {}
            _ => self.refuse(),
        }
    }

    /// Geometry of the selected queue: only while negotiating, after the
    /// features, and before that queue is ready.
    fn write_queue(&mut self, register: u32, value: u32) {
        let index = self.queue_index();
        let open = self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let selected = match &mut self.state {
            State::Negotiating { queues, .. } => queues.get_mut(index),
            State::Running(_) | State::Broken => None,
        };
        let accepted = match (register, selected) {
            // A driver that leaves says so for each queue, after its reset.
            (VIRTIO_MMIO_QUEUE_READY, Some(queue)) if value == 0 && !queue.ready() => true,
            (_, Some(queue)) if open => {
                if queue.ready() {
                    register == VIRTIO_MMIO_QUEUE_READY && {
                        queue.set_ready(value == 1);
                        value <= 1
                    }
                } else {
                    set_geometry(queue, register, value)
                }
            }
            _ => false,
        };
        if !accepted {
            self.refuse();
        }
    }

    fn write_status(&mut self, value: u32, ram: &GuestRam, interrupt: &Interrupt) -> Request {
        if value == 0 {
            self.reset(interrupt);
            return Request::None;
        }
        let added = value & !self.status;
        // Bits are only ever added, each after the one before it.
        let in_order = self.status & !value & !NEEDS_RESET == 0
            && (added & DRIVER == 0 || value & ACKNOWLEDGE != 0)
            && (added & FEATURES_OK == 0 || value & DRIVER != 0)
            && (added & DRIVER_OK == 0 || self.status & FEATURES_OK != 0)
            && added & !(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) == 0;
        if !in_order {
            self.refuse();
            return Request::None;
        }
        let kept = self.status & NEEDS_RESET;
        let mut value = value | kept;
        if added & FEATURES_OK != 0 && !self.features_agree() {
            value &= !FEATURES_OK; // the driver reads back and gives up
        }
        self.status = value;
        if added & DRIVER_OK != 0 {
            return self.activate(ram, interrupt);
        }
        Request::None
    }

    fn features_agree(&self) -> bool {
        match self.state {
            State::Negotiating { features, .. } => {
                features & !self.offered() == 0 && features & 1 << VERSION_1 != 0
            }
            State::Running(_) | State::Broken => false,
        }
    }

    fn activate(&mut self, ram: &GuestRam, interrupt: &Interrupt) -> Request {
        let State::Negotiating { features, queues } =
            std::mem::replace(&mut self.state, State::Broken)
        else {
            return Request::None;
        };
        let event_idx = features & 1 << EVENT_IDX != 0;
        let rings: Option<Vec<_>> = queues
            .into_iter()
            .map(|mut queue| {
                queue.set_event_idx(event_idx);
                Ring::from_driver(queue, ram)
            })
            .collect();
        match rings {
            Some(rings) => {
                self.device.activate(features);
                self.state = State::Running(rings);
                Request::Drain
            }
            None => {
                self.fail(interrupt);
                Request::None
            }
        }
    }

    fn fail(&mut self, interrupt: &Interrupt) {
        self.state = State::Broken;
        self.status |= NEEDS_RESET;
        self.publish();
        interrupt.config();
    }

    /// Takes the next chain of queue `index` for a thread of the device, if it
    /// accepts it. `arm`: when there is none, the next one is to be told by a
    /// kick.
    pub(crate) fn take<'m>(
        &mut self,
        index: usize,
        ram: &'m GuestRam,
        arm: bool,
        accepts: impl FnOnce(&Chain<'m>) -> bool,
        interrupt: &Interrupt,
    ) -> Taken<'m> {
        let State::Running(rings) = &mut self.state else {
            return Taken::Stopped;
        };
        let Some(ring) = rings.get_mut(index) else {
            return Taken::Stopped;
        };
        let popped = loop {
            match ring.pop(ram) {
                Ok(None) if arm => match ring.arm(ram) {
                    Ok(true) => {}
                    Ok(false) => break Ok(None),
                    Err(fault) => break Err(fault),
                },
                result => break result,
            }
        };
        match popped {
            Ok(Some(chain)) if !accepts(&chain) => {
                ring.put_back();
                Taken::Refused
            }
            Ok(Some(chain)) => {
                self.taken = self.taken.saturating_add(1);
                let lease = Lease {
                    queue: index,
                    head: chain.head(),
                    epoch: self.epoch,
                };
                Taken::Chain(chain, lease)
            }
            Ok(None) => Taken::Empty,
            Err(_) => {
                self.fail(interrupt);
                Taken::Stopped
            }
        }
    }

    /// Whether queue `index` has chains waiting.
    pub(crate) fn has_more(&self, index: usize, ram: &GuestRam) -> bool {
        match &self.state {
            State::Running(rings) => rings.get(index).is_some_and(|ring| ring.has_more(ram)),
            State::Negotiating { .. } | State::Broken => false,
        }
    }

    /// Returns a chain to its driver with `length` bytes written. True: the
    /// driver wants an interrupt for it.
    #[expect(clippy::needless_pass_by_value, reason = "a lease is good for once")]
    pub(crate) fn give_back(
        &mut self,
        lease: Lease,
        length: u32,
        ram: &GuestRam,
        interrupt: &Interrupt,
    ) -> bool {
        self.taken = self.taken.saturating_sub(1);
        let State::Running(rings) = &mut self.state else {
            return false;
        };
        let Some(ring) = rings.get_mut(lease.queue) else {
            return false;
        };
        if lease.epoch != self.epoch {
            return false;
        }
        let told = ring
            .complete(ram, lease.head, length)
            .and_then(|()| ring.wants_interrupt(ram));
        told.unwrap_or_else(|_| {
            self.fail(interrupt);
            false
        })
    }

    /// Whether a reset waits for chains to be given back.
    pub(crate) fn is_retiring(&self) -> bool {
        !self.is_running()
    }

    /// Chains that threads of the device still work on.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Lets threads of the device take nothing more, before a reset.
    pub(crate) fn retire(&mut self) {
        if let State::Running(_) = self.state {
            self.state = State::Broken;
        }
        self.epoch = self.epoch.saturating_add(1);
        self.device.retire();
    }

    fn reset(&mut self, interrupt: &Interrupt) {
        self.device.reset();
        self.state = Self::fresh(&self.device);
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.shared_memory_select = 0;
        interrupt.acknowledge(!0);
    }

    /// Lets the device work, if it has a driver.
    pub(crate) fn drain(&mut self, ram: &GuestRam, interrupt: &Interrupt) -> Drained {
        let State::Running(rings) = &mut self.state else {
            return Drained::Idle;
        };
        let mut queues = Queues::new(rings, ram);
        let result = self.device.drain(&mut queues);
        if queues.interrupt {
            interrupt.used();
        }
        match result {
            Ok(()) if queues.again => Drained::More,
            Ok(()) => Drained::Idle,
            Err(fault) => {
                self.fail(interrupt);
                Drained::Broken(fault)
            }
        }
    }
}

fn half(bits: u64, select: u32) -> u32 {
    let bytes = bits.to_le_bytes();
    match (select, bytes) {
        (0, [a, b, c, d, ..]) | (1, [_, _, _, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Whether `register` is part of a queue's geometry and takes `value`.
fn set_geometry(queue: &mut Queue, register: u32, value: u32) -> bool {
    match register {
        VIRTIO_MMIO_QUEUE_NUM => {
            return u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok());
        }
        VIRTIO_MMIO_QUEUE_READY => {
            queue.set_ready(value == 1);
            return value <= 1;
        }
        // The crate refuses a bad alignment by keeping the old address; high
        // halves have none.
        VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => return false,
    }
    true
}
