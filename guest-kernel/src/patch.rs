//! Changes to the distribution's source: few, small, each with its reason.
//!
//! A patch is for what no option, no module and no program in the guest can do.
//! One that does not apply stops the build, so that a newer source which has
//! the change already, or has moved it, is noticed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::{CommandError, run, tool};
use crate::listing::files;

/// A patch that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The directory or one of its files.
    #[error("read patches in {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nothing before the first file's name.
    #[error("{0} does not say what it is for")]
    NoReason(String),
    /// The source is not what it was made for.
    #[error("apply {name}")]
    Apply {
        /// The patch.
        name: String,
        /// What `patch` says.
        source: CommandError,
    },
}

/// One patch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Patch {
    /// Its file.
    pub path: PathBuf,
    /// The whole file: the reason, then the unified difference.
    pub text: String,
}

/// Reads every `*.patch` of `directory`, in the order of their names; none if
/// there is no such directory.
///
/// # Errors
///
/// [`PatchError::Read`] and [`PatchError::NoReason`].
pub fn read_directory(directory: &Path) -> Result<Vec<Patch>, PatchError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| PatchError::Read { path, source }
    };
    let paths = match files(directory, "patch") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        paths => paths.map_err(unreadable(directory))?,
    };
    let mut patches = Vec::with_capacity(paths.len());
    for path in paths {
        let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
        if text.starts_with("--- ") {
            return Err(PatchError::NoReason(name(&path)));
        }
        patches.push(Patch { path, text });
    }
    Ok(patches)
}

/// Changes the source in `tree`.
///
/// # Errors
///
/// [`PatchError::Apply`]; the tree is then good for nothing.
pub fn apply(patches: &[Patch], tree: &Path) -> Result<(), PatchError> {
    for patch in patches {
        run(tool("patch")
            .args(["--batch", "--forward", "--fuzz=0", "--strip=1", "--silent"])
            .args(["--reject-file=-", "--no-backup-if-mismatch"])
            .arg("--directory")
            .arg(tree)
            .arg("--input")
            .arg(&patch.path))
        .map_err(|source| PatchError::Apply {
            name: name(&patch.path),
            source,
        })?;
    }
    Ok(())
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Why.\n\n--- a/file\n+++ b/file\n@@ -1 +1 @@\n-old\n+new\n";

    fn directory(text: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("one.patch"), text).unwrap();
        fs::write(directory.path().join("README"), "").unwrap();
        directory
    }

    #[test]
    fn patches_change_the_source_they_are_made_for_only() {
        let patches = read_directory(directory(TEXT).path());
        assert_eq!(patches.unwrap().len(), 1);
        let kept = directory(TEXT);
        let patches = read_directory(kept.path()).unwrap();
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("file");
        fs::write(&file, "old\n").unwrap();
        apply(&patches, tree.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new\n");
        // Again, or to another source.
        for text in ["new\n", "else\n"] {
            fs::write(&file, text).unwrap();
            let error = apply(&patches, tree.path()).unwrap_err();
            assert_eq!(error.to_string(), "apply one.patch");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn patch_without_a_reason_is_refused() {
        let (_, bare) = TEXT.split_once("\n\n").unwrap();
        let error = read_directory(directory(bare).path()).unwrap_err();
        assert_eq!(error.to_string(), "one.patch does not say what it is for");
    }

    #[test]
    fn no_directory_holds_no_patches() {
        assert_eq!(read_directory(Path::new("/nowhere")).unwrap(), []);
    }
}
