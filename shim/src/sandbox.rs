//! One sandbox: a virtual machine, its agent, the containers in it.
//!
//! ```text
//!            ┌── monitor task: VMM's messages ──▶ `end` (how the machine ended), clock
//!  Sandbox ──┤
//!            └── ttrpc client ══ stream AGENT ══▶ agent, Task and Sandbox services
//! ```
//!
//! Requests are written to the agent's stream before the guest even runs; the
//! VMM delivers them when the agent connects. So nothing here dials, retries
//! or waits for readiness: the first answer is the readiness. Every call ends
//! with the machine: whatever kills it is what the caller gets to read, not
//! the broken stream that follows from it.

mod copy;
mod create;
mod forward;
mod tasks;

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protobuf::Message;
use protocol::agent::events::TaskExit;
use protocol::agent::sandbox::{OnlineCpusRequest, SandboxClient, TimelineRequest};
use protocol::agent::task::TaskClient;
use protocol::agent::topics;
use protocol::control::{BlockEngine, BlockLimits, Exit, ExitReason, FromVmm};
use protocol::stream::{HostPort, StreamAddress};
use protocol::timeline::{GuestClock, Point};
use tokio::sync::watch;
use tokio::task::JoinSet;
use ttrpc::r#async::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use crate::assets::{AssetError, Assets};
use crate::broker::{Broker, BrokerError, Devices, SharedTree};
use crate::disks::Disk;
use crate::ports::Ports;
use crate::size::ByteSize;
use crate::vmm::{Machine, Vmm, VmmError};

pub use self::create::NewContainer;
pub use self::tasks::Reported;

/// How long a guest may take from its first instruction to its first answer.
/// Ordinary boots take a tenth of a second; a host so overloaded that this
/// passes is reported, not waited for.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// How long after a broken stream the VMM's own account of it may take.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// A sandbox that failed, or refused.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// nerite's own files.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The VMM process.
    #[error(transparent)]
    Vmm(#[from] Arc<VmmError>),
    /// The file broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The machine has ended.
    #[error("{}", .0.reason)]
    Ended(Exit),
    /// The agent refused; its sentence.
    #[error("{message}")]
    Refused {
        /// ttrpc's code.
        code: ttrpc::Code,
        /// What the agent says.
        message: String,
    },
    /// The agent's answer cannot be had or read.
    #[error("ask the agent in the guest to {act}")]
    Agent {
        /// What was asked.
        act: &'static str,
        /// What failed.
        source: ttrpc::Error,
    },
    /// No answer in time.
    #[error("the guest did not answer within {} s of its start", BOOT_DEADLINE.as_secs())]
    Deadline,
    /// A host resource.
    #[error("{act}")]
    Host {
        /// What was tried.
        act: String,
        /// The system's error.
        source: io::Error,
    },
}

impl From<VmmError> for SandboxError {
    fn from(error: VmmError) -> Self {
        Self::Vmm(Arc::new(error))
    }
}

/// What a sandbox's machine is to be.
#[derive(Debug)]
pub struct SandboxConfig {
    /// Guest RAM.
    pub memory: ByteSize,
    /// Window in which the guest may have pages of shared files themselves,
    /// for each directory device; 0 for none.
    pub window: ByteSize,
    /// Most processors.
    pub vcpus: u8,
    /// EROFS images, in the slots from [`crate::rootfs::FIRST_IMAGE_SLOT`].
    pub images: Vec<File>,
    /// Disks, in the slots behind the images'.
    pub disks: Vec<Disk>,
    /// How fast each disk may be.
    pub limits: BlockLimits,
    /// What is shared of the host.
    pub trees: Vec<SharedTree>,
    /// Where the boot log goes.
    pub console: Option<File>,
    /// Words for the kernel's command line.
    pub kernel_arguments: Vec<String>,
}

/// Standard streams that a process is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdioRequest {
    /// Standard input; without it the process reads `/dev/null`.
    pub stdin: bool,
    /// One terminal instead of separate output streams.
    pub terminal: bool,
}

/// The keeper's ends of a process's standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// To the process; closing it ends its input.
    pub stdin: Option<UnixStream>,
    /// From the process.
    pub stdout: UnixStream,
    /// From the process; absent with a terminal.
    pub stderr: Option<UnixStream>,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContainerExit {
    /// 0–255, or 128 plus the signal.
    pub status: u8,
    /// The guest's kernel killed something in it for want of memory.
    pub out_of_memory: bool,
}

/// How the machine ended: the VMM's report, or how the VMM itself died.
type End = Result<Exit, Arc<VmmError>>;

/// What the VMM said when the guest began to run.
type Running = Arc<Mutex<Option<Started>>>;

#[derive(Clone, Debug)]
struct Started {
    clock: GuestClock,
    points: Vec<Point>,
    disks: Option<BlockEngine>,
}

