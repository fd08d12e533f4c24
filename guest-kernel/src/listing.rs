//! The files of one kind in a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The files of `directory` with `extension`, in the order of their names.
pub(crate) fn files(directory: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
