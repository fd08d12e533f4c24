//! `nerite generate`: man pages and completions, from the same definition
//! that parses the command line.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, GenerateOptions};

/// Runs the command.
pub(crate) fn run(options: &GenerateOptions) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    if let Some(directory) = &options.man {
        create(directory)?;
        clap_mangen::generate_to(command.clone(), directory)
            .with_context(|| format!("write man pages to {}", directory.display()))?;
    }
    if let Some(directory) = &options.completions {
        create(directory)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, "nerite", directory)
                .with_context(|| format!("write completions to {}", directory.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
