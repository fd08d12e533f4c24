//! Where nerite's own files are: beside its program.
//!
//! ```text
//!  PREFIX/bin/nerite
//!  PREFIX/lib/nerite/nerite-vmm    the virtual machine monitor
//!  PREFIX/lib/nerite/nerite-fs     the file broker
//!  PREFIX/lib/nerite/vmlinux       the guest kernel
//!  PREFIX/lib/nerite/os.erofs      the OS layer with the agent
//! ```
//!
//! Relative to the program and nothing else, so that an installation can be
//! moved or unpacked anywhere and two of them never mix their parts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Paths of the installed files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assets {
    /// The directory of all of them.
    pub directory: PathBuf,
    /// The virtual machine monitor.
    pub vmm: PathBuf,
    /// The file broker.
    pub broker: PathBuf,
    /// The guest kernel, an uncompressed `vmlinux`.
    pub kernel: PathBuf,
    /// The OS layer, an EROFS image.
    pub os_layer: PathBuf,
}

/// An installation that is not complete.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// The running program's own path is not to be had.
    #[error("find the path of the running program")]
    Program {
        /// The system's error.
        source: io::Error,
    },
    /// A file of the installation cannot be opened.
    #[error(
        "open {what} {}; reinstall nerite (`make install`)", path.display()
    )]
    Open {
        /// What the file is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Assets {
    /// The files that belong to the running program.
    ///
    /// # Errors
    ///
    /// [`AssetError::Program`].
    pub fn locate() -> Result<Self, AssetError> {
        let program = std::env::current_exe().map_err(|source| AssetError::Program { source })?;
        Ok(Self::beside(&program))
    }

    /// The files that belong to the program at `PREFIX/bin/NAME`.
    #[must_use]
    pub fn beside(program: &Path) -> Self {
        let prefix = program
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"));
        let directory = prefix.join("lib/nerite");
        Self {
            vmm: directory.join("nerite-vmm"),
            broker: directory.join("nerite-fs"),
            kernel: directory.join("vmlinux"),
            os_layer: directory.join("os.erofs"),
            directory,
        }
    }

    /// Opens the kernel for reading.
    ///
    /// # Errors
    ///
    /// [`AssetError::Open`].
    pub fn open_kernel(&self) -> Result<File, AssetError> {
        open("the guest kernel", &self.kernel)
    }

    /// Opens the OS layer for reading.
    ///
    /// # Errors
    ///
    /// [`AssetError::Open`].
    pub fn open_os_layer(&self) -> Result<File, AssetError> {
        open("the OS layer", &self.os_layer)
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, AssetError> {
    File::open(path).map_err(|source| AssetError::Open {
        what,
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assets_lie_beside_the_program() {
        let assets = Assets::beside(Path::new("/opt/x/bin/nerite"));
        assert_eq!(assets.kernel, Path::new("/opt/x/lib/nerite/vmlinux"));
        assert_eq!(assets.vmm, Path::new("/opt/x/lib/nerite/nerite-vmm"));
    }

    #[test]
    fn missing_asset_is_named() {
        let error = Assets::beside(Path::new("/nowhere/bin/nerite"))
            .open_kernel()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "open the guest kernel /nowhere/lib/nerite/vmlinux; reinstall nerite (`make install`)"
        );
    }
}
