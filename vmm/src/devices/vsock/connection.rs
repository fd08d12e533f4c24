//! One stream: a socket on the host's side, credit on the guest's.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;
use std::io;
use std::num::Wrapping;
use std::os::fd::{AsFd, OwnedFd};

use super::packet::{HEADER_BYTES, NO_RECEIVE, NO_SEND, Operation, Packet};
use crate::sys;
use crate::virtio::queue::{GuestSlice, copy_from, part, total};

/// Bytes from the guest that one stream holds at most: its credit.
pub const BUFFER: u32 = 256 << 10;

/// The guest learns of free room when so much has become free since it was
/// last told: often enough never to wait, seldom enough to be cheap.
const CREDIT_STEP: u32 = BUFFER / 4;

/// A stream's name: both ports.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamKey {
    /// The guest's port.
    pub guest_port: u32,
    /// The host's port.
    pub host_port: u32,
}

impl StreamKey {
    /// The key as one number, for epoll.
    #[must_use]
    pub fn token(self) -> u64 {
        u64::from(self.guest_port) << 32 | u64::from(self.host_port)
    }

    /// The key of a token.
    #[must_use]
    pub fn from_token(token: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = token.to_le_bytes();
        Self {
            guest_port: u32::from_le_bytes([e, f, g, h]),
            host_port: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// What the device has to do with a connection after an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Keep it.
    Keep,
    /// Everything is delivered and the guest knows it has ended: drop it.
    Drop,
}

/// What came of asking a connection for a packet.
#[derive(Debug)]
pub(super) enum Filled {
    /// A packet of so many bytes, header included, is in the buffers.
    Packet(u32, Next),
    /// Nothing to say now.
    Nothing,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    key: StreamKey,
    socket: OwnedFd,

    // Guest to host.
    /// Accepted from the guest, not yet taken by the socket.
    pending: VecDeque<u8>,
    /// All that the guest has sent, modulo 2^32.
    received: Wrapping<u32>,
    /// All that has left this stream's buffer.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that the guest knows.
    told: Wrapping<u32>,
    guest_sends: bool,
    /// The host's side still reads.
    host_receives: bool,

    // Host to guest.
    guest_receives: bool,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// The socket may have something: worth a try.
    readable: bool,
    /// The socket's peer has closed; the end comes after what is still there.
    hang_up: bool,
    /// The end of the socket's data was reached.
    host_sends: bool,

    /// The guest has forgotten the connection; only `pending` keeps it.
    guest_gone: bool,
    owes_response: bool,
    owes_credit: bool,
    owes_shutdown: u32,
    owes_reset: bool,
    /// It waits in the device's list of connections with something to say.
    pub(super) listed: bool,
}

impl Connection {
    /// A connection that the guest has just requested.
    pub(super) fn new(key: StreamKey, socket: OwnedFd, request: &Packet) -> Self {
        Self {
            key,
            socket,
            pending: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            guest_sends: true,
            host_receives: true,
            guest_receives: true,
            guest_buffer: request.buffer,
            guest_forwarded: Wrapping(request.forwarded),
            sent: Wrapping(0),
            readable: true,
            hang_up: false,
            host_sends: true,
            guest_gone: false,
            owes_response: true,
            owes_credit: false,
            owes_shutdown: 0,
            owes_reset: false,
            listed: false,
        }
    }

    /// The stream's socket.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether [`Connection::fill`] may have something for the guest.
    pub(super) fn has_packet(&self) -> bool {
        !self.guest_gone
            && (self.owes_reset
                || self.owes_response
                || self.owes_credit
                || self.owes_shutdown != 0
                || (self.may_read() && self.credit() > 0))
    }

    fn may_read(&self) -> bool {
        self.readable && self.host_sends && self.guest_receives
    }

    /// Bytes that the guest has room for. A guest that says it has consumed
    /// more than was sent gets nothing.
    fn credit(&self) -> u32 {
        let outstanding = (self.sent - self.guest_forwarded).0;
        self.guest_buffer.saturating_sub(outstanding)
    }

    /// Takes a packet from the guest with its data.
    pub(super) fn take(&mut self, packet: &Packet, data: &[GuestSlice<'_>]) -> Next {
        if self.guest_gone {
            return Next::Keep;
        }
        self.guest_buffer = packet.buffer;
        self.guest_forwarded = Wrapping(packet.forwarded);
        match packet.operation {
            Operation::Data => return self.take_data(packet.length, data),
            Operation::Shutdown => {
                self.guest_sends &= packet.flags & NO_SEND == 0;
                if packet.flags & NO_RECEIVE != 0 && self.guest_receives {
                    self.guest_receives = false;
                    sys::shutdown(self.socket.as_fd(), sys::End::Read);
                }
                self.settle();
            }
            Operation::Reset => {
                self.guest_sends = false;
                self.guest_receives = false;
                self.guest_gone = true;
                self.settle();
            }
            Operation::CreditRequest => self.owes_credit = true,
            Operation::CreditUpdate => {}
            // The host opens nothing, and this stream is open already.
            Operation::Request | Operation::Response => return self.abort(),
        }
        self.next()
    }

    fn take_data(&mut self, length: u32, data: &[GuestSlice<'_>]) -> Next {
        let outstanding = (self.received - self.forwarded).0;
        if !self.guest_sends || length > BUFFER.saturating_sub(outstanding) {
            return self.abort(); // beyond its credit, or after its end
        }
        self.received += length;
        let mut done = 0;
        while self.pending.is_empty() && self.host_receives && done < total(data) {
            match sys::send(self.socket.as_fd(), &part(data, done, usize::MAX)) {
                Ok(sent) => done = done.saturating_add(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.host_stops_receiving(),
            }
        }
        if self.host_receives {
            for slice in part(data, done, usize::MAX) {
                let mut piece = [0; 4096];
                for start in (0..slice.len()).step_by(piece.len()) {
                    let copied = copy_from(&part(&[slice], start, piece.len()), &mut piece);
                    self.pending.extend(piece.get(..copied).unwrap_or_default());
                }
            }
        }
        self.settle();
        self.next()
    }

    /// Gives the socket what waits for it. Called when it has room again.
    pub(super) fn flush(&mut self) -> Next {
        while self.host_receives {
            let (first, _) = self.pending.as_slices();
            if first.is_empty() {
                break;
            }
            match sys::send_bytes(self.socket.as_fd(), first) {
                Ok(sent) => {
                    self.pending.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.host_stops_receiving(),
            }
        }
        self.settle();
        self.next()
    }

    fn host_stops_receiving(&mut self) {
        self.host_receives = false;
        self.owes_shutdown |= NO_RECEIVE;
    }

    /// Draws the conclusions after anything has changed.
    fn settle(&mut self) {
        if !self.host_receives {
            self.pending.clear();
        }
        if self.pending.is_empty() {
            self.pending = VecDeque::new(); // memory only while it is needed
            if !self.guest_sends && self.host_receives {
                self.host_receives = false;
                sys::shutdown(self.socket.as_fd(), sys::End::Write);
            }
            if !self.guest_sends && !self.guest_receives {
                self.owes_reset = true;
            }
        }
        let waiting = u32::try_from(self.pending.len()).unwrap_or(BUFFER);
        self.forwarded = self.received - Wrapping(waiting);
        if (self.forwarded - self.told).0 >= CREDIT_STEP && self.guest_sends {
            self.owes_credit = true;
        }
    }

    /// The guest has broken the rules: its stream ends now.
    pub(super) fn abort(&mut self) -> Next {
        self.pending.clear();
        self.guest_sends = false;
        self.guest_receives = false;
        self.settle();
        self.next()
    }

    fn next(&self) -> Next {
        if self.guest_gone && self.pending.is_empty() {
            Next::Drop
        } else {
            Next::Keep
        }
    }

    /// Notes what epoll says of the socket.
    pub(super) fn socket_ready(&mut self, readable: bool, writable: bool, hang_up: bool) -> Next {
        self.readable |= readable || hang_up;
        self.hang_up |= hang_up;
        if writable && !self.pending.is_empty() {
            return self.flush();
        }
        self.next()
    }

    /// Writes the next packet for the guest into `buffers`.
    pub(super) fn fill(&mut self, buffers: &[GuestSlice<'_>]) -> Filled {
        if self.owes_reset {
            return self.write(buffers, Operation::Reset, 0, 0, Next::Drop);
        }
        if self.owes_response {
            self.owes_response = false;
            return self.write(buffers, Operation::Response, 0, 0, Next::Keep);
        }
        if self.may_read() {
            let room = total(buffers).saturating_sub(HEADER_BYTES);
            let wanted = room.min(usize::try_from(self.credit()).unwrap_or(0));
            if wanted > 0 {
                match self.receive(&part(buffers, HEADER_BYTES, wanted), wanted) {
                    0 => {}
                    length => {
                        self.sent += length;
                        return self.write(buffers, Operation::Data, length, 0, Next::Keep);
                    }
                }
            }
        }
        if self.owes_shutdown != 0 {
            let flags = std::mem::take(&mut self.owes_shutdown);
            return self.write(buffers, Operation::Shutdown, 0, flags, Next::Keep);
        }
        if self.owes_credit {
            return self.write(buffers, Operation::CreditUpdate, 0, 0, Next::Keep);
        }
        Filled::Nothing
    }

    /// Reads from the socket; 0 when nothing is there now or ever.
    fn receive(&mut self, slices: &[GuestSlice<'_>], wanted: usize) -> u32 {
        loop {
            match sys::receive(self.socket.as_fd(), slices) {
                Ok(0) => {
                    self.host_sends = false;
                    self.owes_shutdown |= NO_SEND;
                    return 0;
                }
                Ok(length) => {
                    // Less than asked for: empty, and epoll will tell. Unless
                    // it has told already that the end follows.
                    self.readable = length == wanted || self.hang_up;
                    return u32::try_from(length).unwrap_or(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return 0;
                }
                Err(_) => {
                    self.host_sends = false;
                    self.owes_shutdown |= NO_SEND;
                    return 0;
                }
            }
        }
    }

    fn write(
        &mut self,
        buffers: &[GuestSlice<'_>],
        operation: Operation,
        length: u32,
        flags: u32,
        next: Next,
    ) -> Filled {
        let packet = Packet {
            guest_port: self.key.guest_port,
            host_port: self.key.host_port,
            operation,
            length,
            flags,
            buffer: BUFFER,
            forwarded: self.forwarded.0,
        };
        self.told = self.forwarded;
        self.owes_credit = false;
        Filled::Packet(write_packet(buffers, &packet), next)
    }
}

/// Puts a header in front of data that is already in place; returns the
/// length of the whole packet.
pub(super) fn write_packet(buffers: &[GuestSlice<'_>], packet: &Packet) -> u32 {
    let written = crate::virtio::queue::copy_to(buffers, &packet.encode());
    u32::try_from(written)
        .unwrap_or(0)
        .saturating_add(packet.length)
}
