//! `nerite check`: the report on a terminal or as JSON.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use shim::assets::Assets;
use shim::check::{self, Report, Status};

use crate::cli::CheckOptions;
use crate::output;

/// Runs the command.
pub(crate) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let assets = Assets::locate()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let report = runtime.block_on(check::run(&assets));
    let text = if options.json {
        serde_json::to_string_pretty(&report).context("write the report as JSON")? + "\n"
    } else {
        for_people(&report)
    };
    output::print(&text)?;
    Ok(if report.can_run {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn for_people(report: &Report) -> String {
    let mut text = String::new();
    let width = report
        .items
        .iter()
        .map(|item| item.name.len())
        .max()
        .unwrap_or(0);
    for item in &report.items {
        let mark = match item.status {
            Status::Ok => "✓",
            Status::Warning => "!",
            Status::Failure => "✗",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark} {:width$}  {}", item.name, item.found);
        if let Some(advice) = &item.advice {
            let _ = writeln!(text, "  {:width$}  → {advice}", "");
        }
    }
    text.push_str(if report.can_run {
        "\nnerite can run here.\n"
    } else {
        "\nnerite cannot run here; the lines marked ✗ say why.\n"
    });
    text
}
