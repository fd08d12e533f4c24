//! The OS layer: the agent as `/init` and the directories that it mounts on.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directories that the kernel and the agent need, with their modes.
const DIRECTORIES: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// An OS layer that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum OsError {
    /// A file or directory cannot be read or written.
    #[error("{act} {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// `mkfs.erofs` failed.
    #[error("run mkfs.erofs: {0}")]
    Mkfs(String),
}

/// Builds the OS layer from the agent's binary. Equal agents give equal bytes.
///
/// # Errors
///
/// [`OsError`].
pub fn build(agent: &Path, output: &Path) -> Result<(), OsError> {
    let io = |act, path: &Path| {
        let path = path.to_owned();
        move |source| OsError::Io { act, path, source }
    };
    let parent = output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let stage = tempfile::tempdir_in(parent).map_err(io("create a directory in", parent))?;
    let root = stage.path().join("root");
    fs::create_dir(&root).map_err(io("create", &root))?;
    fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).map_err(io("chmod", &root))?;
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir(&path).map_err(io("create", &path))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).map_err(io("chmod", &path))?;
    }
    let init = root.join("init");
    fs::copy(agent, &init).map_err(io("copy", agent))?;
    fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).map_err(io("chmod", &init))?;

    let image = stage.path().join("os.erofs");
    let done = Command::new("mkfs.erofs")
        .env_remove("SOURCE_DATE_EPOCH")
        .args(["--quiet", "--all-root", "-x-1", "-T0", "-Enoinline_data"])
        .arg("-U6e657269-7465-4f53-8000-000000000001")
        .args([&image, &root])
        .output()
        .map_err(io("start", Path::new("mkfs.erofs")))?;
    if !done.status.success() {
        return Err(OsError::Mkfs(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        ));
    }
    fs::rename(&image, output).map_err(io("write", output))
}
