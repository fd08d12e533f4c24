//! `nerite run`: one container from an OCI bundle, in the foreground.

use std::process::ExitCode;

use anyhow::{Context, bail};
use protocol::oci::Resources;
use protocol::timeline::{IMAGE_READY, Point};
use shim::bundle::Bundle;
use shim::mounts;
use shim::size::{ByteSize, Cpus};

use crate::cli::RunOptions;
use crate::foreground::{self, Foreground};
use crate::guest_memory::guest_memory;
use crate::signals::Signals;
use crate::terminal;

/// Runs the command.
pub(crate) fn run(options: RunOptions, start: Point) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(&options.bundle)
        .with_context(|| format!("find the bundle {}", options.bundle.display()))?;
    let bundle = Bundle::read(&directory)?;
    let resources = bundle
        .spec
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.clone())
        .unwrap_or_default();
    let process = bundle.spec.process.as_ref();
    if process.is_some_and(|process| process.terminal) && !terminal::is_interactive() {
        bail!(
            "the bundle wants a terminal (process.terminal) and standard input is none; \
             set it to false, or use `script`"
        );
    }
    let limit = memory_limit(&resources);
    let command = process.map(|process| process.args.join(" "));
    let plan = mounts::plan(bundle)?;
    let foreground = Foreground {
        id: options.id,
        spec: plan.spec,
        root: plan.root,
        images: plan.images,
        writes_to_disks: plan.disks.iter().any(|disk| !disk.read_only),
        disks: plan.disks,
        limits: plan.limits,
        trees: plan.trees,
        sockets: plan.sockets,
        memory: guest_memory(limit)?,
        window: options.file_window.unwrap_or(ByteSize(0)),
        limit,
        cpus: processors(&resources),
        stdin: true,
        labels: vec![
            ("bundle", directory.display().to_string()),
            ("command", command.unwrap_or_default()),
        ],
        watch: options.watch,
        points: vec![start, Point::now(IMAGE_READY)],
    };
    foreground::block_on(async {
        let signals = Signals::listen().context("take over signals")?;
        foreground.run(signals).await
    })
}

/// The memory limit, if there is one.
fn memory_limit(resources: &Resources) -> Option<ByteSize> {
    let limit = resources.memory.as_ref()?.limit?;
    u64::try_from(limit)
        .ok()
        .filter(|limit| *limit > 0)
        .map(ByteSize)
}

/// Processors that the quota asks for.
fn processors(resources: &Resources) -> Cpus {
    /// The kernel's period where none is given, in microseconds.
    const PERIOD: u64 = 100_000;
    let thousandths = || {
        let cpu = resources.cpu.as_ref()?;
        let quota = u64::try_from(cpu.quota?).ok()?;
        let period = cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD);
        u32::try_from(quota.checked_mul(1000)? / period).ok()
    };
    thousandths()
        .filter(|cpus| *cpus > 0)
        .map_or(Cpus::ONE, Cpus)
}

#[cfg(test)]
mod tests {
    use protocol::oci::{CpuLimits, MemoryLimits};

    use super::*;

    #[test]
    fn machine_is_as_large_as_the_limits() {
        let none = Resources::default();
        assert_eq!((memory_limit(&none), processors(&none)), (None, Cpus::ONE));
        let some = Resources {
            memory: Some(MemoryLimits {
                limit: Some(64 << 20),
                ..MemoryLimits::default()
            }),
            cpu: Some(CpuLimits {
                quota: Some(150_000),
                ..CpuLimits::default()
            }),
            ..Resources::default()
        };
        assert_eq!(memory_limit(&some), Some(ByteSize::mib(64)));
        assert_eq!(processors(&some), Cpus(1500));
        let unlimited = Resources {
            memory: Some(MemoryLimits {
                limit: Some(-1),
                ..MemoryLimits::default()
            }),
            cpu: Some(CpuLimits {
                quota: Some(-1),
                ..CpuLimits::default()
            }),
            ..Resources::default()
        };
        assert_eq!(
            (memory_limit(&unlimited), processors(&unlimited)),
            (None, Cpus::ONE)
        );
    }
}
