//! One run of `nerite-fs`: from the keeper's setup to the last channel's end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use protocol::broker::{Failure, Policy, Setup};
use protocol::control::{ControlError, Fd, receive, send};
use protocol::error::chain;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::device::Device;
use crate::jail::{self, JailError, Tree};
use crate::{serve, sys, watch};

/// A broker that could not serve.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The control socket failed.
    #[error("talk to the keeper")]
    Control(#[from] ControlError),
    /// The setup names a descriptor that did not come with it.
    #[error("descriptor {} did not come with the setup", .0.0)]
    Descriptor(Fd),
    /// The jail.
    #[error("confine the broker")]
    Jail(#[from] JailError),
    /// Anything else that the system refused.
    #[error("{act}")]
    System {
        /// What was tried.
        act: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

fn refused(act: &'static str) -> impl Fn(Errno) -> SessionError {
    move |errno| SessionError::System {
        act,
        source: errno.into(),
    }
}

/// Serves until the keeper closes the control socket.
///
/// # Errors
///
/// What could not even be reported to the keeper.
pub fn run(control: BorrowedFd<'_>) -> Result<(), SessionError> {
    sys::die_with_parent().map_err(refused("tie the broker to its keeper"))?;
    sys::one_arena();
    let (setup, descriptors) = loop {
        match receive::<Setup>(control) {
            Ok(received) => break received,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) if error.would_block() => wait(control)?,
            Err(error) => return Err(error.into()),
        }
    };
    match begin(setup, descriptors) {
        // The threads serve; the keeper's end of the socket is their life.
        Ok(()) => wait(control),
        Err(error) => {
            let message = chain(&error);
            match send(control, &Failure { message }, &[]) {
                Ok(()) | Err(ControlError::Closed) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Waits for a message or the end.
fn wait(control: BorrowedFd<'_>) -> Result<(), SessionError> {
    loop {
        let mut fds = [PollFd::new(&control, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            result => return result.map(|_| ()).map_err(refused("wait for the keeper")),
        }
    }
}

fn begin(setup: Setup, descriptors: Vec<OwnedFd>) -> Result<(), SessionError> {
    let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
    let mut take = |index: Fd| {
        descriptors
            .get_mut(index.0)
            .and_then(Option::take)
            .ok_or(SessionError::Descriptor(index))
    };
    let mut trees = Vec::new();
    for share in setup.devices.iter().flat_map(|device| &device.shares) {
        trees.push(Tree {
            mount: take(share.tree)?,
            read_only: share.read_only,
            follows: share.follows,
        });
    }
    let jail = jail::enter(trees)?;
    // Half for what must stay: names lost, files open, streams, channels.
    let descriptors = jail.descriptors / 2 / setup.devices.len().max(1);
    let mut news = setup.news.map(&mut take).transpose()?;
    let mut shares = jail.shares.into_iter();
    for device in setup.devices {
        let shares = shares.by_ref().take(device.shares.len()).collect();
        let served = Device::new(device.policy, shares, setup.most_nodes, descriptors)
            .map_err(refused("look at a share"))?;
        let served = Arc::new(served);
        if device.policy == Policy::Shared
            && let Some(stream) = news.take()
        {
            watch::start(Arc::clone(&served), stream).map_err(|source| SessionError::System {
                act: "start a thread",
                source,
            })?;
        }
        for channel in device.channels {
            serve::start(Arc::clone(&served), take(channel)?).map_err(|source| {
                SessionError::System {
                    act: "start a thread",
                    source,
                }
            })?;
        }
    }
    Ok(())
}
