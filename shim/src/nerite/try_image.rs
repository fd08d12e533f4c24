//! `nerite try`: one container from an image, in the foreground.
//!
//! This process is the keeper: no daemon, nothing outlives it. Its steps are
//! the start timeline's phases, in order.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context, bail};
use protocol::control::ExitReason;
use protocol::timeline::{IMAGE_READY, KEEPER_DONE, KEEPER_EXIT, Point, VMM_SPAWNED};
use rootfs_builder::image::{self, Cache, ImageConfig, PreparedImage};
use shim::assets::Assets;
use shim::sandbox::{ContainerExit, Sandbox, SandboxConfig, SandboxError, StdioRequest, open_kvm};
use shim::size::ByteSize;
use shim::spec::{ContainerOptions, docker_like};
use shim::trace::Timeline;
use shim::vmm::Vmm;

use crate::cli::TryOptions;
use crate::output;
use crate::progress::Bar;
use crate::signals::{self, FORCE_AFTER, Signals};
use crate::streams;
use crate::terminal::{self, RawMode};

/// Guest RAM where no limit is asked for.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);

/// What the guest's kernel and agent may take on top of a memory limit.
const GUEST_OVERHEAD: ByteSize = ByteSize::mib(48);

/// Docker's least memory limit; less does not start a process.
const LEAST_MEMORY: ByteSize = ByteSize::mib(6);

/// The unit of guest RAM: a huge page.
const HUGE_PAGE: ByteSize = ByteSize::mib(2);

/// Exit statuses as Docker uses them.
mod status {
    pub(super) const NERITE_FAILED: u8 = 125;
    pub(super) const NOT_EXECUTABLE: u8 = 126;
    pub(super) const NOT_FOUND: u8 = 127;
    pub(super) const SIGNAL: u8 = 128;
    pub(super) const KILLED: u8 = 137;
}

/// Runs the command.
pub(crate) fn run(options: TryOptions, start: Point) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let code = runtime.block_on(Try::new(options, start)?.run());
    // Threads that still wait for input are left behind on purpose.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

struct Try {
    options: TryOptions,
    points: Vec<Point>,
    id: String,
    memory: ByteSize,
}

impl Try {
    fn new(options: TryOptions, start: Point) -> anyhow::Result<Self> {
        let memory = guest_memory(options.memory)?;
        if options.tty && options.interactive && !terminal::is_interactive() {
            bail!("standard input is not a terminal; leave out -t, or -i");
        }
        Ok(Self {
            options,
            points: vec![start],
            id: random_id()?,
            memory,
        })
    }

    async fn run(mut self) -> anyhow::Result<u8> {
        let mut signals = Signals::listen().context("take over signals")?;
        let assets = Assets::locate()?;
        let kvm = open_kvm()?;
        let image = self.prepare_image()?;
        self.mark(IMAGE_READY);
        let container = self.container(&image.config)?;
        let vmm = Vmm::spawn(&assets.vmm)?;
        let sandbox = tokio::select! {
            sandbox = self.start_sandbox(vmm, &assets, &kvm, image) => sandbox,
            number = interruption(&mut signals) => return Ok(status_of_signal(number)),
        };
        let sandbox = match sandbox {
            Ok(sandbox) => sandbox,
            Err(error) => return Ok(report(&error, status::NERITE_FAILED)),
        };
        self.mark(VMM_SPAWNED);
        self.run_in(&sandbox, &container, &mut signals).await
    }

