use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use protocol::stream::{GUEST_CID, HOST_CID, HostPort};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use super::{BUFFER, StreamKey, Vsock};
use crate::virtio::testing::Rig;

const PORT: u32 = 1024;
const HEADER: usize = 44;
/// More than any packet here.
const ROOM: u32 = 8 << 10;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// What the guest got: operation, flags, the host's forwarded count, data.
#[derive(Debug, Eq, PartialEq)]
struct Packet {
    operation: u16,
    flags: u32,
    forwarded: u32,
    data: Vec<u8>,
}

struct Guest {
    rig: Rig<Vsock>,
    poller: Arc<Epoll>,
    /// What it says of itself in each packet.
    buffer: u32,
    forwarded: u32,
}

impl Guest {
    fn new() -> Self {
        let poller = Arc::new(Epoll::new().unwrap());
        Self {
            rig: Rig::new(Vsock::new(poller.clone())),
            poller,
            buffer: 64 << 10,
            forwarded: 0,
        }
    }

    fn offer(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.rig.device.offer(HostPort(PORT), theirs.into());
        ours
    }

    fn connected() -> (Self, UnixStream) {
        let mut guest = Self::new();
        let stream = guest.offer();
        guest.send(REQUEST, 0, &[]);
        assert_eq!(guest.receive().unwrap().operation, RESPONSE);
        (guest, stream)
    }

    fn send(&mut self, operation: u16, flags: u32, data: &[u8]) {
        let mut packet = Vec::new();
        packet.extend(u64::from(GUEST_CID).to_le_bytes());
        packet.extend(u64::from(HOST_CID).to_le_bytes());
        packet.extend(7u32.to_le_bytes());
        packet.extend(PORT.to_le_bytes());
        packet.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        packet.extend(1u16.to_le_bytes());
        packet.extend(operation.to_le_bytes());
        packet.extend(flags.to_le_bytes());
        packet.extend(self.buffer.to_le_bytes());
        packet.extend(self.forwarded.to_le_bytes());
        packet.extend(data);
        self.rig.offer(1, &packet, 0);
        self.turn();
        assert!(self.rig.used(1).is_some());
    }

    /// What the event loop does.
    fn turn(&mut self) {
        let mut events = [EpollEvent::default(); 4];
        let ready = self.poller.wait(0, &mut events).unwrap();
        for event in &events[..ready] {
            let key = StreamKey::from_token(event.data());
            self.rig.device.socket_ready(key, event.event_set());
        }
        self.rig.drain();
    }

    /// Gives a buffer if none is waiting, and takes a packet.
    fn receive(&mut self) -> Option<Packet> {
        self.turn();
        if let Some(used) = self.rig.used(0) {
            return Some(parse(&used.bytes));
        }
        self.rig.offer(0, &[], ROOM);
        self.turn();
        self.rig.used(0).map(|used| parse(&used.bytes))
    }
}

fn parse(bytes: &[u8]) -> Packet {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(bytes[..8], u64::from(HOST_CID).to_le_bytes());
    assert_eq!(bytes[8..16], u64::from(GUEST_CID).to_le_bytes());
    assert_eq!((u32_at(16), u32_at(20)), (PORT, 7));
    let operation = u16::from_le_bytes([bytes[30], bytes[31]]);
    if operation != RESET {
        assert_eq!(u32_at(36), BUFFER, "what the host has room for");
    }
    let data = bytes[HEADER..].to_vec();
    assert_eq!(usize::try_from(u32_at(24)).unwrap(), data.len());
    Packet {
        operation,
        flags: u32_at(32),
        forwarded: u32_at(40),
        data,
    }
}

#[test]
fn port_that_was_not_given_is_refused() {
    let mut guest = Guest::new();
    guest.send(REQUEST, 0, &[]);
    assert_eq!(guest.receive().unwrap().operation, RESET);
    assert_eq!(guest.receive(), None);
}

