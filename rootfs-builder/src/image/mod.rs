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

mod archive_error;
mod cache;
mod compression;
mod config;
mod directory;
mod error;
mod layer;
mod manifest;
mod merge;
mod progress;
mod store;
mod tar;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use self::archive_error::ArchiveError;
pub use self::cache::Cache;
pub use self::config::ImageConfig;
pub use self::error::ImageError;
pub use self::progress::{Progress, Silent};

use self::cache::{Key, KeyBuilder};
use self::directory::Directory;
use self::layer::LayerError;
use self::manifest::Parts;
use self::merge::Merge;
use self::store::{Meter, Span, Store};
use crate::erofs::Writer;
use crate::tree::Tree;

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
    /// What the user named.
    path: PathBuf,
    /// The same, absolute and without links.
    place: PathBuf,
    kind: Kind,
}

enum Kind {
    /// A root file system.
    Directory(Directory),
    /// An OCI layout.
    Layout(Directory),
    /// Any file.
    Archive,
}

impl Source {
    fn open(image: &Path) -> Result<Self, ImageError> {
        let open = |error| ImageError::open(image, error);
        let place = fs::canonicalize(image).map_err(open)?;
        let found = fs::metadata(&place).map_err(open)?;
        let kind = if found.is_dir() {
            let directory = Directory::open(image)?;
            if place.join("oci-layout").is_file() && place.join("index.json").is_file() {
                Kind::Layout(directory)
            } else {
                Kind::Directory(directory)
            }
        } else if found.is_file() {
            Kind::Archive
        } else {
            return Err(ImageError::NotAnImage { path: image.into() });
        };
        Ok(Self {
            path: image.into(),
            place,
            kind,
        })
    }

    fn key(&self) -> Result<Key, ImageError> {
        match &self.kind {
            Kind::Directory(directory) | Kind::Layout(directory) => directory.key(),
            Kind::Archive => {
                let mut key = KeyBuilder::new();
                let found = rustix::fs::stat(&self.place)
                    .map_err(|error| ImageError::open(&self.path, error.into()))?;
                key.stat(&found);
                Ok(key.finish())
            }
        }
    }

    /// Writes the layer to an empty file, which is in `target`.
    fn build(
        &self,
        file: File,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<(File, ImageConfig), ImageError> {
        let mut build = Build {
            image: &self.path,
            writer: Writer::new(file),
            target,
            progress,
        };
        let (tree, config) = match &self.kind {
            Kind::Directory(directory) => (
                directory.read(&mut build.writer, target, progress)?,
                ImageConfig::default(),
            ),
            Kind::Layout(_) => build.stored(&Store::directory(&self.path))?,
            Kind::Archive => {
                let archive =
                    File::open(&self.place).map_err(|error| ImageError::open(&self.path, error))?;
                build.stored(&Store::archive(&self.path, archive, target, progress)?)?
            }
        };
        if tree.len() == 1 {
            return Err(ImageError::Empty {
                path: self.path.clone(),
            });
        }
        let file = build
            .writer
            .finish(&tree)
            .map_err(|error| ImageError::write(target, error))?;
        Ok((file, config))
    }
}

/// A layer being made of tars.
struct Build<'a> {
    image: &'a Path,
    writer: Writer,
    /// The directory of what is written.
    target: &'a Path,
    progress: &'a dyn Progress,
}

impl Build<'_> {
    /// Layers if the store has an image's documents, else a root file system.
    fn stored(&mut self, store: &Store) -> Result<(Tree, ImageConfig), ImageError> {
        if let Some(parts) = manifest::parts(store)? {
            return self.layers(store, parts);
        }
        let root = store.whole()?.ok_or_else(|| ImageError::NotAnImage {
            path: self.image.into(),
        })?;
        Ok((self.root(root)?, ImageConfig::default()))
    }

    /// A root file system.
    fn root(&mut self, root: Span) -> Result<Tree, ImageError> {
        let meter = Meter::new(root.size(), self.progress);
        let mut merge = Merge::new();
        layer::apply(meter.read(root), None, &mut merge, &mut self.writer).map_err(|error| {
            self.error(error, |path, source| ImageError::Archive { path, source })
        })?;
        Ok(merge.finish())
    }

    /// An image's layers, one upon the other.
    fn layers(&mut self, store: &Store, parts: Parts) -> Result<(Tree, ImageConfig), ImageError> {
        let mut opened = Vec::new();
        for layer in parts.layers {
            opened.push((store.open(&layer.name)?, layer));
        }
        let meter = Meter::new(
            opened.iter().map(|(span, _)| span.size()).sum(),
            self.progress,
        );
        let mut merge = Merge::new();
        for (span, layer) in opened {
            layer::apply(
                meter.read(span),
                Some(&layer.digest),
                &mut merge,
                &mut self.writer,
            )
            .map_err(|error| {
                let layer = layer.name;
                self.error(error, |path, source| ImageError::Layer {
                    path,
                    layer,
                    source,
                })
            })?;
            merge.next_layer();
        }
        Ok((merge.finish(), parts.config))
    }

    fn error(
        &self,
        error: LayerError,
        archive: impl FnOnce(PathBuf, ArchiveError) -> ImageError,
    ) -> ImageError {
        match error {
            LayerError::Archive(source) => archive(self.image.into(), source),
            LayerError::Write(source) => ImageError::write(self.target, source),
        }
    }
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