    /// Creates, starts and follows the container.
    async fn run_in(
        mut self,
        sandbox: &Sandbox,
        container: &ContainerOptions,
        signals: &mut Signals,
    ) -> anyhow::Result<u8> {
        let raw = if self.options.tty && self.options.interactive {
            Some(RawMode::enter().context("put the terminal into raw mode")?)
        } else {
            None
        };
        let started = tokio::select! {
            started = self.start_container(sandbox, container) => started,
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
        loop {
            let number = tokio::select! {
                exit = &mut exit => return exit.map(Some),
                number = signals.next() => number,
            };
            if number == libc::SIGWINCH {
                if let (true, Some(size)) = (self.options.tty, terminal::size()) {
                    ignore_late(sandbox.resize(&self.id, size).await)?;
                }
                continue;
            }
            if number == libc::SIGINT || number == libc::SIGTERM {
                endings += 1;
                if endings == FORCE_AFTER {
                    return Ok(None);
                }
            }
            ignore_late(sandbox.kill(&self.id, number, false).await)?;
        }
    }

    fn prepare_image(&self) -> anyhow::Result<PreparedImage> {
        let cache = Cache::of_user()?;
        Ok(image::prepare(
            &self.options.image,
            &cache,
            &Bar::new("Making a layer of the image"),
        )?)
    }

    async fn start_sandbox(
        &self,
        vmm: Vmm,
        assets: &Assets,
        kvm: &File,
        image: PreparedImage,
    ) -> Result<Sandbox, SandboxError> {
        let console = match &self.options.console {
            Some(path) => Some(File::create(path).map_err(|source| SandboxError::Host {
                act: format!("create the boot log {}", path.display()),
                source,
            })?),
            None => None,
        };
        let config = SandboxConfig {
            memory: self.memory,
            vcpus: self.options.cpus.vcpus(),
            layers: vec![image.file],
            console,
            kernel_arguments: self.options.kernel_argument.clone(),
        };
        Sandbox::start(vmm, assets, kvm, config).await
    }

    async fn start_container(
        &self,
        sandbox: &Sandbox,
        container: &ContainerOptions,
    ) -> Result<streams::Output, SandboxError> {
        let request = StdioRequest {
            stdin: self.options.interactive,
            terminal: self.options.tty,
        };
        let spec = docker_like(container);
        let stdio = sandbox.create(&self.id, &spec, 1, request).await?;
        let vcpus = self.options.cpus.vcpus();
        if vcpus > 1 {
            sandbox.online_cpus(vcpus).await?;
        }
        let output = streams::attach(stdio).map_err(|source| SandboxError::Host {
            act: "join the container's streams".into(),
            source,
        })?;
        sandbox.start_container(&self.id).await?;
        Ok(output)
    }

    /// What the image says, overridden by what the person says.
    fn container(&self, image: &ImageConfig) -> anyhow::Result<ContainerOptions> {
        let options = &self.options;
        let mut args = image.entrypoint.clone();
        if options.command.is_empty() {
            args.extend(image.cmd.iter().cloned());
        } else {
            args.extend(options.command.iter().cloned());
        }
        if args.is_empty() {
            args.push("sh".into());
        }
        let mut env = image.env.clone();
        for variable in &options.env {
            env.extend(given_variable(variable)?);
        }
        let choose =
            |mine: &Option<String>, images: &str| mine.clone().unwrap_or_else(|| images.to_owned());
        let cwd = choose(&options.workdir, &image.working_dir);
        if !cwd.is_empty() && !cwd.starts_with('/') {
            bail!("working directory {cwd:?} is not absolute; begin it with /");
        }
        Ok(ContainerOptions {
            args,
            env,
            cwd,
            user: choose(&options.user, &image.user),
            hostname: choose(&options.hostname, &self.id),
            memory: options.memory,
            cpus: Some(options.cpus),
            pids: options.pids_limit,
            terminal: options.tty.then(|| terminal::size().unwrap_or_default()),
            read_only: options.read_only,
        })
    }

    async fn show_timeline(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        if !self.options.verbose && self.options.trace.is_none() {
            return Ok(());
        }
        self.points.extend(sandbox.timeline().await?);
        let labels = [
            ("image", self.options.image.display().to_string()),
            ("command", self.options.command.join(" ")),
        ];
        let timeline = Timeline::new(std::mem::take(&mut self.points), labels);
        if self.options.verbose {
            output::note(timeline.table());
        }
        if let Some(path) = &self.options.trace {
            timeline.save(path)?;
        }
        Ok(())
    }

    fn report_out_of_memory(&self, exit: ContainerExit) {
        let limit = match self.options.memory {
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
    let sentence = error_chain(error) + advice;
    output::note(format_args!("nerite: {}", output::printable(&sentence)));
    code
}

fn error_chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// `NAME=VALUE` as it is; `NAME` with the value it has here, if it has one.
fn given_variable(text: &str) -> anyhow::Result<Option<String>> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() {
        bail!("environment variable {text:?} has no name; write NAME=VALUE");
    }
    if text.contains('=') {
        return Ok(Some(text.into()));
    }
    Ok(std::env::var(text)
        .ok()
        .map(|value| format!("{text}={value}")))
}

/// Guest RAM for a memory limit: the limit and what the guest itself takes.
fn guest_memory(limit: Option<ByteSize>) -> anyhow::Result<ByteSize> {
    let Some(limit) = limit else {
        return Ok(DEFAULT_MEMORY);
    };
    if limit < LEAST_MEMORY {
        bail!("memory limit {limit} is too small to start a process; give at least {LEAST_MEMORY}");
    }
    let host = host_memory()?;
    if limit > host {
        bail!("memory limit {limit} is more than this host has ({host}); give less with -m");
    }
    // The kernel needs 1/64 of RAM for its page structures.
    Ok(ByteSize(limit.0 + limit.0 / 64 + GUEST_OVERHEAD.0).round_up(HUGE_PAGE))
}

fn host_memory() -> anyhow::Result<ByteSize> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| ByteSize(kib << 10))
        .context("find MemTotal in /proc/meminfo")
}

/// Twelve hexadecimal digits, as Docker's short ids.
fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("draw a random id")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_adds_what_the_guest_takes() {
        assert_eq!(guest_memory(None).unwrap(), DEFAULT_MEMORY);
        assert_eq!(
            guest_memory(Some(ByteSize::mib(64))).unwrap(),
            ByteSize::mib(114)
        );
    }

    #[test]
    fn absurd_memory_is_refused_with_the_way_out() {
        let small = guest_memory(Some(ByteSize(1))).unwrap_err().to_string();
        assert_eq!(
            small,
            "memory limit 1 B is too small to start a process; give at least 6 MiB"
        );
        let large = guest_memory(Some(ByteSize(u64::MAX)))
            .unwrap_err()
            .to_string();
        assert!(large.contains("more than this host has"), "{large}");
    }

    #[test]
    fn variables_are_taken_as_docker_takes_them() {
        assert_eq!(given_variable("A=b=c").unwrap().as_deref(), Some("A=b=c"));
        assert_eq!(given_variable("NERITE_SURELY_UNSET").unwrap(), None);
        assert!(
            given_variable("PATH")
                .unwrap()
                .unwrap()
                .starts_with("PATH=")
        );
        assert!(given_variable("=x").is_err());
    }

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
