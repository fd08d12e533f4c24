//! `rootfs-builder`: makes EROFS layers by hand and in nerite's own build.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rootfs_builder::{image, os};

/// Builds the EROFS layers that nerite gives to its guests
#[derive(Debug, Parser)]
#[command(name = "rootfs-builder", version)]
enum Cli {
    /// Build the guest's OS layer
    Os {
        /// The agent's binary, which becomes /init
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// The EROFS image to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build a layer of a container image, as `nerite try` does
    Layer {
        /// A directory, a root tar, a `docker save` archive or an OCI layout
        image: PathBuf,
        /// The EROFS image to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Os { agent, output } => os::build(&agent, &output).map_err(anyhow::Error::from),
        Cli::Layer { image, output } => image::write_layer(&image, &output)
            .map(drop)
            .map_err(anyhow::Error::from),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place that prints")]
fn complain(error: &anyhow::Error) {
    eprintln!("rootfs-builder: {error:#}");
}
