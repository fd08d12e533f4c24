//! `nerite`: the command line for people.
//!
//! Parses, calls the core library, maps errors to one sentence and an exit
//! status. Everything printed goes through [`output`].

mod check;
mod cli;
mod foreground;
mod generate;
mod output;
mod progress;
mod run;
mod signals;
mod streams;
mod terminal;
mod trace;
mod try_image;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let start = protocol::timeline::Point::now(protocol::timeline::KEEPER_START);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let result = match cli.command {
        Command::Try(options) => try_image::run(*options, start),
        Command::Run(options) => run::run(options, start),
        Command::Check(options) => check::run(&options),
        Command::Trace(options) => trace::run(&options),
        Command::Generate(options) => generate::run(&options),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        // Docker's status for "the runtime itself failed".
        ExitCode::from(125)
    })
}