/// A running sandbox. Dropping it ends everything in it.
pub struct Sandbox {
    vmm: Arc<Vmm>,
    broker: Option<Broker>,
    monitor: tokio::task::JoinHandle<()>,
    end: watch::Receiver<Option<End>>,
    running: Running,
    tasks: TaskClient,
    agent: SandboxClient,
    ports: Arc<Ports>,
    /// Whoever connects to the host's sockets for the guest.
    dialers: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The generated clients have no form of their own.
        f.debug_struct("Sandbox")
            .field("vmm", &self.vmm)
            .finish_non_exhaustive()
    }
}

/// Reads the VMM's messages until the last.
struct Monitor {
    vmm: Arc<Vmm>,
    end: watch::Sender<Option<End>>,
    running: Running,
}

impl Monitor {
    async fn run(self) {
        let end = loop {
            match self.vmm.next().await {
                Ok(FromVmm::Running {
                    clock,
                    points,
                    disks,
                }) => {
                    let started = Started {
                        clock,
                        points,
                        disks,
                    };
                    *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
                }
                Ok(FromVmm::Probed(_)) => {}
                Ok(FromVmm::Exited(exit)) => break Ok(exit),
                Err(error) => break Err(Arc::new(error)),
            }
        };
        self.end.send_replace(Some(end));
    }
}

impl Sandbox {
    /// Tells a VMM process what to run and returns at once; the guest boots
    /// while the caller asks for its first container.
    ///
    /// # Errors
    ///
    /// [`SandboxError`] when the VMM cannot be told.
    pub async fn start(
        vmm: Vmm,
        assets: &Assets,
        kvm: &File,
        config: SandboxConfig,
    ) -> Result<Self, SandboxError> {
        let kernel = assets.open_kernel()?;
        let os_layer = assets.open_os_layer()?;
        let (keeper, guest) = stream_pair()?;
        let (broker, devices) = if config.trees.is_empty() {
            (None, Devices::default())
        } else {
            let (broker, devices) = Broker::start(&assets.broker, &config.trees, config.memory.0)?;
            (Some(broker), devices)
        };
        let mut streams = vec![(HostPort::AGENT, guest.as_fd())];
        streams.extend(
            devices
                .news
                .iter()
                .map(|news| (HostPort::NEWS, news.as_fd())),
        );
        let mut pmem = vec![os_layer.as_fd()];
        pmem.extend(config.images.iter().map(AsFd::as_fd));
        vmm.start(&Machine {
            memory: config.memory.0,
            vcpus: config.vcpus,
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            pmem,
            disks: &config.disks,
            limits: config.limits,
            fs: &devices.fs,
            window: config.window.round_up(ByteSize::mib(2)).0,
            streams,
            console: config.console.as_ref().map(AsFd::as_fd),
            kernel_arguments: config.kernel_arguments,
        })
        .await?;
        let vmm = Arc::new(vmm);
        let (end_sender, end) = watch::channel(None);
        let running = Running::default();
        let monitor = Monitor {
            vmm: vmm.clone(),
            end: end_sender,
            running: running.clone(),
        };
        let monitor = tokio::spawn(monitor.run());
        let client = client(keeper)?;
        Ok(Self {
            vmm,
            broker,
            monitor,
            end,
            running,
            tasks: TaskClient::new(client.clone()),
            agent: SandboxClient::new(client),
            ports: Arc::default(),
            dialers: Mutex::default(),
        })
    }

