//! The kernel's source: the distribution's package, unpacked without being
//! installed.
//!
//! apt decides which version and from where, so that security updates arrive as
//! for any package and no address stands here. Installing it would need root
//! and leave the archive on the machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, remove_tree};
use crate::command::{CommandError, run, tool};
use crate::digest::of_patches;
use crate::patch::{self, Patch, PatchError};

/// The package with the pristine-plus-security source of the LTS kernel.
pub const PACKAGE: &str = "linux-source-6.12";

/// The source could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// apt has no candidate.
    #[error(
        "apt offers no {PACKAGE}; run apt-get update, and on Debian 12 enable bookworm-security"
    )]
    Unknown,
    /// The package is not laid out as expected.
    #[error("{package} holds no {missing}")]
    Layout {
        /// File name of the package.
        package: String,
        /// What was looked for.
        missing: String,
    },
    /// apt, dpkg-deb or tar failed.
    #[error("get {PACKAGE}")]
    Command(#[from] CommandError),
    /// A patch is not for this version.
    #[error("change the kernel's source")]
    Patch(#[from] PatchError),
    /// The cache could not be written.
    #[error("keep {PACKAGE}")]
    Cache(#[from] CacheError),
}

/// The version that apt would take now.
///
/// # Errors
///
/// [`SourceError::Unknown`] if there is none, [`SourceError::Command`] if apt fails.
pub fn offered_version() -> Result<String, SourceError> {
    let (policy, _) = run(tool("apt-cache").args(["policy", PACKAGE]))?;
    candidate(&policy).ok_or(SourceError::Unknown)
}

fn candidate(policy: &str) -> Option<String> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

/// Where a source is.
#[derive(Clone, Debug)]
pub struct Source {
    /// Unpacked and patched.
    pub tree: PathBuf,
    /// What is made of it.
    pub objects: PathBuf,
}

/// The source of `version` with `patches`, downloaded and unpacked if the cache
/// has it not; then others go. `step` is told what is about to take long.
///
/// # Errors
///
/// [`SourceError`].
pub fn get(
    cache: &Cache,
    version: &str,
    patches: &[Patch],
    step: &mut dyn FnMut(&str),
) -> Result<Source, SourceError> {
    let home = cache.source(version, &of_patches(patches));
    let source = Source {
        tree: home.join("tree"),
        objects: home.join("objects"),
    };
    if source.tree.exists() {
        return Ok(source);
    }
    let incoming = home.join("incoming");
    remove_tree(&incoming)?;
    fs::create_dir_all(&incoming).map_err(CacheError::file("create", &incoming))?;
    step(&format!("downloading {PACKAGE} {version}"));
    run(tool("apt-get")
        .args(["-q", "download"])
        .arg(format!("{PACKAGE}={version}"))
        .current_dir(&incoming))?;
    step("unpacking the source");
    let package = only_package(&incoming)?;
    run(tool("dpkg-deb").arg("-x").arg(&package).arg(&incoming))?;
    let archive = incoming.join(format!("usr/src/{PACKAGE}.tar.xz"));
    // The system's tar with xz: it decodes on all CPUs, in 11 s where a decoder
    // in this process takes a minute.
    run(tool("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&incoming)
        .env("XZ_DEFAULTS", "-T0"))?;
    let unpacked = incoming.join(PACKAGE);
    if !unpacked.join("Kconfig").exists() {
        return Err(layout(&package, &format!("{PACKAGE}/Kconfig")));
    }
    patch::apply(patches, &unpacked)?;
    fs::rename(&unpacked, &source.tree).map_err(CacheError::file("rename", &unpacked))?;
    remove_tree(&incoming)?;
    remove_others(&home)?;
    Ok(source)
}

fn only_package(directory: &Path) -> Result<PathBuf, SourceError> {
    let entries = fs::read_dir(directory).map_err(CacheError::file("read", directory))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| layout(directory, "package after the download"))
}

fn layout(package: &Path, missing: &str) -> SourceError {
    SourceError::Layout {
        package: package
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        missing: missing.to_owned(),
    }
}

/// Removes the sources beside `home`: they are large, and a later kernel never
/// goes back.
fn remove_others(home: &Path) -> Result<(), CacheError> {
    let Some(all) = home.parent() else {
        return Ok(());
    };
    for entry in fs::read_dir(all).map_err(CacheError::file("read", all))? {
        let path = entry.map_err(CacheError::file("read", all))?.path();
        if path != home {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_what_apt_would_install() {
        let policy = "linux-source-6.12:\n  Installed: (none)\n  Candidate: 6.12.57-1~deb12u1\n  \
            Version table:\n     6.12.57-1~deb12u1 500\n";
        assert_eq!(candidate(policy).as_deref(), Some("6.12.57-1~deb12u1"));
    }

    #[test]
    fn candidate_is_none_for_a_package_that_apt_does_not_have() {
        assert_eq!(candidate(""), None);
        assert_eq!(
            candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"),
            None
        );
    }
}
