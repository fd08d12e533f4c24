//! The packet header (virtio 1.2, section 5.10.6), checked once.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use protocol::stream::{GUEST_CID, HOST_CID};

/// Bytes of a header on the wire.
pub(super) const HEADER_BYTES: usize = 44;

const TYPE_STREAM: u16 = 1;

/// Shutdown flag: the sender of the packet will not receive any more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Shutdown flag: the sender of the packet will not send any more.
pub(super) const NO_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    /// Opens a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one, both directions at once.
    Reset,
    /// Ends directions; the flags say which.
    Shutdown,
    /// Carries data.
    Data,
    /// Carries only the credit that every packet has.
    CreditUpdate,
    /// Asks for a credit update.
    CreditRequest,
}

impl Operation {
    fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// One packet between the guest and the host, whichever way it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    /// The guest's port.
    pub(super) guest_port: u32,
    /// The host's port.
    pub(super) host_port: u32,
    /// What it is for.
    pub(super) operation: Operation,
    /// Bytes of data behind the header.
    pub(super) length: u32,
    /// Flags of a shutdown.
    pub(super) flags: u32,
    /// Bytes that the sender has room for in all.
    pub(super) buffer: u32,
    /// Bytes that the sender has consumed so far, modulo 2^32.
    pub(super) forwarded: u32,
}

impl Packet {
    /// A packet that the guest sent, `None` if it is not a stream packet of
    /// this guest to the host.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut rest = bytes.as_slice();
        let source = u64::from_le_bytes(take(&mut rest)?);
        let destination = u64::from_le_bytes(take(&mut rest)?);
        let guest_port = u32::from_le_bytes(take(&mut rest)?);
        let host_port = u32::from_le_bytes(take(&mut rest)?);
        let length = u32::from_le_bytes(take(&mut rest)?);
        let kind = u16::from_le_bytes(take(&mut rest)?);
        let operation = u16::from_le_bytes(take(&mut rest)?);
        let flags = u32::from_le_bytes(take(&mut rest)?);
        let buffer = u32::from_le_bytes(take(&mut rest)?);
        let forwarded = u32::from_le_bytes(take(&mut rest)?);
        let ours = source == u64::from(GUEST_CID)
            && destination == u64::from(HOST_CID)
            && kind == TYPE_STREAM;
        if !ours {
            return None;
        }
        Some(Self {
            guest_port,
            host_port,
            operation: Operation::from_wire(operation)?,
            length,
            flags,
            buffer,
            forwarded,
        })
    }

    /// The header of a packet to the guest.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &u64::from(HOST_CID).to_le_bytes());
        put(&mut rest, &u64::from(GUEST_CID).to_le_bytes());
        put(&mut rest, &self.host_port.to_le_bytes());
        put(&mut rest, &self.guest_port.to_le_bytes());
        put(&mut rest, &self.length.to_le_bytes());
        put(&mut rest, &TYPE_STREAM.to_le_bytes());
        put(&mut rest, &self.operation.to_wire().to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buffer.to_le_bytes());
        put(&mut rest, &self.forwarded.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*field)
}

fn put(rest: &mut &mut [u8], field: &[u8]) {
    if let Some((to, tail)) = std::mem::take(rest).split_at_mut_checked(field.len()) {
        to.copy_from_slice(field);
        *rest = tail;
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same packet as the other side would send it.
    fn swapped(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let (source, rest) = bytes.split_at_mut(8);
        source.swap_with_slice(&mut rest[..8]);
        let (source, rest) = bytes[16..].split_at_mut(4);
        source.swap_with_slice(&mut rest[..4]);
        bytes
    }

    proptest! {
        #[test]
        fn header_survives_the_wire(
            guest_port: u32, host_port: u32, operation in 1u16..8, length: u32,
            flags: u32, buffer: u32, forwarded: u32,
        ) {
            let packet = Packet {
                guest_port, host_port, length, flags, buffer, forwarded,
                operation: Operation::from_wire(operation).unwrap(),
            };
            prop_assert_eq!(Packet::parse(&swapped(packet.encode())), Some(packet));
        }

        #[test]
        fn parse_takes_any_bytes(bytes in proptest::array::uniform32(any::<u8>()), op: u16) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[30..32].copy_from_slice(&op.to_le_bytes());
            let _ = Packet::parse(&header);
        }
    }
}