    /// Brings `count` processors online; answers when they run.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn online_cpus(&self, count: u8) -> Result<(), SandboxError> {
        let request = OnlineCpusRequest {
            count: count.into(),
            ..OnlineCpusRequest::default()
        };
        let call = self.agent.online_cpus(Context::default(), &request);
        self.call("bring processors online", call).await?;
        Ok(())
    }

    /// Waits until a container's first process has exited.
    ///
    /// # Errors
    ///
    /// The machine's end, when that comes first.
    pub async fn wait(&self, id: &str) -> Result<ContainerExit, SandboxError> {
        let mut out_of_memory = false;
        let mut after = 0;
        loop {
            for event in self.events(after).await? {
                after = event.sequence;
                if event.topic == topics::TASK_OOM_EVENT_TOPIC {
                    out_of_memory = true;
                } else if event.topic == topics::TASK_EXIT_EVENT_TOPIC {
                    let exit = TaskExit::parse_from_bytes(&event.payload).map_err(|error| {
                        SandboxError::Agent {
                            act: "report an exit",
                            source: ttrpc::Error::Others(error.to_string()),
                        }
                    })?;
                    if exit.container_id == id && exit.id == id {
                        let status = u8::try_from(exit.exit_status).unwrap_or(u8::MAX);
                        return Ok(ContainerExit {
                            status,
                            out_of_memory,
                        });
                    }
                }
            }
        }
    }

    /// The points of VMM and guest on the host's clock.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn timeline(&self) -> Result<Vec<Point>, SandboxError> {
        let request = TimelineRequest::default();
        let call = self.agent.timeline(Context::default(), &request);
        let guest = self.call("report its timeline", call).await?;
        let Some(Started {
            clock, mut points, ..
        }) = self.started()
        else {
            return Ok(Vec::new());
        };
        points.extend(guest.points.into_iter().map(|point| Point {
            ns: clock.host_ns(point.tsc),
            name: point.name,
        }));
        Ok(points)
    }

    /// What serves the disks, once the guest runs and if it has disks.
    #[must_use]
    pub fn disk_engine(&self) -> Option<BlockEngine> {
        self.started()?.disks
    }

    fn started(&self) -> Option<Started> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the end of the file broker, which the guest feels as I/O
    /// errors; for ever, if there is none.
    pub async fn broker_ended(&self) -> BrokerError {
        match &self.broker {
            Some(broker) => broker.ended().await,
            None => std::future::pending().await,
        }
    }

    /// The file broker's process id, if there is one.
    #[must_use]
    pub fn broker_id(&self) -> Option<u32> {
        self.broker.as_ref().map(Broker::id)
    }

    /// The VMM's process id.
    #[must_use]
    pub fn vmm_id(&self) -> u32 {
        self.vmm.id()
    }

    /// Ends the machine at once; whoever asks it something hears so.
    pub fn kill(&self) {
        self.vmm.kill();
    }

    async fn optional_stream(
        &self,
        wanted: bool,
    ) -> Result<(String, Option<UnixStream>), SandboxError> {
        if !wanted {
            return Ok((String::new(), None));
        }
        let (address, stream) = self.stream().await?;
        Ok((address, Some(stream)))
    }

    async fn stream(&self) -> Result<(String, UnixStream), SandboxError> {
        let port = self.ports.next();
        let stream = match self.vmm.add_stream(port).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.last_words().await.unwrap_or_else(|| error.into())),
        };
        Ok((StreamAddress(port).to_string(), stream))
    }

    /// Awaits an answer for as long as the machine lives.
    async fn call<T>(
        &self,
        act: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        let answer = pin!(answer);
        let mut end = self.end.clone();
        let result = tokio::select! {
            biased;
            result = answer => result,
            _ = end.wait_for(Option::is_some) => return Err(self.ended()),
        };
        match result {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => Err(SandboxError::Refused {
                code: status.code(),
                message: status.message,
            }),
            Err(source) => Err(self
                .last_words()
                .await
                .unwrap_or(SandboxError::Agent { act, source })),
        }
    }

    /// How the machine ended, if it says so soon.
    async fn last_words(&self) -> Option<SandboxError> {
        let mut end = self.end.clone();
        let said = tokio::time::timeout(LAST_WORDS_DEADLINE, end.wait_for(Option::is_some)).await;
        matches!(said, Ok(Ok(_))).then(|| self.ended())
    }

    fn ended(&self) -> SandboxError {
        match &*self.end.borrow() {
            Some(Ok(exit)) => SandboxError::Ended(exit.clone()),
            Some(Err(error)) => SandboxError::Vmm(error.clone()),
            None => SandboxError::Ended(Exit {
                reason: ExitReason::KeeperGone,
                console: vec![],
            }),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.monitor.abort();
        self.vmm.kill();
    }
}

fn stream_pair() -> Result<(UnixStream, UnixStream), SandboxError> {
    UnixStream::pair().map_err(|source| SandboxError::Host {
        act: "make a stream to the guest".into(),
        source,
    })
}

fn client(stream: UnixStream) -> Result<Client, SandboxError> {
    let failed = |source| SandboxError::Host {
        act: "open the stream to the agent".into(),
        source,
    };
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(failed)?;
    Ok(Client::new(Socket::new(stream)))
}

/// Opens `/dev/kvm`.
///
/// # Errors
///
/// A sentence that says what to do.
pub fn open_kvm() -> Result<File, SandboxError> {
    let path = PathBuf::from("/dev/kvm");
    File::options().read(true).write(true).open(&path).map_err(|source| {
        let act = match source.kind() {
            io::ErrorKind::NotFound => {
                "open /dev/kvm: this host has no KVM; enable virtualization in its firmware, or \
                 nested virtualization if it is a virtual machine, and see `nerite check`"
            }
            io::ErrorKind::PermissionDenied => {
                "open /dev/kvm: join the group that owns it (`usermod -aG kvm USER`) or run as root"
            }
            _ => "open /dev/kvm; see `nerite check`",
        };
        SandboxError::Host { act: act.into(), source }
    })
}
