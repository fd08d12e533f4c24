//! Who a process is to be, and the message that tells it.
//!
//! The agent resolves names only when the container's root exists, and the
//! child that made the root already waits then. So the identity travels in
//! the message that lets it go on.

use crate::error::{Failure, Result};

/// Ids of a process, and its home if its environment lacks one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Identity {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Becomes `HOME`.
    pub(crate) home: Option<String>,
}

/// Most supplementary groups of a process. Linux would take 65,536; nobody
/// has them, and the child needs room prepared.
pub(crate) const MOST_GROUPS: usize = 4096;

/// Longest path of a home (`PATH_MAX`).
const LONGEST_HOME: usize = 4096;

/// Room for any message.
pub(crate) const MESSAGE_ROOM: usize = 12 + 4 * MOST_GROUPS + LONGEST_HOME + 16;

impl Identity {
    /// The start message: uid, gid, number of groups, groups, then
    /// `HOME=…` with its zero byte, or nothing.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        if self.groups.len() > MOST_GROUPS {
            return Err(Failure::argument(format!(
                "process.user has {} groups, more than {MOST_GROUPS}",
                self.groups.len()
            )));
        }
        let count = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(64);
        for word in [self.uid, self.gid, count].iter().chain(&self.groups) {
            message.extend(word.to_le_bytes());
        }
        let home = self
            .home
            .as_deref()
            .filter(|home| home.len() < LONGEST_HOME && !home.as_bytes().contains(&0));
        if let Some(home) = home {
            message.extend(b"HOME=");
            message.extend(home.as_bytes());
            message.push(0);
        }
        Ok(message)
    }
}

/// A start message, taken apart in the child without allocating.
#[derive(Debug)]
pub(crate) struct Decoded<'m> {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Supplementary groups, four bytes each.
    groups: &'m [u8],
    /// `HOME=…` with its zero byte, or nothing.
    pub(crate) home: &'m [u8],
}

impl<'m> Decoded<'m> {
    /// `None` for anything but a message that [`Identity::encode`] made.
    pub(crate) fn new(message: &'m [u8]) -> Option<Self> {
        let (uid, rest) = word(message)?;
        let (gid, rest) = word(rest)?;
        let (count, rest) = word(rest)?;
        let length = usize::try_from(count).ok()?.checked_mul(4)?;
        let (groups, home) = rest.split_at_checked(length)?;
        Some(Self {
            uid,
            gid,
            groups,
            home,
        })
    }

    /// The supplementary groups.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        self.groups
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| u32::from_le_bytes(bytes))
    }
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_its_message() {
        let identity = Identity {
            uid: 1,
            gid: u32::MAX,
            groups: vec![2, 3],
            home: Some("/home/a".into()),
        };
        let message = identity.encode().unwrap();
        let decoded = Decoded::new(&message).unwrap();
        assert_eq!((decoded.uid, decoded.gid), (1, u32::MAX));
        assert_eq!(decoded.groups().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(decoded.home, b"HOME=/home/a\0");
    }

    #[test]
    fn identity_with_the_most_of_everything_fits() {
        let identity = Identity {
            groups: vec![0; MOST_GROUPS],
            home: Some("h".repeat(LONGEST_HOME - 1)),
            ..Identity::default()
        };
        assert!(identity.encode().unwrap().len() <= MESSAGE_ROOM);
        let identity = Identity {
            groups: vec![0; MOST_GROUPS + 1],
            ..identity
        };
        assert!(identity.encode().is_err());
    }

    #[test]
    fn short_message_is_refused() {
        let message = Identity {
            groups: vec![1],
            ..Identity::default()
        }
        .encode()
        .unwrap();
        for length in 0..message.len() {
            assert!(Decoded::new(&message[..length]).is_none(), "{length}");
        }
    }
}
