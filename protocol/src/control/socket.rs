//! How it is said: one datagram, its descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message in bytes; longer ones are refused on both sides.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors beside one message (the kernel's own limit is 253).
pub const MAX_DESCRIPTORS: usize = 240;

/// A control message that could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("{act} a control message")]
    Io {
        /// `send` or `receive`.
        act: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The message is none of ours.
    #[error("decode a control message of {length} bytes")]
    Malformed {
        /// Its length.
        length: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Longer than [`MAX_MESSAGE`] or more descriptors than [`MAX_DESCRIPTORS`].
    #[error("control message with {length} bytes and {descriptors} descriptors is too large")]
    TooLarge {
        /// Bytes.
        length: usize,
        /// Descriptors.
        descriptors: usize,
    },
    /// The other side has closed its end.
    #[error("the control socket is closed")]
    Closed,
}

impl ControlError {
    /// Whether the socket is non-blocking and has nothing to give or no room.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A control socketpair, closed on exec: the keeper's end, the VMM's end.
///
/// # Errors
///
/// The system's, when it has no descriptor left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?)
}

/// Sends one message with its descriptors; they stay the caller's.
///
/// # Errors
///
/// [`ControlError::TooLarge`] before anything is sent, else the system's.
pub fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(message)
        .map_err(|source| ControlError::Malformed { length: 0, source })?;
    if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(ControlError::TooLarge {
            length: bytes.len(),
            descriptors: descriptors.len(),
        });
    }
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let beside = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    loop {
        let parts = [IoSlice::new(&bytes)];
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &parts,
            beside,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ControlError::Closed),
            Err(errno) => {
                return Err(ControlError::Io {
                    act: "send",
                    source: errno.into(),
                });
            }
        }
    }
}

/// Receives one message and its descriptors, closed on exec.
///
/// # Errors
///
/// [`ControlError::Closed`] at the end, [`ControlError::would_block`] when a
/// non-blocking socket has nothing, else what was wrong.
pub fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<(M, Vec<OwnedFd>), ControlError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let mut reset = false;
    let (length, flags, descriptors) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(received) => {
                let mut descriptors = Vec::new();
                if let Ok(messages) = received.cmsgs() {
                    for message in messages {
                        if let ControlMessageOwned::ScmRights(raw) = message {
                            descriptors.extend(raw.into_iter().map(sys::own));
                        }
                    }
                }
                break (received.bytes, received.flags, descriptors);
            }
            Err(Errno::EINTR) => {}
            // The other side has ended without reading everything. What it said
            // before is still there, behind this error.
            Err(Errno::ECONNRESET) if !reset => reset = true,
            Err(Errno::ECONNRESET) => return Err(ControlError::Closed),
            Err(errno) => {
                return Err(ControlError::Io {
                    act: "receive",
                    source: errno.into(),
                });
            }
        }
    };
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(ControlError::TooLarge {
            length,
            descriptors: descriptors.len(),
        });
    }
    if length == 0 {
        return Err(ControlError::Closed);
    }
    let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())
        .map_err(|source| ControlError::Malformed { length, source })?;
    Ok((message, descriptors))
}

mod sys {
    //! Ownership of descriptors that the kernel has just installed.

    use std::os::fd::{FromRawFd, OwnedFd, RawFd};

    pub(super) fn own(descriptor: RawFd) -> OwnedFd {
        // SAFETY: the kernel installed this descriptor for the SCM_RIGHTS
        // message just received, and the message is read once: nobody else
        // knows the number.
        unsafe { OwnedFd::from_raw_fd(descriptor) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::control::{Fd, ToVmm};

    #[test]
    fn message_arrives_with_working_descriptors() {
        let (keeper, vmm) = pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        send(
            keeper.as_fd(),
            &ToVmm::Probe { kvm: Fd(0) },
            &[write.as_fd()],
        )
        .unwrap();
        drop(write);
        let (message, mut descriptors) = receive::<ToVmm>(vmm.as_fd()).unwrap();
        assert_eq!(message, ToVmm::Probe { kvm: Fd(0) });
        File::from(descriptors.remove(0)).write_all(b"x").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn nothing_to_receive_would_block_and_a_closed_end_is_closed() {
        let (keeper, vmm) = pair().unwrap();
        assert!(receive::<ToVmm>(vmm.as_fd()).unwrap_err().would_block());
        drop(keeper);
        assert!(matches!(
            receive::<ToVmm>(vmm.as_fd()),
            Err(ControlError::Closed)
        ));
    }

    #[test]
    fn last_words_are_heard_although_something_was_not_read() {
        let (keeper, vmm) = pair().unwrap();
        send(keeper.as_fd(), &ToVmm::Probe { kvm: Fd(0) }, &[]).unwrap();
        send(vmm.as_fd(), &"last words", &[]).unwrap();
        drop(vmm);
        let (message, _) = receive::<String>(keeper.as_fd()).unwrap();
        assert_eq!(message, "last words");
        assert!(matches!(
            receive::<String>(keeper.as_fd()),
            Err(ControlError::Closed)
        ));
    }

    #[test]
    fn oversized_message_is_refused_before_it_is_sent() {
        let (keeper, vmm) = pair().unwrap();
        let error = send(keeper.as_fd(), &"x".repeat(MAX_MESSAGE), &[]).unwrap_err();
        assert!(matches!(error, ControlError::TooLarge { .. }));
        assert!(receive::<ToVmm>(vmm.as_fd()).unwrap_err().would_block());
    }

    #[test]
    fn malformed_message_is_an_error() {
        let (keeper, vmm) = pair().unwrap();
        send(keeper.as_fd(), &"nonsense", &[]).unwrap();
        assert!(matches!(
            receive::<ToVmm>(vmm.as_fd()),
            Err(ControlError::Malformed { .. })
        ));
    }
}
