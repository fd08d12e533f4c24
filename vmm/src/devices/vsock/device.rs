//! The device: from queues to connections and back.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use protocol::stream::{GUEST_CID, HostPort};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Filled, Next, StreamKey, write_packet};
use super::packet::{HEADER_BYTES, Operation, Packet};
use crate::virtio::queue::{copy_from, part, total};
use crate::virtio::{Chain, Device, QueueFault, Queues};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Streams that may be open at once.
const MOST_CONNECTIONS: usize = 1024;
/// Streams that may wait for the guest to open them. It can make the keeper
/// offer more, but not have more: those beyond are closed.
const MOST_OFFERS: usize = 1024;
/// Refusals that wait for room in the receive queue; the guest's further
/// attempts then time out instead.
const MOST_REFUSALS: usize = 256;
/// Packets to the guest per call, for fairness to the other devices.
const BATCH: usize = 512;

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    poller: Arc<Epoll>,
    offered: HashMap<HostPort, OwnedFd>,
    connections: HashMap<StreamKey, Connection>,
    /// Connections with something for the guest, served in turn.
    speakers: VecDeque<StreamKey>,
    refusals: VecDeque<StreamKey>,
    config: [u8; 8],
}

impl Vsock {
    /// A device without streams. Its sockets are watched by `poller`, edge
    /// triggered, under [`StreamKey::token`]; whoever waits there passes the
    /// events to [`Vsock::socket_ready`].
    #[must_use]
    pub fn new(poller: Arc<Epoll>) -> Self {
        Self {
            poller,
            offered: HashMap::new(),
            connections: HashMap::new(),
            speakers: VecDeque::new(),
            refusals: VecDeque::new(),
            config: u64::from(GUEST_CID).to_le_bytes(),
        }
    }

    /// The guest's next connection to `port` gets `socket`.
    pub fn offer(&mut self, port: HostPort, socket: OwnedFd) {
        // Linux's "any port" names no port; its tokens are the event loop's.
        if port.0 != u32::MAX && self.offered.len() < MOST_OFFERS {
            self.offered.insert(port, socket);
        }
    }

    /// Notes that a stream's socket has become readable, writable or has lost
    /// its peer. The device wants to be drained afterwards.
    pub fn socket_ready(&mut self, key: StreamKey, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return; // it ended in the same round
        };
        let gone = EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR;
        let next = connection.socket_ready(
            events.contains(EventSet::IN),
            events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR),
            events.intersects(gone),
        );
        self.follow_up(key, next);
    }

    /// Puts a connection where it belongs after something happened to it.
    fn follow_up(&mut self, key: StreamKey, next: Next) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if next == Next::Drop {
            let socket = connection.socket().as_raw_fd();
            // It may have duplicates elsewhere, so closing is not enough.
            let _ = self
                .poller
                .ctl(ControlOperation::Delete, socket, EpollEvent::default());
            self.connections.remove(&key);
        } else if connection.has_packet() && !connection.listed {
            connection.listed = true;
            self.speakers.push_back(key);
        }
    }

    fn transmit(&mut self, chain: &Chain<'_>) {
        let mut header = [0; HEADER_BYTES];
        if copy_from(chain.readable(), &mut header) != HEADER_BYTES {
            return;
        }
        let Some(packet) = Packet::parse(&header) else {
            return;
        };
        let length = usize::try_from(packet.length).unwrap_or(usize::MAX);
        let data = part(chain.readable(), HEADER_BYTES, length);
        let key = StreamKey {
            guest_port: packet.guest_port,
            host_port: packet.host_port,
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            // A packet that promises more than it brings breaks its stream.
            let next = if total(&data) == length {
                connection.take(&packet, &data)
            } else {
                connection.abort()
            };
            self.follow_up(key, next);
            return;
        }
        if packet.operation == Operation::Request && self.open(key, &packet).is_some() {
            self.follow_up(key, Next::Keep);
        } else if packet.operation != Operation::Reset && self.refusals.len() < MOST_REFUSALS {
            self.refusals.push_back(key);
        }
    }

    /// Connects the guest to the socket that is offered under its port.
    fn open(&mut self, key: StreamKey, request: &Packet) -> Option<()> {
        if self.connections.len() >= MOST_CONNECTIONS {
            return None;
        }
        let socket = self.offered.remove(&HostPort(key.host_port))?;
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, key.token());
        self.poller
            .ctl(ControlOperation::Add, socket.as_raw_fd(), event)
            .ok()?;
        self.connections
            .insert(key, Connection::new(key, socket, request));
        Some(())
    }

    /// Gives the guest packets while there are packets and buffers.
    fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        for _ in 0..BATCH {
            if self.speakers.is_empty() && self.refusals.is_empty() {
                return queues.settle(RECEIVE);
            }
            let Some(chain) = queues.pop(RECEIVE)? else {
                if queues.arm(RECEIVE)? {
                    continue;
                }
                return queues.settle(RECEIVE);
            };
            if total(chain.writable()) < HEADER_BYTES {
                queues.complete(RECEIVE, chain.head(), 0)?;
                continue;
            }
            match self.next_packet(&chain) {
                Some(length) => queues.complete(RECEIVE, chain.head(), length)?,
                None => queues.put_back(RECEIVE),
            }
        }
        queues.again = true;
        queues.settle(RECEIVE)
    }

    /// Fills `chain` with one packet, `None` if nobody has one after all.
    fn next_packet(&mut self, chain: &Chain<'_>) -> Option<u32> {
        if let Some(key) = self.refusals.pop_front() {
            let packet = Packet {
                guest_port: key.guest_port,
                host_port: key.host_port,
                operation: Operation::Reset,
                length: 0,
                flags: 0,
                buffer: 0,
                forwarded: 0,
            };
            return Some(write_packet(chain.writable(), &packet));
        }
        while let Some(key) = self.speakers.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.listed = false;
            match connection.fill(chain.writable()) {
                Filled::Packet(length, next) => {
                    self.follow_up(key, next);
                    return Some(length);
                }
                Filled::Nothing => {}
            }
        }
        None
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Receive, transmit, events (of which there are none).
        &[256, 256, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        queues.serve(TRANSMIT, |chain| {
            self.transmit(chain);
            0
        })?;
        self.receive(queues)
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.speakers.clear();
        self.refusals.clear();
    }
}
