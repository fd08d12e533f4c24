//! The vsock device: any packets from the guest, any timing of the host.
//!
//! Input: operations, each a byte that says what and the bytes that it needs.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use protocol::stream::{GUEST_CID, HOST_CID, HostPort};
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::vsock::{StreamKey, Vsock};
use vmm::memory::GuestRam;
use vmm::slots::{Occupant, Slot};
use vmm::virtio::driver::{Buffer, DriverQueue, QUEUE_SIZE};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use crate::driver;
use crate::input::Input;
use crate::memory::with_ram;

const HEADER: u32 = 44;
const STREAM: u16 = 1;
/// Guest addresses of the packets that the guest sends and receives.
const SENT: u64 = 0x8000;
const RECEIVED: u64 = 0x20000;
const RECEIVED_BYTES: u64 = 0x1000;
/// Ports in play: few, so that they meet.
const PORTS: u8 = 4;
const FIRST_PORT: u32 = 1024;

/// Runs one input.
pub fn run(data: &[u8]) {
    with_ram(|ram| {
        let mut play = Play::new(ram);
        let _ = play.work(&mut Input(data));
    });
}

struct Play<'a> {
    slot: Slot<Vsock>,
    poller: Arc<Epoll>,
    ram: &'a GuestRam,
    receive: DriverQueue,
    transmit: DriverQueue,
    /// The keeper's ends.
    peers: [Option<UnixStream>; PORTS as usize],
    /// Bytes behind headers that the guest has sent in all.
    sent: u64,
    /// Bytes that have reached the keeper.
    arrived: u64,
}

impl<'a> Play<'a> {
    /// A device that its driver has brought up.
    fn new(ram: &'a GuestRam) -> Self {
        let poller = Arc::new(Epoll::new().unwrap());
        let slot = Slot::new(Vsock::new(poller.clone())).unwrap();
        for (register, value) in driver::start(2) {
            slot.write(register.into(), &value.to_le_bytes(), ram);
        }
        Self {
            slot,
            poller,
            ram,
            receive: driver::queue(0),
            transmit: driver::queue(1),
            peers: [const { None }; PORTS as usize],
            sent: 0,
            arrived: 0,
        }
    }

    fn work(&mut self, input: &mut Input<'_>) -> Option<()> {
        loop {
            let what = input.u8()?;
            let port = what >> 4 & (PORTS - 1);
            match what & 0xf {
                0..=4 => self.packet(input, port)?,
                5 => self.wild_packet(input),
                6..=8 => self.receive_buffer(input)?,
                9 => self.offer(port),
                10 => self.host_writes(port, input.u16()?),
                11 => self.host_reads(port),
                12 => self.peers[usize::from(port)] = None,
                13 => {
                    if let Some(peer) = &self.peers[usize::from(port)] {
                        let _ = peer.shutdown(Shutdown::Write);
                    }
                }
                14 => {
                    if let Some(peer) = &self.peers[usize::from(port)] {
                        let _ = peer.shutdown(Shutdown::Read);
                    }
                }
                _ => {}
            }
            self.turn();
        }
    }

    /// A packet for a stream that may well exist.
    fn packet(&mut self, input: &mut Input<'_>, port: u8) -> Option<()> {
        let operation = input.u8()?;
        let length = u32::from(input.u16()?);
        let (buffer, forwarded) = (input.u32()?, input.u32()?);
        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend(u64::from(GUEST_CID).to_le_bytes());
        header.extend(u64::from(HOST_CID).to_le_bytes());
        header.extend((1000 + u32::from(port)).to_le_bytes());
        header.extend((FIRST_PORT + u32::from(port)).to_le_bytes());
        // Sometimes it promises more than it brings.
        let brought = if operation & 0x80 == 0 {
            length
        } else {
            length / 2
        };
        header.extend(length.to_le_bytes());
        header.extend(STREAM.to_le_bytes());
        header.extend(u16::from(operation & 0x7).to_le_bytes());
        header.extend(u32::from(operation >> 3 & 0x3).to_le_bytes());
        header.extend(buffer.to_le_bytes());
        header.extend(forwarded.to_le_bytes());
        self.send(&header, brought);
        Some(())
    }