#[test]
fn port_works_once() {
    let (mut guest, _stream) = Guest::connected();
    guest.send(RESET, 0, &[]);
    guest.send(REQUEST, 0, &[]);
    assert_eq!(guest.receive().unwrap().operation, RESET);
}

#[test]
fn bytes_pass_both_ways() {
    let (mut guest, mut stream) = Guest::connected();
    guest.send(DATA, 0, b"from the guest");
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"from the guest");
    stream.write_all(b"from the host").unwrap();
    assert_eq!(guest.receive().unwrap().data, b"from the host");
}

#[test]
fn host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.buffer = 10;
    let mut stream = guest.offer();
    guest.send(REQUEST, 0, &[]);
    assert_eq!(guest.receive().unwrap().operation, RESPONSE);
    stream.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(guest.receive().unwrap().data, b"0123456789");
    assert_eq!(guest.receive(), None, "the guest has no room");
    guest.forwarded = 10;
    guest.send(CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.receive().unwrap().data, b"abcdef");
}

#[test]
fn guest_beyond_its_credit_is_reset() {
    let (mut guest, stream) = Guest::connected();
    let piece = vec![0; 60 << 10];
    // Nobody reads: the socket's buffer fills, then the stream's own.
    let mut sent = 0;
    let last = loop {
        guest.send(DATA, 0, &piece);
        sent += piece.len();
        if let Some(packet) = guest.receive()
            && packet.operation == RESET
        {
            break packet;
        }
        assert!(sent < 4 << 20, "there is no limit");
    };
    assert_eq!(last.operation, RESET);
    drop(stream);
}

#[test]
fn credit_is_told_when_asked_and_when_much_is_free() {
    let (mut guest, _stream) = Guest::connected();
    guest.send(DATA, 0, b"12345");
    guest.send(CREDIT_REQUEST, 0, &[]);
    let packet = guest.receive().unwrap();
    assert_eq!((packet.operation, packet.forwarded), (CREDIT_UPDATE, 5));
    let piece = vec![0; 32 << 10];
    guest.send(DATA, 0, &piece);
    assert_eq!(guest.receive(), None, "little has become free");
    guest.send(DATA, 0, &piece);
    let packet = guest.receive().unwrap();
    assert_eq!(
        (packet.operation, packet.forwarded),
        (CREDIT_UPDATE, 5 + (64 << 10))
    );
}

#[test]
fn end_of_the_guests_data_is_passed_on_and_the_other_way_stays() {
    let (mut guest, mut stream) = Guest::connected();
    guest.send(DATA, 0, b"last");
    guest.send(SHUTDOWN, 2, &[]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().unwrap().data, b"answer");
}

#[test]
fn end_of_the_hosts_data_comes_after_the_data() {
    let (mut guest, mut stream) = Guest::connected();
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().unwrap().data, b"last");
    let packet = guest.receive().unwrap();
    assert_eq!((packet.operation, packet.flags), (SHUTDOWN, 2));
    guest.send(DATA, 0, b"still heard");
    let mut bytes = [0; 64];
    assert_eq!(stream.read(&mut bytes).unwrap(), 11);
}

#[test]
fn reset_of_the_guest_ends_the_hosts_stream_after_its_data() {
    let (mut guest, mut stream) = Guest::connected();
    guest.send(DATA, 0, b"last");
    guest.send(RESET, 0, &[]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
    assert_eq!(guest.receive(), None);
}

#[test]
fn hosts_end_that_goes_away_is_told() {
    let (mut guest, stream) = Guest::connected();
    drop(stream);
    let packet = guest.receive().unwrap();
    assert_eq!((packet.operation, packet.flags), (SHUTDOWN, 2));
    guest.send(DATA, 0, b"into nothing");
    let packet = guest.receive().unwrap();
    assert_eq!((packet.operation, packet.flags), (SHUTDOWN, 1));
}
