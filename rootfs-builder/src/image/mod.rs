//! A container image as a read-only layer, built once and kept in a cache.
//!
//! [`prepare`] takes what people have at hand and finds out what it is, by
//! structure and never by file name:
//!
//! | IMAGE | is |
//! |---|---|
//! | directory with `oci-layout` and `index.json` | an OCI layout |
//! | any other directory | a root file system |
//! | tar with `manifest.json` that lists `Config` and `Layers` | made by `docker save` (also its newer form, which holds an OCI layout too) |
//! | tar with `oci-layout` and `index.json` | an OCI layout |
//! | any other tar | a root file system |
//!
//! Tars may be compressed by gzip, xz or zstd, which their first bytes tell.
//! This looks at what the *user* names; what a guest wrote is never probed.

mod cache;
mod config;
mod directory;
mod error;
mod progress;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use self::cache::Cache;
pub use self::config::ImageConfig;
pub use self::error::ImageError;
pub use self::progress::{Progress, Silent};

use self::cache::Key;
use self::directory::Directory;
use crate::erofs::Writer;

/// An image that a guest can be given.
#[derive(Debug)]
pub struct PreparedImage {
    /// The EROFS image in the cache: a multiple of 4096 bytes. Use [`file`]
    /// to read it; the path is for messages, for a newer state of the same
    /// IMAGE may take its place at any time.
    ///
    /// [`file`]: PreparedImage::file
    pub layer: PathBuf,
    /// The same file, open for reading only.
    pub file: File,
    /// What the image says about its program; empty for root file systems.
    pub config: ImageConfig,
    /// Whether it was there already.
    pub cached: bool,
}

/// Makes a layer of an image, or finds it in the cache.
///
/// A layer is found again as long as nothing about the image's files changed
/// that `lstat` shows (for an archive: the archive's own; for a directory:
/// every entry's). What changed less than 20 ms before, or while it was read,
/// is built again next time, because such a change may show no trace.
///
/// # Errors
///
/// [`ImageError`]; nothing is left behind then.
pub fn prepare(
    image: &Path,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PreparedImage, ImageError> {
    let source = Source::open(image)?;
    let key = source.key()?;
    if let Some(found) = cache.find(&key) {
        return Ok(found);
    }
    cache.fill(&key, &source.place, |file| {
        let (file, config) = source.build(file, cache.directory(), progress)?;
        Ok((file, config, source.key()?))
    })
}

/// Makes a layer of an image in a file of the caller's choice. `output`
/// appears or is replaced whole.
///
/// # Errors
///
/// [`ImageError`].
pub fn write_layer(image: &Path, output: &Path) -> Result<ImageConfig, ImageError> {
    let source = Source::open(image)?;
    let parent = output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let write = |error| ImageError::write(parent, error);
    let temporary = tempfile::NamedTempFile::new_in(parent).map_err(write)?;
    let file = temporary.as_file().try_clone().map_err(write)?;
    let (_, config) = source.build(file, parent, &Silent)?;
    let mode = fs::Permissions::from_mode(0o644);
    temporary.as_file().set_permissions(mode).map_err(write)?;
    temporary
        .persist(output)
        .map_err(|error| write(error.error))?;
    Ok(config)
}

/// An image that exists.
struct Source {
    /// Its absolute path without links.
    place: PathBuf,
    kind: Kind,
}

enum Kind {
    Directory(Directory),
}

impl Source {
    fn open(image: &Path) -> Result<Self, ImageError> {
        let place = fs::canonicalize(image).map_err(|error| ImageError::open(image, error))?;
        let found = fs::metadata(&place).map_err(|error| ImageError::open(image, error))?;
        let kind = if found.is_dir() {
            Kind::Directory(Directory::open(image)?)
        } else {
            return Err(ImageError::NotAnImage { path: image.into() });
        };
        Ok(Self { place, kind })
    }

    fn key(&self) -> Result<Key, ImageError> {
        match &self.kind {
            Kind::Directory(directory) => directory.key(),
        }
    }

    /// Writes the layer to an empty file, which is in `target`.
    fn build(
        &self,
        file: File,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<(File, ImageConfig), ImageError> {
        let mut writer = Writer::new(file);
        let (tree, config) = match &self.kind {
            Kind::Directory(directory) => (
                directory.read(&mut writer, target, progress)?,
                ImageConfig::default(),
            ),
        };
        let file = writer
            .finish(&tree)
            .map_err(|error| ImageError::write(target, error))?;
        Ok((file, config))
    }
}