    fn wild_packet(&mut self, input: &mut Input<'_>) {
        let header = input.bytes(HEADER as usize);
        self.send(header, 0);
    }

    fn send(&mut self, header: &[u8], behind: u32) {
        self.ram.write_slice(header, GuestAddress(SENT)).unwrap();
        let head = Buffer {
            address: SENT,
            length: u32::try_from(header.len()).unwrap(),
            writable: false,
        };
        let data = Buffer {
            address: SENT + 0x100,
            length: behind,
            writable: false,
        };
        self.sent += u64::from(behind);
        if behind == 0 {
            self.transmit.offer(self.ram, &[head]);
        } else {
            self.transmit.offer(self.ram, &[head, data]);
        }
    }

    fn receive_buffer(&mut self, input: &mut Input<'_>) -> Option<()> {
        let length = u32::from(input.u16()?) % u32::try_from(RECEIVED_BYTES).unwrap();
        let slot = u64::from(length) % u64::from(QUEUE_SIZE);
        let buffer = Buffer {
            address: RECEIVED + slot * RECEIVED_BYTES,
            length,
            writable: true,
        };
        self.receive.offer(self.ram, &[buffer]);
        Some(())
    }

    fn offer(&mut self, port: u8) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let name = HostPort(FIRST_PORT + u32::from(port));
        self.slot
            .with_device(|vsock| vsock.offer(name, theirs.into()));
        self.peers[usize::from(port)] = Some(ours);
    }

    fn host_writes(&mut self, port: u8, length: u16) {
        if let Some(peer) = &mut self.peers[usize::from(port)] {
            let _ = peer.write(&vec![port; length.into()]);
        }
    }

    fn host_reads(&mut self, port: u8) {
        let Some(peer) = &mut self.peers[usize::from(port)] else {
            return;
        };
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = peer.read(&mut bytes) {
            self.arrived += u64::try_from(length).unwrap();
        }
        assert!(self.arrived <= self.sent, "bytes from nowhere");
    }

    /// What the VMM's event loop does, once.
    fn turn(&mut self) {
        let mut events = [EpollEvent::default(); 8];
        let ready = self.poller.wait(0, &mut events).unwrap();
        for event in &events[..ready] {
            let key = StreamKey::from_token(event.data());
            let set = event.event_set();
            self.slot.with_device(|vsock| vsock.socket_ready(key, set));
        }
        self.slot.drain(self.ram);
        while let Some((head, length)) = self.receive.used(self.ram) {
            check(head, length);
        }
        while self.transmit.used(self.ram).is_some() {}
    }
}

/// What reaches the guest is a whole packet in a buffer that it gave.
fn check(head: u32, length: u32) {
    assert!(head < u32::from(QUEUE_SIZE));
    // The driver reuses descriptors at once, so several buffers may have had
    // this one: the longest length that any can have is checked.
    assert!(u64::from(length) < RECEIVED_BYTES);
    assert!(length == 0 || length >= HEADER, "half a header");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VIRTIO_VSOCK_OP_RW.
    const DATA: u16 = 5;

    /// The corpus is only worth something if well-formed input gets through.
    #[test]
    fn bytes_pass_in_both_directions() {
        with_ram(|ram| {
            let mut play = Play::new(ram);
            play.work(&mut Input(&seed()));
            assert_eq!(play.sent, 100);
            assert_eq!(play.arrived, 100, "guest to host");
            // Of its length, 0x801, the buffer has the second place.
            let header = GuestAddress(RECEIVED + RECEIVED_BYTES);
            let operation: u16 = ram.read_obj(GuestAddress(header.0 + 30)).unwrap();
            assert_eq!(operation, DATA, "host to guest");
        });
    }

    /// Offer a port, connect, send 100 bytes, receive 50.
    fn seed() -> Vec<u8> {
        let mut seed = vec![9];
        seed.extend([0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]); // request, 64 KiB of room
        seed.extend([6, 0x00, 0x08]); // buffer for the response
        seed.extend([0, 5, 100, 0, 0, 0, 1, 0, 0, 0, 0, 0]); // data
        seed.push(11);
        seed.extend([10, 50, 0]);
        seed.extend([6, 0x01, 0x08]); // buffer for the data
        seed.push(15);
        seed
    }
}
