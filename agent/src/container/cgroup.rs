//! A container's cgroup (cgroup v2 only; Documentation/admin-guide/cgroup-v2.rst).
//!
//! Each container has one, directly below the root. It may make more below
//! it; killing, freezing, counting and removing take those with them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::boot::CGROUP_ROOT;
use crate::error::{Attempt, Failure, Result};
use crate::sys;

/// How long killed or frozen processes may take. They need no time of their
/// own; only a kernel that hangs takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// A cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes a container's cgroup.
    pub(crate) fn create(container: &str) -> Result<Self> {
        // The prefix keeps it apart from the files beside it.
        let path = Path::new(CGROUP_ROOT).join(format!("container-{container}"));
        fs::create_dir(&path).attempt(|| format!("make cgroup {}", path.display()))?;
        let directory =
            open_directory(&path).attempt(|| format!("open cgroup {}", path.display()))?;
        Ok(Self { path, directory })
    }

    /// For `clone3`.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether processes can be put into it: a cgroup that has given
    /// controllers to its children takes none.
    pub(crate) fn is_leaf(&self) -> bool {
        self.read("cgroup.subtree_control")
            .is_none_or(|controllers| controllers.trim().is_empty())
    }

    /// Where a new process can go when this cgroup has become an inner one:
    /// where the container's first process is now.
    pub(crate) fn leaf_of(&self, init: u32) -> Result<OwnedFd> {
        let act = || format!("find the cgroup of process {init}");
        let text = fs::read_to_string(format!("/proc/{init}/cgroup")).attempt(act)?;
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .map(|path| Path::new(CGROUP_ROOT).join(path))
            .filter(|path| path.starts_with(&self.path))
            .ok_or_else(|| Failure::internal(format!("process {init} has left its container")))?;
        open_directory(&path).attempt(|| format!("open cgroup {}", path.display()))
    }

    /// Writes a file.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.path.join(file), value).attempt(|| format!("set {file} to {value:?}"))
    }

    /// Reads a file; `None` if this kernel does not have it.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path.join(file)).ok()
    }

    /// Opens a file.
    pub(crate) fn open(&self, file: &str) -> io::Result<File> {
        File::open(self.path.join(file))
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Stops or continues everything in it; returns when that has happened.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        self.wait_for("frozen", value).await
    }

    /// All processes in it and below, as the agent sees their ids.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        collect_processes(&self.path, &mut found, 0);
        found
    }

    /// Removes it and all below it, once the last process has gone.
    pub(crate) async fn remove(&self) -> Result<()> {
        loop {
            match remove_tree(&self.path, 0) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => {
                    return Err(error).attempt(|| format!("remove {}", self.path.display()));
                }
            }
            self.wait_for("populated", "0").await?;
        }
    }

    /// Waits until `cgroup.events` says so.
    async fn wait_for(&self, key: &str, value: &str) -> Result<()> {
        let act = || format!("watch {}", self.path.display());
        let file = self.open("cgroup.events").attempt(act)?;
        let mut events = Watch::new(file).attempt(act)?;
        let reached = async {
            loop {
                if field(&events.next().await?, key) == Some(value) {
                    return Ok::<(), io::Error>(());
                }
            }
        };
        match tokio::time::timeout(DEADLINE, reached).await {
            Ok(result) => result.attempt(act),
            Err(_) => Err(Failure::internal(format!(
                "{} is not {key} {value} after {} s",
                self.path.display(),
                DEADLINE.as_secs()
            ))),
        }
    }
}

/// A file of the cgroup file system that tells when it changes.
#[derive(Debug)]
pub(crate) struct Watch {
    file: AsyncFd<OwnedFd>,
    first: bool,
}

impl Watch {
    /// Begins to watch.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        Ok(Self {
            file: sys::asynchronous(file.into(), Interest::PRIORITY)?,
            first: true,
        })
    }

    /// The content: at once the first time, then after each change.
    pub(crate) async fn next(&mut self) -> io::Result<String> {
        if !std::mem::take(&mut self.first) {
            self.file.ready(Interest::PRIORITY).await?.clear_ready();
        }
        // These files are some lines long.
        let mut bytes = [0; 4096];
        let length = rustix::io::pread(&self.file, &mut bytes, 0)?;
        Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
    }
}

/// The value of `key` in a file of lines `key value`.
pub(crate) fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// Containers may nest cgroups without a limit; this walks as deep as the
/// kernel lets them by default, and no deeper.
const DEEPEST: usize = 64;

fn collect_processes(path: &Path, found: &mut Vec<u32>, depth: usize) {
    // A cgroup that has gone meanwhile has no processes.
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(path, depth) {
        collect_processes(&child, found, depth.saturating_add(1));
    }
}

fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        result => return result,
    }
    for child in children(path, depth) {
        match remove_tree(&child, depth.saturating_add(1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(path)
}

fn children(path: &Path, depth: usize) -> Vec<PathBuf> {
    if depth >= DEEPEST {
        return Vec::new();
    }
    let entries = fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(std::result::Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn open_directory(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_found_by_its_whole_name() {
        let text = "oom 1\noom_kill 2\noom_group_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some("2"));
        assert_eq!(field(text, "oom"), Some("1"));
        assert_eq!(field(text, "kill"), None);
    }
}
