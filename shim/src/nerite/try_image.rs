//! `nerite try`: one container from an image, in the foreground.

use std::process::ExitCode;

use anyhow::{Context, bail};
use protocol::control::BlockLimits;
use protocol::timeline::{IMAGE_READY, Point};
use rootfs_builder::image::{self, Cache, ImageConfig, PreparedImage};
use shim::machine::guest_memory;
use shim::rootfs::RootFs;
use shim::size::ByteSize;
use shim::spec::{ContainerOptions, docker_like};

use crate::cli::TryOptions;
use crate::foreground::{self, Foreground};
use crate::progress::Bar;
use crate::signals::Signals;
use crate::terminal;

/// Runs the command.
pub(crate) fn run(options: TryOptions, start: Point) -> anyhow::Result<ExitCode> {
    let memory = guest_memory(options.memory)?;
    if options.tty && options.interactive && !terminal::is_interactive() {
        bail!("standard input is not a terminal; leave out -t, or -i");
    }
    let attempt = Try {
        id: random_id()?,
        options,
    };
    foreground::block_on(async {
        let signals = Signals::listen().context("take over signals")?;
        let image = attempt.prepare_image()?;
        let container = attempt.container(&image.config)?;
        let options = attempt.options;
        let foreground = Foreground {
            spec: docker_like(&container),
            id: attempt.id,
            root: RootFs::first_image(options.read_only),
            images: vec![image.file],
            disks: Vec::new(),
            writes_to_disks: false,
            limits: BlockLimits::default(),
            trees: Vec::new(),
            sockets: Vec::new(),
            memory,
            window: ByteSize(0),
            limit: options.memory,
            cpus: options.cpus,
            stdin: options.interactive,
            labels: vec![
                ("image", options.image.display().to_string()),
                ("command", options.command.join(" ")),
            ],
            watch: options.watch,
            points: vec![start, Point::now(IMAGE_READY)],
        };
        foreground.run(signals).await
    })
}

struct Try {
    options: TryOptions,
    id: String,
}

impl Try {
    fn prepare_image(&self) -> anyhow::Result<PreparedImage> {
        let cache = Cache::of_user()?;
        Ok(image::prepare(
            &self.options.image,
            &cache,
            &Bar::new("Making a layer of the image"),
        )?)
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
}
