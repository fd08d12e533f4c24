//! Ports for streams, each given away once.

use std::sync::atomic::{AtomicU32, Ordering};

use protocol::stream::HostPort;

/// The ports that are left.
#[derive(Debug)]
pub(crate) struct Ports(AtomicU32);

impl Default for Ports {
    fn default() -> Self {
        Self(AtomicU32::new(HostPort::FIRST_STREAM.0))
    }
}

impl Ports {
    /// A port that nobody has had. They start again after four billion: the
    /// streams of then are long gone, or the guest has itself to blame.
    pub(crate) fn next(&self) -> HostPort {
        let mut port = self.0.fetch_add(1, Ordering::Relaxed);
        while port < HostPort::FIRST_STREAM.0 || port == u32::MAX {
            port = self.0.fetch_add(1, Ordering::Relaxed);
        }
        HostPort(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_start_again_above_the_fixed_ones() {
        let ports = Ports(AtomicU32::new(u32::MAX - 1));
        assert_eq!(ports.next(), HostPort(u32::MAX - 1));
        assert_eq!(ports.next(), HostPort::FIRST_STREAM);
    }
}
