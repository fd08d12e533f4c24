//! `nerite run`: one container from an OCI bundle, in the foreground.

use std::process::ExitCode;

use anyhow::{Context, bail};
use protocol::timeline::{IMAGE_READY, Point};
use shim::bundle::Bundle;
use shim::machine::{guest_memory, memory_limit, processors, resources};
use shim::mounts;
use shim::size::ByteSize;

use crate::cli::RunOptions;
use crate::foreground::{self, Foreground};
use crate::signals::Signals;
use crate::terminal;

/// Runs the command.
pub(crate) fn run(options: RunOptions, start: Point) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(&options.bundle)
        .with_context(|| format!("find the bundle {}", options.bundle.display()))?;
    let bundle = Bundle::read(&directory)?;
    let resources = resources(&bundle.spec);
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
