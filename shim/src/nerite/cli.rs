//! What can be typed. Also the source of man pages and completions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shim::size::{ByteSize, Cpus};

/// Runs containers, each in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "nerite", version, propagate_version = true)]
#[command(after_help = "Start with `nerite check`, then `nerite try DIRECTORY sh`.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program from an image in a new virtual machine, in the foreground
    Try(Box<TryOptions>),
    /// Run a container from an OCI bundle in a new virtual machine, in the foreground
    Run(RunOptions),
    /// Say whether this host can run nerite, and what to do if not
    Check(CheckOptions),
    /// Draw a recorded start timeline as SVG
    Trace(TraceOptions),
    /// Write man pages and shell completions
    #[command(hide = true)]
    Generate(GenerateOptions),
}

/// Options of `nerite try`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
IMAGE is a directory with a root file system, a tar of one (plain, gzip, xz or
zstd), an archive made by `docker save`, or an OCI layout. The first start of an
image makes a read-only layer of it in ~/.cache/nerite; later starts use that.
What the program writes is kept in the machine's memory and gone at its end.

Exit status: the program's own; 128 plus the signal that ended it; 127 if it
does not exist in the image; 126 if it cannot be executed; 125 if nerite failed.

Examples:
  nerite try ./rootfs uname -r
  nerite try -it debian.tar bash
  echo hello | nerite try -i alpine-image.tar cat
  nerite try -m 128m -c 2 -e LANG=C.UTF-8 -v ./rootfs env")]
pub(crate) struct TryOptions {
    /// Pass standard input on to the program
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Limit the program's memory [default: no limit, in a machine of 512 MiB]
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,

    /// Number of processors, fractions allowed
    #[arg(short, long, value_name = "N", default_value = "1")]
    pub(crate) cpus: Cpus,

    /// Set an environment variable; without a value, take it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// User to run as: name or id, optionally with a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// Host name in the container [default: the sandbox's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Limit the number of processes and threads
    #[arg(long, value_name = "N")]
    pub(crate) pids_limit: Option<u32>,

    /// Forbid writes to the root file system
    #[arg(long)]
    pub(crate) read_only: bool,

    #[command(flatten)]
    pub(crate) watch: WatchOptions,

    /// The image: a directory, an archive or an OCI layout
    pub(crate) image: PathBuf,

    /// Program and arguments [default: what the image says, else `sh`]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// What to tell about a start.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WatchOptions {
    /// Print the start timeline at the end
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Record the start timeline to a file, for `nerite trace`
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Record the guest's boot log to a file (slows the boot down)
    #[arg(long, value_name = "FILE")]
    pub(crate) console: Option<PathBuf>,

    /// Append a word to the guest kernel's command line
    #[arg(long, value_name = "WORD", hide = true)]
    pub(crate) kernel_argument: Vec<String>,
}

/// Options of `nerite run`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The bundle's root directory is the container's root: what the container writes
appears there at once, with owner, mode and times. Bind mounts are shared in the
same way; every other mount is the guest's own.

Exit status: the program's own; 128 plus the signal that ended it; 127 if it
does not exist in the root; 126 if it cannot be executed; 125 if nerite failed.

Example:
  mkdir bundle && cd bundle && runc spec && ln -s /path/to/a/root rootfs
  nerite run mine")]
pub(crate) struct RunOptions {
    /// The bundle: a directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// Map large files into the guest, in a window of this size for each of
    /// root and volumes, instead of copying them (DAX) [default: no window]
    #[arg(long, value_name = "SIZE")]
    pub(crate) file_window: Option<ByteSize>,

    #[command(flatten)]
    pub(crate) watch: WatchOptions,

    /// A name for the container
    pub(crate) id: String,
}

/// Options of `nerite check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 if nerite can run here, 1 if not.")]
pub(crate) struct CheckOptions {
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `nerite trace`.
#[derive(Args, Debug)]
#[command(after_help = "Record one with `nerite try --trace FILE …`.")]
pub(crate) struct TraceOptions {
    /// The recorded timeline
    pub(crate) file: PathBuf,

    /// Where the picture goes [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Options of `nerite generate`.
#[derive(Args, Debug)]
pub(crate) struct GenerateOptions {
    /// Directory for man pages (section 1)
    #[arg(long, value_name = "DIR")]
    pub(crate) man: Option<PathBuf>,

    /// Directory for completions of bash, zsh and fish
    #[arg(long, value_name = "DIR")]
    pub(crate) completions: Option<PathBuf>,
}
