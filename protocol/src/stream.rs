//! Ports of the guest's vsock and the names under which they travel.
//!
//! Every stream is opened by the guest: the keeper first gives the VMM one
//! end of a socketpair for a port ([`crate::control::ToVmm::Stream`]), then
//! tells the agent the port. A port therefore works exactly once, nothing
//! listens, nothing is dialled in a loop, and a connection to a port that was
//! never given is refused by the VMM.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The host's address on every guest's vsock (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;

/// The guest's own address; local to one VM, so it can be the same for all.
pub const GUEST_CID: u32 = 3;

/// A port on the host's side of a guest's vsock.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostPort(pub u32);

impl HostPort {
    /// The agent connects here first and serves ttrpc on the connection.
    pub const AGENT: Self = Self(1024);

    /// The agent's conversation with the broker ([`crate::news`]), when there
    /// are shared directories.
    pub const NEWS: Self = Self(1025);

    /// The first port that the keeper gives to standard streams.
    pub const FIRST_STREAM: Self = Self(2048);
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A standard stream's address in the Task service's `stdin`, `stdout` and
/// `stderr` fields: `vsock:PORT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamAddress(pub HostPort);

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vsock:{}", self.0)
    }
}

/// A text that is no [`StreamAddress`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("stream address {text:?} is not of the form vsock:PORT")]
pub struct BadStreamAddress {
    text: String,
}

impl FromStr for StreamAddress {
    type Err = BadStreamAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("vsock:")
            .filter(|port| !port.starts_with('+'))
            .and_then(|port| port.parse().ok())
            .map(|port| Self(HostPort(port)))
            .ok_or_else(|| BadStreamAddress { text: text.into() })
    }
}

/// The keeper's answer on a forwarded socket's control stream, where each
/// byte that the agent writes asks for one connection to the host's socket;
/// answers come in order.
///
/// ```text
///  container ──connect──▶ agent ──1 byte──▶ keeper ──connect──▶ host's socket
///                               ◀─Dialled──        ──that socket──▶ nerite-vmm
///                         agent ──vsock, Dialled::port───────────────▲
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialled {
    /// The host's server waits behind this port.
    Port(HostPort),
    /// Nobody listens; the system's error number.
    Refused(i32),
}

impl Dialled {
    /// Bytes of an answer: port and error number, little-endian, one of them
    /// 0.
    pub const BYTES: usize = 8;

    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let (port, errno) = match self {
            Self::Port(port) => (port.0, 0),
            Self::Refused(errno) => (0, errno.max(1)),
        };
        let mut bytes = [0; Self::BYTES];
        for (to, from) in bytes
            .iter_mut()
            .zip(port.to_le_bytes().into_iter().chain(errno.to_le_bytes()))
        {
            *to = from;
        }
        bytes
    }

    /// As it has travelled.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        match i32::from_le_bytes([e, f, g, h]) {
            0 => Self::Port(HostPort(u32::from_le_bytes([a, b, c, d]))),
            errno => Self::Refused(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_address_survives_its_text() {
        let address = StreamAddress(HostPort(2049));
        assert_eq!(address.to_string().parse(), Ok(address));
    }

    #[test]
    fn dialled_survives_its_bytes() {
        for answer in [Dialled::Port(HostPort(u32::MAX)), Dialled::Refused(111)] {
            assert_eq!(Dialled::from_bytes(answer.to_bytes()), answer);
        }
    }

    #[test]
    fn stream_address_refuses_other_forms() {
        for text in [
            "",
            "vsock:",
            "vsock:+1",
            "vsock:-1",
            "vsock:4294967296",
            "unix:1",
            "/a",
        ] {
            assert!(text.parse::<StreamAddress>().is_err(), "{text}");
        }
    }
}
