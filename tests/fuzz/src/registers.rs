//! The virtio-mmio registers of every device, and what is between them.
//!
//! Input: operations of eight bytes: what, which slot, offset, value.

use std::io::Write;
use std::sync::Arc;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::console::Console;
use vmm::devices::pmem::Pmem;
use vmm::devices::rng::Rng;
use vmm::devices::vsock::Vsock;
use vmm::memory::GuestRam;
use vmm::slots::{Occupant, Slot, SlotAddress, Slots};
use vmm_sys_util::epoll::Epoll;

use crate::driver;
use crate::input::Input;
use crate::memory::with_ram;

const FIRST_ADDRESS: u64 = 0xd000_0000;
const WINDOW: u64 = 0x1000;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
const VIRT: u32 = 0x7472_6976;

/// Runs one input.
pub fn run(data: &[u8]) {
    with_ram(|ram| {
        let bus = Bus {
            slots: devices(),
            ram,
        };
        let _ = bus.work(&mut Input(data));
    });
}

fn devices() -> Slots {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(&[7; 4096]).unwrap();
    let poller = Arc::new(Epoll::new().unwrap());
    let occupants: [Arc<dyn Occupant>; 4] = [
        Arc::new(Slot::new(Pmem::new(&image, GuestAddress(1 << 32)).unwrap()).unwrap()),
        Arc::new(Slot::new(Rng::new()).unwrap()),
        Arc::new(Slot::new(Vsock::new(poller)).unwrap()),
        Arc::new(Slot::new(Console::new(None)).unwrap()),
    ];
    let mut slots = Slots::new().unwrap();
    for occupant in occupants {
        slots.fill(occupant).unwrap();
    }
    slots
}

/// What must not change while a device runs.
#[derive(Debug, Eq, PartialEq)]
struct Frozen {
    status: u32,
    ready: u32,
}

struct Bus<'a> {
    slots: Slots,
    ram: &'a GuestRam,
}

impl Bus<'_> {
    fn work(&self, input: &mut Input<'_>) -> Option<()> {
        loop {
            let what = input.u8()?;
            let slot = u64::from(input.u8()? % 5);
            let offset = input.u16()?;
            let value = input.u32()?;
            let base = FIRST_ADDRESS + slot * WINDOW;
            match what % 6 {
                0 => {
                    self.read(base, offset.into());
                }
                1 => self.write(base, u32::from(offset), value),
                2 => {
                    let at = GuestAddress(u64::from(offset) * 4);
                    self.ram.write_obj(value, at).unwrap();
                }
                3 => {
                    let slot = SlotAddress(usize::try_from(slot).unwrap());
                    if let Some(occupant) = self.slots.get(slot) {
                        occupant.drain(self.ram);
                    }
                }
                4 => self.odd_access(base + u64::from(offset), value),
                _ => {
                    for (register, value) in driver::start(value % 4) {
                        self.write(base, register, value);
                    }
                }
            }
            // Beyond the four devices there is a placeholder.
            assert_eq!(self.read(base, VIRTIO_MMIO_MAGIC_VALUE), VIRT);
        }
    }

    /// Accesses of any width anywhere, across windows as well.
    fn odd_access(&self, address: u64, value: u32) {
        let mut data = [0xa5; 8];
        let width = usize::try_from(value % 9).unwrap();
        self.slots.read(address, &mut data[..width]);
        self.slots.write(address, &data[..width], self.ram);
    }

    fn read(&self, base: u64, register: u32) -> u32 {
        let mut data = [0; 4];
        self.slots.read(base + u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn frozen(&self, base: u64) -> Frozen {
        Frozen {
            status: self.read(base, VIRTIO_MMIO_STATUS),
            ready: self.read(base, VIRTIO_MMIO_QUEUE_READY),
        }
    }

    fn write(&self, base: u64, register: u32, value: u32) {
        let before = self.frozen(base);
        let address = base + u64::from(register);
        self.slots.write(address, &value.to_le_bytes(), self.ram);
        // Windows are narrower than an offset can be.
        if register >= u32::try_from(WINDOW).unwrap() || register == VIRTIO_MMIO_QUEUE_SEL {
            return;
        }
        let after = self.frozen(base);
        if register == VIRTIO_MMIO_STATUS {
            let reset = value == 0;
            assert!(
                reset || after.status & before.status == before.status,
                "status bits vanished: {before:?} {after:?}"
            );
        } else if before.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK {
            assert_eq!(before, after, "register {register:#x} changed a live queue");
        }
    }
}
