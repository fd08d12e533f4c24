//! One `nerite-vmm` process as its keeper sees it.
//!
//! The process gets one end of a control socketpair as its standard input and
//! nothing else; all it ever uses is sent there. It dies with this struct:
//! dropping it kills the process and does not wait, because freeing a virtual
//! machine takes the host's kernel tens of milliseconds of grace periods
//! that no caller should pay for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::control::{
    self, BlockConfig, BlockLimits, ControlError, Fd, FromVmm, FsConfig, MAX_DESCRIPTORS,
    MachineConfig, PmemConfig, StreamConfig, ToVmm,
};
use protocol::stream::HostPort;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::broker::FsDevice;
use crate::disks::Disk;
use crate::reaper;
pub(crate) use sys::watch;

/// Something that went wrong with the VMM process.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// It could not be started.
    #[error("start {}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not installed.
    #[error("{} is missing; reinstall nerite (`make install`)", path.display())]
    Missing {
        /// The program.
        path: PathBuf,
    },
    /// It could not be spoken to.
    #[error("talk to nerite-vmm")]
    Control {
        /// What failed.
        source: ControlError,
    },
    /// It ended without a word.
    #[error("nerite-vmm {}", describe_status(*status))]
    Died {
        /// How.
        status: ExitStatus,
    },
    /// More streams or images than fit into one message.
    #[error("a machine cannot start with {count} descriptors, only with {MAX_DESCRIPTORS}")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
}

fn describe_status(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with status {code} and gave no reason"),
        (None, None) => "ended and gave no reason".into(),
    }
}

/// What the machine is made of, descriptors borrowed from the keeper.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Most processors.
    pub vcpus: u8,
    /// `/dev/kvm`.
    pub kvm: BorrowedFd<'a>,
    /// The kernel.
    pub kernel: BorrowedFd<'a>,
    /// Read-only images, slot 0 first.
    pub pmem: Vec<BorrowedFd<'a>>,
    /// Disks, in the slots behind.
    pub disks: &'a [Disk],
    /// How fast each disk may be.
    pub limits: BlockLimits,
    /// Directory devices.
    pub fs: &'a [FsDevice],
    /// Bytes of each one's window, a multiple of 2 MiB; 0 for none.
    pub window: u64,
    /// Streams that exist from the first instruction.
    pub streams: Vec<(HostPort, BorrowedFd<'a>)>,
    /// Where the boot log goes.
    pub console: Option<BorrowedFd<'a>>,
    /// Words for the kernel's command line.
    pub kernel_arguments: Vec<String>,
}

/// A running `nerite-vmm`.
#[derive(Debug)]
pub struct Vmm {
    child: Mutex<Child>,
    id: u32,
    control: AsyncFd<OwnedFd>,
    killed: AtomicBool,
}

