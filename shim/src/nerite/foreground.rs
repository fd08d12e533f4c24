//! One container in the foreground, whatever it was made from.
//!
//! This process is the keeper: no daemon, nothing outlives it. Its steps are
//! the start timeline's phases, in order.

use std::fs::File;
use std::process::ExitCode;

use anyhow::Context;
use protocol::agent::api::{KillRequest, ResizePtyRequest};
use protocol::control::{BlockEngine, BlockLimits, ExitReason};
use protocol::error::chain;
use protocol::oci;
use protocol::timeline::{KEEPER_DONE, KEEPER_EXIT, Point, VMM_SPAWNED};
use shim::assets::Assets;
use shim::broker::SharedTree;
use shim::disks::Disk;
use shim::rootfs::RootFs;
use shim::sandbox::{
    ContainerExit, NewContainer, Sandbox, SandboxConfig, SandboxError, StdioRequest, open_kvm,
};
use shim::size::{ByteSize, Cpus};
use shim::sockets::HostSocket;
use shim::trace::Timeline;
use shim::vmm::Vmm;

use crate::cli::WatchOptions;
use crate::output;
use crate::signals::{self, FORCE_AFTER, Signals};
use crate::streams;
use crate::terminal::{self, RawMode};

/// Exit statuses as Docker uses them.
mod status {
    pub(super) const NERITE_FAILED: u8 = 125;
    pub(super) const NOT_EXECUTABLE: u8 = 126;
    pub(super) const NOT_FOUND: u8 = 127;
    pub(super) const SIGNAL: u8 = 128;
    pub(super) const KILLED: u8 = 137;
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Foreground {
    /// The container's and the sandbox's id.
    pub(crate) id: String,
    /// Its configuration, as the agent is to read it.
    pub(crate) spec: oci::Spec,
    /// Its root file system.
    pub(crate) root: RootFs,
    /// EROFS images of the sandbox.
    pub(crate) images: Vec<File>,
    /// Its disks.
    pub(crate) disks: Vec<Disk>,
    /// Some of them are written to.
    pub(crate) writes_to_disks: bool,
    /// How fast each disk may be.
    pub(crate) limits: BlockLimits,
    /// What the sandbox shares of the host.
    pub(crate) trees: Vec<SharedTree>,
    /// The host's sockets that the guest may connect to.
    pub(crate) sockets: Vec<HostSocket>,
    /// Guest RAM.
    pub(crate) memory: ByteSize,
    /// Window of each directory device.
    pub(crate) window: ByteSize,
    /// The container's memory limit.
    pub(crate) limit: Option<ByteSize>,
    /// Processors.
    pub(crate) cpus: Cpus,
    /// Pass standard input on.
    pub(crate) stdin: bool,
    /// What to tell about the start.
    pub(crate) watch: WatchOptions,
    /// What the trace is called.
    pub(crate) labels: Vec<(&'static str, String)>,
    /// Points of the start timeline so far.
    pub(crate) points: Vec<Point>,
}

/// Runs an asynchronous command on this thread.
pub(crate) fn block_on(work: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let code = runtime.block_on(work);
    // Threads that still wait for input are left behind on purpose.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

impl Foreground {
    /// Whether the container has a terminal.
    fn terminal(&self) -> bool {
        let process = self.spec.process.as_ref();
        process.is_some_and(|process| process.terminal)
    }

    /// Runs it to its end; answers the exit status. Signals are listened for
    /// since before anything was made.
    pub(crate) async fn run(mut self, mut signals: Signals) -> anyhow::Result<u8> {
        let assets = Assets::locate()?;
        let kvm = open_kvm()?;
        let vmm = Vmm::spawn(&assets.vmm)?;
        let sandbox = tokio::select! {
            sandbox = self.start_sandbox(vmm, &assets, &kvm) => sandbox,
            number = interruption(&mut signals) => return Ok(status_of_signal(number)),
        };
        let sandbox = match sandbox {
            Ok(sandbox) => sandbox,
            Err(error) => return Ok(report(&error, status::NERITE_FAILED)),
        };
        self.mark(VMM_SPAWNED);
        self.run_in(&sandbox, &mut signals).await
    }

    /// Creates, starts and follows the container.
    async fn run_in(mut self, sandbox: &Sandbox, signals: &mut Signals) -> anyhow::Result<u8> {
        let raw = if self.terminal() && self.stdin && terminal::is_interactive() {
            Some(RawMode::enter().context("put the terminal into raw mode")?)
        } else {
            None
        };
        let started = tokio::select! {
            started = self.start_container(sandbox) => started,
            number = interruption(signals) => return Ok(status_of_signal(number)),
        };
        let output = match started {
            Ok(output) => output,
            Err(error) => {
                drop(raw);
                return Ok(report(&error, start_status(&error)));
            }
        };
        let exit = self.follow(sandbox, signals).await;
        if matches!(exit, Ok(Some(_))) {
            self.mark(KEEPER_EXIT);
            tokio::select! {
                () = output.finished() => {}
                () = forced(signals) => {}
            }
            self.mark(KEEPER_DONE);
            self.unmount(sandbox, signals).await;
        }
        drop(raw);
        match exit {
            Ok(Some(exit)) => {
                if exit.out_of_memory {
                    self.report_out_of_memory(exit);
                }
                self.show_timeline(sandbox).await?;
                Ok(exit.status)
            }
            Ok(None) => {
                output::note("nerite: ended by the third signal; the container was killed");
                Ok(status::KILLED)
            }
            Err(error) => Ok(report(&error, status::KILLED)),
        }
    }

    /// Waits for the container's exit and passes signals on meanwhile.
    /// `None`: the person has had enough.
    async fn follow(
        &self,
        sandbox: &Sandbox,
        signals: &mut Signals,
    ) -> Result<Option<ContainerExit>, SandboxError> {
        let mut exit = std::pin::pin!(sandbox.wait(&self.id));
        let mut endings = 0;
        let mut broken = false;
        loop {
            let number = tokio::select! {
                exit = &mut exit => return exit.map(Some),
                number = signals.next() => number,
                error = sandbox.broker_ended(), if !broken => {
                    broken = true;
                    let error = chain(&error);
                    output::note(format_args!(
                        "nerite: {error}; the container's files answer with I/O errors"
                    ));
                    continue;
                }
            };
            if number == libc::SIGWINCH {
                if let (true, Some(size)) = (self.terminal(), terminal::size()) {
                    ignore_late(sandbox.resize_process(self.resizing(size)).await)?;
                }
                continue;
            }
            if number == libc::SIGINT || number == libc::SIGTERM {
                endings += 1;
                if endings == FORCE_AFTER {
                    return Ok(None);
                }
            }
            ignore_late(sandbox.signal(self.killing(number)).await)?;
        }
    }

    fn resizing(&self, size: oci::ConsoleSize) -> ResizePtyRequest {
        ResizePtyRequest {
            id: self.id.clone(),
            width: size.width.into(),
            height: size.height.into(),
            ..ResizePtyRequest::default()
        }
    }

    fn killing(&self, signal: i32) -> KillRequest {
        KillRequest {
            id: self.id.clone(),
            signal: signal.unsigned_abs(),
            ..KillRequest::default()
        }
    }

    /// Lets the guest write to its disks what it still holds back: without its
    /// container it unmounts them.
    async fn unmount(&self, sandbox: &Sandbox, signals: &mut Signals) {
        if !self.writes_to_disks {
            return;
        }
        let result = tokio::select! {
            result = sandbox.delete_process(&self.id, "") => result,
            () = forced(signals) => return,
        };
        if let Err(error) = result {
            let error = chain(&error);
            let error = output::printable(&error);
            output::note(format_args!(
                "nerite: the guest may not have written everything to its disks: {error}"
            ));
        }
    }

    async fn start_sandbox(
        &mut self,
        vmm: Vmm,
        assets: &Assets,
        kvm: &File,
    ) -> Result<Sandbox, SandboxError> {
        let console = match &self.watch.console {
            Some(path) => Some(File::create(path).map_err(|source| SandboxError::Host {
                act: format!("create the boot log {}", path.display()),
                source,
            })?),
            None => None,
        };
        let config = SandboxConfig {
            memory: self.memory,
            window: self.window,
            vcpus: self.cpus.vcpus(),
            images: std::mem::take(&mut self.images),
            disks: std::mem::take(&mut self.disks),
            limits: self.limits,
            trees: std::mem::take(&mut self.trees),
            console,
            kernel_arguments: self.watch.kernel_argument.clone(),
        };
        Sandbox::start(vmm, assets, kvm, config).await
    }

    async fn start_container(
        &mut self,
        sandbox: &Sandbox,
    ) -> Result<streams::Output, SandboxError> {
        let request = StdioRequest {
            stdin: self.stdin,
            terminal: self.terminal(),
        };
        let stdio = sandbox
            .create(NewContainer {
                id: &self.id,
                spec: &self.spec,
                root: &self.root,
                stdio: request,
                sockets: std::mem::take(&mut self.sockets),
                vcpus: self.cpus.vcpus(),
            })
            .await?;
        if let Some(BlockEngine::Threads { reason }) = sandbox.disk_engine() {
            output::note(format_args!(
                "nerite: disks are slower than they could be: {reason}"
            ));
        }
        let output = streams::attach(stdio).map_err(|source| SandboxError::Host {
            act: "join the container's streams".into(),
            source,
        })?;
        sandbox.start_process(&self.id, "").await?;
        Ok(output)
    }

    async fn show_timeline(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        if !self.watch.verbose && self.watch.trace.is_none() {
            return Ok(());
        }
        self.points.extend(sandbox.timeline().await?);
        let labels = std::mem::take(&mut self.labels);
        let timeline = Timeline::new(std::mem::take(&mut self.points), labels);
        if self.watch.verbose {
            output::note(timeline.table());
        }
        if let Some(path) = &self.watch.trace {
            timeline.save(path)?;
        }
        Ok(())
    }

    fn report_out_of_memory(&self, exit: ContainerExit) {
        let limit = match self.limit {
            Some(limit) => format!("its limit of {limit}"),
            None => format!("the machine's {}", self.memory),
        };
        let what = if exit.status == status::KILLED {
            "the container"
        } else {
            "a process"
        };
        output::note(format_args!(
            "nerite: {what} was killed for want of memory, having reached {limit}; give more with -m"
        ));
    }

    fn mark(&mut self, name: &str) {
        self.points.push(Point::now(name));
    }
}

/// Waits for a signal that ends a start.
async fn interruption(signals: &mut Signals) -> i32 {
    loop {
        let number = signals.next().await;
        if signals::ends_a_start(number) {
            return number;
        }
    }
}

/// Waits for so many SIGINT or SIGTERM that all has to end.
async fn forced(signals: &mut Signals) {
    for _ in 0..FORCE_AFTER {
        while !matches!(signals.next().await, libc::SIGINT | libc::SIGTERM) {}
    }
}

/// The container may exit while a signal is on its way to it.
fn ignore_late(result: Result<(), SandboxError>) -> Result<(), SandboxError> {
    match result {
        Err(SandboxError::Refused { .. }) => Ok(()),
        other => other,
    }
}

fn status_of_signal(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| status::SIGNAL.saturating_add(number))
}

/// Docker's status for a start that failed.
fn start_status(error: &SandboxError) -> u8 {
    match error {
        SandboxError::Refused {
            code: ttrpc::Code::NOT_FOUND,
            ..
        } => status::NOT_FOUND,
        SandboxError::Refused {
            code: ttrpc::Code::PERMISSION_DENIED,
            ..
        } => status::NOT_EXECUTABLE,
        _ => status::NERITE_FAILED,
    }
}

/// Prints what went wrong in one sentence, below what a dead guest said last.
fn report(error: &SandboxError, code: u8) -> u8 {
    if let SandboxError::Ended(exit) = error {
        for line in &exit.console {
            output::note(format_args!("guest: {}", output::printable(line)));
        }
    }
    let emulated = matches!(
        error,
        SandboxError::Ended(exit) if matches!(exit.reason, ExitReason::EmulatedKvm { .. })
    );
    let advice = if emulated {
        "; use a host with hardware virtualization, see `nerite check`"
    } else {
        ""
    };
    let sentence = chain(error) + advice;
    output::note(format_args!("nerite: {}", output::printable(&sentence)));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_dockers() {
        let refused = |code| SandboxError::Refused {
            code,
            message: String::new(),
        };
        assert_eq!(start_status(&refused(ttrpc::Code::NOT_FOUND)), 127);
        assert_eq!(start_status(&refused(ttrpc::Code::PERMISSION_DENIED)), 126);
        assert_eq!(start_status(&refused(ttrpc::Code::INVALID_ARGUMENT)), 125);
        assert_eq!(start_status(&SandboxError::Deadline), 125);
        assert_eq!(status_of_signal(libc::SIGTERM), 143);
    }
}
