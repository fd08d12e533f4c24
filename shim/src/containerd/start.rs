//! `start`: a keeper of its own for each container.

use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::flags::Flags;

/// Where containerd keeps its shims' sockets.
const SOCKETS: &str = "/run/containerd/s";

/// The file of the bundle that has the keeper's process id.
pub(crate) const KEEPER: &str = "shim.pid";

/// Starts a keeper; answers its address, in the form that all versions of
/// containerd take: bare, which stands for version 2 of the Task service.
pub(crate) fn start(flags: &Flags) -> anyhow::Result<String> {
    ensure!(!flags.id.is_empty(), "-id is missing");
    // Options, which nothing is done with yet; the sender wants them read.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let path = socket_path(flags);
    let listener = listen(&path)?;
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(&program);
    command
        .args(["-id", &flags.id])
        .args(["-namespace", &flags.namespace])
        .args(["-address", &flags.address])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(log());
    if flags.debug {
        command.arg("-debug");
    }
    let address = format!("unix://{}", path.display());
    let mut start = || {
        // containerd 1.x looks there when it starts again.
        fs::write("address", &address).context("write the file address in the bundle")?;
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        fs::write(KEEPER, child.id().to_string())
            .inspect_err(|_| {
                // It has made nothing yet.
                let _ = child.kill();
            })
            .context("write the keeper's process id into the bundle")
    };
    let started = start();
    if started.is_err() {
        let _ = fs::remove_file(&path);
    }
    started.map(|()| address)
}

/// One socket for each container of each namespace of each containerd.
pub(crate) fn socket_path(flags: &Flags) -> PathBuf {
    let whose = [&flags.address, &flags.namespace, &flags.id];
    let mut hash = Sha256::new();
    for part in whose {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let name: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Path::new(SOCKETS).join(name)
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let bound = UnixListener::bind(path).or_else(|error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        // Of one that is gone nobody answers.
        if !taken || std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(error);
        }
        fs::remove_file(path)?;
        UnixListener::bind(path)
    });
    bound.with_context(|| format!("listen on {}", path.display()))
}

/// The FIFO in the bundle that containerd reads its shims' words from.
fn log() -> Stdio {
    let open = rustix::fs::open(
        "log",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    // Without one, as in a test, there is nobody to tell.
    open.map_or_else(|_| Stdio::null(), Stdio::from)
}
