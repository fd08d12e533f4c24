//! An OCI bundle: a directory with `config.json` and a root file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::oci::Spec;

/// A bundle that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No configuration.
    #[error("read {}; a bundle has a config.json, `runc spec` makes one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A configuration that is none.
    #[error("{}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what is wrong.
        source: serde_json::Error,
    },
    /// A part that nerite needs is not there.
    #[error("{} has no {field}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The part.
        field: &'static str,
    },
}

/// A bundle, read.
#[derive(Debug)]
pub struct Bundle {
    /// Its configuration.
    pub spec: Spec,
    /// The root file system, absolute.
    pub root: PathBuf,
    /// The bundle itself, which paths in it are relative to.
    pub directory: PathBuf,
}

impl Bundle {
    /// Reads the bundle in `directory`.
    ///
    /// # Errors
    ///
    /// [`BundleError`] names the file and what is wrong with it.
    pub fn read(directory: &Path) -> Result<Self, BundleError> {
        let path = directory.join("config.json");
        let text = fs::read(&path).map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?;
        let spec: Spec =
            serde_json::from_slice(&text).map_err(|source| BundleError::Malformed {
                path: path.clone(),
                source,
            })?;
        let missing = |field| BundleError::Missing {
            path: path.clone(),
            field,
        };
        if spec.process.is_none() {
            return Err(missing("process"));
        }
        let root = spec
            .root
            .as_ref()
            .filter(|root| !root.path.is_empty())
            .ok_or_else(|| missing("root.path"))?;
        Ok(Self {
            root: directory.join(&root.path),
            directory: directory.into(),
            spec,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> Result<Bundle, BundleError> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), config).unwrap();
        Bundle::read(directory.path())
    }

    #[test]
    fn root_is_relative_to_the_bundle_or_absolute() {
        let text = |root| format!(r#"{{"process": {{}}, "root": {{"path": "{root}"}}}}"#);
        assert!(bundle(&text("rootfs")).unwrap().root.ends_with("rootfs"));
        assert_eq!(bundle(&text("/r")).unwrap().root, Path::new("/r"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = bundle(r#"{"process": {"args": 5}}"#).unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("line 1"), "{source}");
        let error = bundle(r#"{"process": {}}"#).unwrap_err();
        assert!(error.to_string().ends_with("has no root.path"), "{error}");
        let error = Bundle::read(Path::new("/nowhere")).unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/config.json"),
            "{error}"
        );
    }
}
