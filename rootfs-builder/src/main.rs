//! `rootfs-builder`: makes EROFS layers by hand and in nerite's own build.

use std::path::PathBuf;

use clap::Parser;

/// Builds the EROFS layers that nerite gives to its guests.
#[derive(Debug, Parser)]
#[command(version)]
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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Os { agent, output } => Ok(rootfs_builder::os::build(&agent, &output)?),
    }
}
