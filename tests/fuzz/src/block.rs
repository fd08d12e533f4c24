//! The disk: any requests in any shape, over a small image.
//!
//! Input: a byte for the kind of disk, then operations, each a byte that says
//! what and the bytes that it needs.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm::devices::block::{Block, BlockSettings, serve_now};
use vmm::memory::GuestRam;
use vmm::slots::{Occupant, Slot};
use vmm::virtio::driver::{Buffer, DriverQueue, QUEUE_SIZE};

use crate::driver;
use crate::input::Input;
use crate::memory::with_ram;

const SECTOR: usize = 512;
const IMAGE_SECTORS: u8 = 32;
const IMAGE_BYTES: usize = SECTOR * IMAGE_SECTORS as usize;
/// Guest addresses of what a request reads and where its answer goes.
const SENT: u64 = 0x8000;
const RECEIVED: u64 = 0x10000;
const STATUS: u64 = 0x20000;

/// Runs one input.
pub fn run(data: &[u8]) {
    with_ram(|ram| {
        let mut input = Input(data);
        let Some(read_only) = input.u8() else { return };
        let mut play = Play::new(ram, read_only & 1 != 0);
        let _ = play.work(&mut input);
        play.check_image();
    });
}

struct Play<'a> {
    slot: Arc<Slot<Block>>,
    ram: &'a GuestRam,
    queue: DriverQueue,
    image: File,
    read_only: bool,
    answered: u32,
}

impl<'a> Play<'a> {
    /// A disk that its driver has brought up.
    fn new(ram: &'a GuestRam, read_only: bool) -> Self {
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(&[0x5a; IMAGE_BYTES]).unwrap();
        let settings = BlockSettings {
            read_only,
            vcpus: 1,
            ..BlockSettings::default()
        };
        let block = Block::new(image.try_clone().unwrap(), &settings).unwrap();
        let slot = Arc::new(Slot::new(block).unwrap());
        for (register, value) in driver::start(1) {
            slot.write(register.into(), &value.to_le_bytes(), ram);
        }
        Self {
            slot,
            ram,
            queue: driver::queue(0),
            image,
            read_only,
            answered: 0,
        }
    }

    fn work(&mut self, input: &mut Input<'_>) -> Option<()> {
        loop {
            match input.u8()? & 3 {
                0 | 1 => self.likely(input)?,
                2 => self.wild(input)?,
                _ => self.shape(input)?,
            }
            self.turn();
        }
    }

    /// A request as a driver makes it, of any kind at any sector.
    fn likely(&mut self, input: &mut Input<'_>) -> Option<()> {
        const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 14, 2];
        let kind = KINDS[usize::from(input.u8()? & 7)];
        // Mostly within the disk, sometimes at its end or far beyond.
        let sector = match input.u8()? {
            255 => u64::MAX - u64::from(input.u8()?),
            near => u64::from(near % (IMAGE_SECTORS + 4)),
        };
        let length = u32::from(input.u8()?) * 64;
        self.header(kind, sector);
        let mut buffers = vec![buffer(SENT, 16, false)];
        match kind {
            1 => buffers.push(buffer(SENT + 16, length, false)),
            11 | 13 => {
                let mut range = sector.to_le_bytes().to_vec();
                range.extend((length / 64).to_le_bytes());
                range.extend(u32::from(input.u8()? & 3).to_le_bytes());
                self.put(SENT + 16, &range);
                buffers.push(buffer(SENT + 16, 16, false));
            }
            _ => buffers.push(buffer(RECEIVED, length, true)),
        }
        buffers.push(buffer(STATUS, 1, true));
        buffers.retain(|buffer| buffer.length > 0);
        self.offer(&buffers);
        Some(())
    }

    /// Header and data as they come.
    fn wild(&mut self, input: &mut Input<'_>) -> Option<()> {
        let bytes = input.bytes(48);
        self.put(SENT, bytes);
        let length = u32::try_from(bytes.len()).ok()?;
        self.offer(&[buffer(SENT, length, false), buffer(STATUS, 1, true)]);
        Some(())
    }

    /// Buffers of any length anywhere, with the header of the last request.
    fn shape(&mut self, input: &mut Input<'_>) -> Option<()> {
        let count = 1 + input.u8()? % 6;
        let mut buffers = Vec::new();
        for _ in 0..count {
            let what = input.u8()?;
            let length = u32::from(input.u16()?) & 0x1fff;
            let address = match what & 0x3f {
                0 => u64::MAX,
                1 => (64 << 20) - u64::from(length) / 2,
                offset if what & 0x40 == 0 => SENT + u64::from(offset),
                offset => RECEIVED + u64::from(offset),
            };
            buffers.push(buffer(address, length, what & 0x40 != 0));
        }
        // Mostly in the order that a driver must keep.
        if input.u8()? & 7 != 0 {
            buffers.sort_by_key(|buffer| buffer.writable);
        }
        self.offer(&buffers);
        Some(())
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(SENT, &header);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn offer(&mut self, buffers: &[Buffer]) {
        self.queue.offer(self.ram, buffers);
    }

    /// What the engine does, until the queue is empty.
    fn turn(&mut self) {
        serve_now(&self.slot, self.ram);
        while let Some((head, length)) = self.queue.used(self.ram) {
            assert!(head < u32::from(QUEUE_SIZE));
            assert!(length <= 6 * 0x2000 + 1, "{length} bytes were written");
            self.answered += 1;
        }
    }

    /// An image neither grows nor shrinks, and one that is read-only stays as
    /// it is.
    fn check_image(&self) {
        let length = self.image.metadata().unwrap().len();
        assert_eq!(length, u64::try_from(IMAGE_BYTES).unwrap());
        if self.read_only {
            let mut content = vec![0; IMAGE_BYTES];
            self.image.read_exact_at(&mut content, 0).unwrap();
            assert!(content.iter().all(|byte| *byte == 0x5a));
        }
    }
}

fn buffer(address: u64, length: u32, writable: bool) -> Buffer {
    Buffer {
        address,
        length,
        writable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus is only worth something if well-formed input gets through.
    #[test]
    fn well_formed_requests_are_carried_out() {
        with_ram(|ram| {
            let mut play = Play::new(ram, false);
            // Write two sectors at 3, discard one at 8, read the first.
            let seed = [0, 1, 3, 16, 0, 4, 8, 1, 0, 0, 0, 0, 8];
            play.work(&mut Input(&seed));
            assert_eq!(play.answered, 3);
            let mut content = vec![0; IMAGE_BYTES];
            play.image.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(content[3 * SECTOR..5 * SECTOR], [0; 2 * SECTOR]);
            assert_eq!(content[8 * SECTOR..9 * SECTOR], [0; SECTOR]);
            assert_eq!(content[9 * SECTOR], 0x5a);
            let read: u8 = ram.read_obj(GuestAddress(RECEIVED)).unwrap();
            assert_eq!(read, 0x5a);
            play.check_image();
        });
    }
}