impl Vmm {
    /// Starts the program. Needs a tokio runtime with I/O around it.
    ///
    /// # Errors
    ///
    /// [`VmmError::Missing`] or [`VmmError::Spawn`].
    pub fn spawn(program: &Path) -> Result<Self, VmmError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => VmmError::Missing {
                path: program.into(),
            },
            _ => VmmError::Spawn {
                path: program.into(),
                source,
            },
        };
        let (keeper, vmm) = control::pair().map_err(failed)?;
        let child = Command::new(program)
            .arg0("nerite-vmm")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(vmm))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let control = sys::watch(keeper).map_err(failed)?;
        Ok(Self {
            id: child.id(),
            child: Mutex::new(child),
            control,
            killed: AtomicBool::new(false),
        })
    }

    /// The process id, for the curious.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Builds and runs a machine.
    ///
    /// # Errors
    ///
    /// [`VmmError`], when it cannot even be told.
    pub async fn start(&self, machine: &Machine<'_>) -> Result<(), VmmError> {
        let mut descriptors = Vec::new();
        let mut add = |descriptor| {
            descriptors.push(descriptor);
            Fd(descriptors.len() - 1)
        };
        let config = MachineConfig {
            memory: machine.memory,
            vcpus: machine.vcpus,
            kvm: add(machine.kvm),
            kernel: add(machine.kernel),
            pmem: machine
                .pmem
                .iter()
                .map(|&image| PmemConfig { image: add(image) })
                .collect(),
            block: machine
                .disks
                .iter()
                .map(|disk| BlockConfig {
                    image: add(disk.image.as_fd()),
                    read_only: disk.read_only,
                    identity: disk.identity.clone(),
                    limits: machine.limits,
                })
                .collect(),
            fs: machine
                .fs
                .iter()
                .map(|device| FsConfig {
                    policy: device.policy,
                    channels: device
                        .channels
                        .iter()
                        .map(|channel| add(channel.as_fd()))
                        .collect(),
                    window: machine.window,
                })
                .collect(),
            streams: machine
                .streams
                .iter()
                .map(|&(port, socket)| StreamConfig {
                    port,
                    socket: add(socket),
                })
                .collect(),
            console: machine.console.map(&mut add),
            kernel_arguments: machine.kernel_arguments.clone(),
        };
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(VmmError::TooManyDescriptors {
                count: descriptors.len(),
            });
        }
        self.send(&ToVmm::Start(config), &descriptors).await
    }

    /// Asks for the speed of this KVM; the answer is the next message.
    ///
    /// # Errors
    ///
    /// [`VmmError`].
    pub async fn probe(&self, kvm: BorrowedFd<'_>) -> Result<(), VmmError> {
        self.send(&ToVmm::Probe { kvm: Fd(0) }, &[kvm]).await
    }

    /// Gives the guest one more stream; returns the keeper's end of it.
    ///
    /// # Errors
    ///
    /// [`VmmError`].
    pub async fn add_stream(&self, port: HostPort) -> Result<UnixStream, VmmError> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| VmmError::Control {
            source: ControlError::Io {
                act: "make a stream for",
                source,
            },
        })?;
        self.give_stream(port, theirs.as_fd()).await?;
        Ok(ours)
    }

    /// Gives the guest a stream whose other end is not the keeper's.
    ///
    /// # Errors
    ///
    /// [`VmmError`].
    pub async fn give_stream(
        &self,
        port: HostPort,
        socket: BorrowedFd<'_>,
    ) -> Result<(), VmmError> {
        let stream = StreamConfig {
            port,
            socket: Fd(0),
        };
        self.send(&ToVmm::Stream(stream), &[socket]).await
    }

    /// The VMM's next message.
    ///
    /// # Errors
    ///
    /// [`VmmError::Died`] when it ended without one.
    pub async fn next(&self) -> Result<FromVmm, VmmError> {
        let received = self
            .control
            .async_io(Interest::READABLE, |socket| {
                match control::receive::<FromVmm>(socket.as_fd()) {
                    Err(error) if error.would_block() => Err(io::ErrorKind::WouldBlock.into()),
                    done => Ok(done),
                }
            })
            .await
            .unwrap_or_else(|source| {
                Err(ControlError::Io {
                    act: "wait for",
                    source,
                })
            });
        match received {
            Ok((message, _)) => Ok(message),
            Err(ControlError::Closed) => {
                let status = self.child().wait().map_err(|source| VmmError::Control {
                    source: ControlError::Io {
                        act: "wait for the end after",
                        source,
                    },
                })?;
                Err(VmmError::Died { status })
            }
            Err(source) => Err(VmmError::Control { source }),
        }
    }

    /// Kills the process without waiting for its end. Once: later calls find
    /// it done.
    pub fn kill(&self) {
        if self.killed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut child = self.child();
        // Where processors are scarce the dying process would otherwise run
        // first, for a whole tick: it has slept long, and has memory to free.
        sys::yield_to_others(self.id);
        reaper::kill(&mut child);
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, message: &ToVmm, descriptors: &[BorrowedFd<'_>]) -> Result<(), VmmError> {
        self.control
            .async_io(Interest::WRITABLE, |socket| {
                match control::send(socket.as_fd(), message, descriptors) {
                    Err(error) if error.would_block() => Err(io::ErrorKind::WouldBlock.into()),
                    done => Ok(done),
                }
            })
            .await
            .unwrap_or_else(|source| {
                Err(ControlError::Io {
                    act: "send",
                    source,
                })
            })
            .map_err(|source| VmmError::Control { source })
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}

mod sys {
    //! Calls without a safe wrapper elsewhere.

    use std::fs;
    use std::io;
    use std::os::fd::OwnedFd;

    use tokio::io::unix::AsyncFd;

    /// Lets everybody else run before any thread of a process. No matter if it
    /// fails: it only decides who is first.
    pub(super) fn yield_to_others(process: u32) {
        const LEAST_URGENT: libc::c_int = 19;
        let threads = fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let name = thread.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                // SAFETY: takes three numbers and touches no memory of ours.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, id, LEAST_URGENT) };
            }
        }
    }

    /// Watches a descriptor, which tokio cannot know to stay open.
    pub(crate) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: an `OwnedFd` always returns the same descriptor and keeps it
        // open until it is dropped, which `AsyncFd` does after deregistering.
        unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
    }
}
