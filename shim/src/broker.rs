//! One `nerite-fs` process as its keeper sees it: spawned with a control
//! socket, told once what to share, alive as long as the keeper.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use protocol::broker::{DeviceSetup, Failure, Policy, Setup, Share};
use protocol::control::{self, ControlError, Fd, MAX_DESCRIPTORS};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::vmm::watch;

/// Something that went wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It could not be started.
    #[error("start {}; if it is missing, reinstall nerite (`make install`)", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It could not be spoken to.
    #[error("talk to nerite-fs")]
    Control(#[from] ControlError),
    /// It could not share what it was told to.
    #[error("share directories: {0}")]
    Failed(String),
    /// It ended without a word.
    #[error("nerite-fs {}", describe(*.0))]
    Died(ExitStatus),
    /// More shares than fit into one message.
    #[error("a sandbox cannot have {count} shares, only {MOST_SHARES}")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Directories and files that a sandbox may share.
pub const MOST_SHARES: usize = MAX_DESCRIPTORS - 2 * CHANNELS - 1;

/// Requests of a device that can be on their way at a time.
const CHANNELS: usize = 4;

/// Guest RAM that a kernel needs for a file that it knows: so many files the
/// broker keeps track of.
const GUEST_BYTES_PER_NODE: u64 = 1024;

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => "ended".into(),
    }
}

/// A directory or file to be shared.
#[derive(Debug)]
pub struct SharedTree {
    /// Who may change it.
    pub policy: Policy,
    /// A detached mount.
    pub tree: OwnedFd,
    /// No writes by the guest.
    pub read_only: bool,
    /// What the host mounts below later is seen.
    pub follows: bool,
}

/// The VMM's side of a directory device.
#[derive(Debug)]
pub struct FsDevice {
    /// Which.
    pub policy: Policy,
    /// Its ends of the channels.
    pub channels: Vec<OwnedFd>,
}

/// What the VMM gets of a broker.
#[derive(Debug, Default)]
pub struct Devices {
    /// The directory devices.
    pub fs: Vec<FsDevice>,
    /// The broker's stream to the agent, when there is a shared device.
    pub news: Option<UnixStream>,
}

/// A running `nerite-fs`. Dropping it kills the process.
#[derive(Debug)]
pub struct Broker {
    child: Mutex<Child>,
    control: AsyncFd<OwnedFd>,
}

impl Broker {
    /// Starts the program and tells it what to share with a guest that has
    /// `memory` bytes of RAM. Does not wait for it: what the VMM asks waits in
    /// the channels.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn start(
        program: &Path,
        trees: &[SharedTree],
        memory: u64,
    ) -> Result<(Self, Devices), BrokerError> {
        if trees.len() > MOST_SHARES {
            return Err(BrokerError::TooMany { count: trees.len() });
        }
        let failed = |source| BrokerError::Spawn {
            path: program.into(),
            source,
        };
        let (keeper, broker) = control::pair().map_err(failed)?;
        let child = Command::new(program)
            .arg0("nerite-fs")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(broker))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let control = watch(keeper).map_err(failed)?;
        let broker = Self {
            child: Mutex::new(child),
            control,
        };
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let mut setup = Setup {
            devices: Vec::new(),
            most_nodes: usize::try_from(memory / GUEST_BYTES_PER_NODE).unwrap_or(usize::MAX),
            news: None,
        };
        let mut devices = Vec::new();
        let mut ends = Vec::new();
        for policy in [Policy::Exclusive, Policy::Shared] {
            let shares: Vec<_> = trees.iter().filter(|tree| tree.policy == policy).collect();
            if shares.is_empty() {
                continue;
            }
            let mut device = FsDevice {
                policy,
                channels: Vec::new(),
            };
            for _ in 0..CHANNELS {
                let (theirs, ours) = socketpair(
                    AddressFamily::UNIX,
                    SocketType::SEQPACKET,
                    SocketFlags::CLOEXEC,
                    None,
                )
                .map_err(|errno| failed(errno.into()))?;
                ends.push((policy, theirs));
                device.channels.push(ours);
            }
            setup.devices.push(DeviceSetup {
                policy,
                shares: shares
                    .iter()
                    .map(|tree| {
                        descriptors.push(tree.tree.as_fd());
                        Share {
                            tree: Fd(descriptors.len() - 1),
                            read_only: tree.read_only,
                            follows: tree.follows,
                        }
                    })
                    .collect(),
                channels: Vec::new(),
            });
            devices.push(device);
        }
        for (policy, end) in &ends {
            descriptors.push(end.as_fd());
            let device = setup
                .devices
                .iter_mut()
                .find(|device| device.policy == *policy);
            if let Some(device) = device {
                device.channels.push(Fd(descriptors.len() - 1));
            }
        }
        let mut news = None;
        let stream = devices
            .iter()
            .any(|device: &FsDevice| device.policy == Policy::Shared)
            .then(UnixStream::pair)
            .transpose()
            .map_err(failed)?;
        if let Some((ours, theirs)) = &stream {
            descriptors.push(theirs.as_fd());
            setup.news = Some(Fd(descriptors.len() - 1));
            news = Some(ours.try_clone().map_err(failed)?);
        }
        // The socket is new and has room for a message.
        control::send(broker.control.get_ref().as_fd(), &setup, &descriptors)?;
        Ok((broker, Devices { fs: devices, news }))
    }

    /// Waits for the broker's end, which is always an error.
    pub async fn ended(&self) -> BrokerError {
        let received = self
            .control
            .async_io(Interest::READABLE, |socket| {
                match control::receive::<Failure>(socket.as_fd()) {
                    Err(error) if error.would_block() => Err(io::ErrorKind::WouldBlock.into()),
                    done => Ok(done),
                }
            })
            .await;
        match received {
            Ok(Ok((failure, _))) => BrokerError::Failed(failure.message),
            Ok(Err(ControlError::Closed)) => {
                let status = self
                    .child
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .wait();
                match status {
                    Ok(status) => BrokerError::Died(status),
                    Err(source) => BrokerError::Control(ControlError::Io {
                        act: "wait for the end after",
                        source,
                    }),
                }
            }
            Ok(Err(error)) => BrokerError::Control(error),
            Err(source) => BrokerError::Control(ControlError::Io {
                act: "wait for",
                source,
            }),
        }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        crate::reaper::kill(child);
    }
}
