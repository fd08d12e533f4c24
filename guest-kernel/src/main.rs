//! `guest-kernel`: builds the kernel that runs inside nerite's machines, and
//! shows what it is made of.

#![forbid(unsafe_code)]

mod output;

use std::fs;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use guest_kernel::builder::{self, Order};
use guest_kernel::cache::{Cache, Kernel};
use guest_kernel::progress::Progress;
use guest_kernel::{fragment, initcalls, size};

/// Builds nerite's guest kernel and shows what it is made of
///
/// The result is an uncompressed x86-64 `vmlinux` without modules, for a direct
/// boot. It is cached by a digest of the source package's version, the patches,
/// the options and the compiler, below ${XDG_CACHE_HOME:-~/.cache}/nerite/kernel.
#[derive(Debug, Parser)]
#[command(name = "guest-kernel", version)]
enum Cli {
    /// Build the kernel, or find it in the cache, and print its path
    ///
    /// Takes four to eight minutes on two cores the first time and no time
    /// after. The source package is downloaded with `apt-get download` and
    /// unpacked without being installed; no root is needed.
    Build(Build),
    /// Show the size of each subsystem in the kernel that `build` gives
    Size {
        #[command(flatten)]
        fragments: Fragments,
        /// How many directories deep a subsystem is: 1 says `net`, 2 `net/ipv4`
        #[arg(long, value_name = "LEVELS", default_value = "2")]
        depth: NonZeroUsize,
        /// Show only this many of the largest
        #[arg(long, value_name = "N", default_value = "40")]
        top: usize,
    },
    /// Show the costliest initcalls of a boot
    ///
    /// The log is the console's of a guest that booted with
    /// `initcall_debug loglevel=8` on its command line.
    Initcalls {
        /// The boot log, or - for standard input
        log: PathBuf,
        /// Show only this many of the costliest
        #[arg(long, value_name = "N", default_value = "20")]
        top: usize,
    },
    /// Show each option that the fragments set, with its reason, as Markdown
    Options(Fragments),
}

/// Which configuration.
#[derive(Debug, Args)]
struct Fragments {
    /// Take the *.config of this directory instead of nerite's own
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fragments"), hide_default_value = true)]
    fragments: PathBuf,
    /// Take the *.patch of this directory instead of nerite's own
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/patches"), hide_default_value = true)]
    patches: PathBuf,
}

/// How to build, and where to.
#[derive(Debug, Args)]
struct Build {
    #[command(flatten)]
    fragments: Fragments,
    /// Compile this many files at a time [default: one for each CPU]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Also copy the kernel to this path
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Build(arguments) => build(arguments),
        Cli::Size {
            fragments,
            depth,
            top,
        } => show_size(fragments, depth, top),
        Cli::Initcalls { log, top } => show_initcalls(&log, top),
        Cli::Options(Fragments { fragments, .. }) => fragment::read_directory(&fragments)
            .map_err(anyhow::Error::from)
            .and_then(|requests| output::print(&output::markdown(&requests))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn kernel(fragments: Fragments, jobs: Option<NonZeroUsize>) -> Result<Kernel> {
    let all = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let order = Order {
        cache: Cache::of_user()?,
        fragments: fragments.fragments,
        patches: fragments.patches,
        jobs: jobs.unwrap_or_else(all),
    };
    let mut progress = Progress::new();
    let built = builder::build(&order, &mut progress);
    progress.finish();
    Ok(built?)
}

fn build(arguments: Build) -> Result<()> {
    let kernel = kernel(arguments.fragments, arguments.jobs)?;
    let path = match arguments.output {
        Some(output) => {
            copy(&kernel.vmlinux(), &output)
                .with_context(|| format!("copy the kernel to {}", output.display()))?;
            output
        }
        None => kernel.vmlinux(),
    };
    output::print(&format!("{}\n", path.display()))
}

/// Replaces `to` in one step, so that a machine that starts meanwhile loads one
/// kernel or the other.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let copied = fs::copy(from, &name).and_then(|_| fs::rename(&name, to));
    if copied.is_err() {
        // The copy's own failure is the one to report.
        let _ = fs::remove_file(&name);
    }
    copied
}

fn show_size(fragments: Fragments, depth: NonZeroUsize, top: usize) -> Result<()> {
    let kernel = kernel(fragments, None)?;
    let path = kernel.sizes();
    let listing = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let path = kernel.vmlinux();
    let file = fs::metadata(&path).with_context(|| format!("read {}", path.display()))?;
    let table = size::table(&size::parse(&listing), depth, top);
    output::print(&format!(
        "{table}{:>10}  vmlinux as a file, KB\n",
        file.len() / 1000
    ))
}

fn show_initcalls(log: &Path, top: usize) -> Result<()> {
    let mut text = Vec::new();
    let read = if log == Path::new("-") {
        io::stdin().read_to_end(&mut text)
    } else {
        fs::File::open(log).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.with_context(|| format!("read the boot log {}", log.display()))?;
    let calls = initcalls::parse(&String::from_utf8_lossy(&text));
    anyhow::ensure!(
        !calls.is_empty(),
        "{} names no initcall; boot with initcall_debug loglevel=8 on the command line",
        log.display()
    );
    output::print(&initcalls::table(&calls, top))
}
