//! `nerite trace`: a recorded timeline as a picture.

use std::fs;
use std::process::ExitCode;

use anyhow::Context;
use shim::trace::Timeline;

use crate::cli::TraceOptions;
use crate::output;

/// Runs the command.
pub(crate) fn run(options: &TraceOptions) -> anyhow::Result<ExitCode> {
    let svg = Timeline::load(&options.file)?.svg();
    match &options.output {
        Some(path) => {
            fs::write(path, svg)
                .with_context(|| format!("write the picture {}", path.display()))?;
        }
        None => output::print(&svg)?,
    }
    Ok(ExitCode::SUCCESS)
}
