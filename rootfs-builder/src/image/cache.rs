//! Where layers are kept.
//!
//! ```text
//!  KEY.erofs     a layer, complete
//!  KEY.json      what it was made of, and the image's configuration
//!  KEY.partial   a layer being made, locked by its maker
//! ```
//!
//! A layer appears by `rename`, so it is complete whenever it has its name.
//! Two programs that want the same layer meet at the lock of the partial
//! file: the second waits and finds the first one's work. A partial file that
//! nobody has locked was left by a program that was killed, and the next one
//! that makes any layer removes it. No daemon, no index, no lock file that
//! stays behind.
//!
//! A layer takes the place of earlier ones of the same image. Guests that use
//! those keep them, for they hold the files open.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ImageConfig, ImageError, PreparedImage};

/// Counted up whenever the same image would give another layer than before.
const FORMAT: u32 = 1;
/// Two changes closer together than this may leave the same time on a file:
/// the kernel's clock for file times ticks every 1 to 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// A directory of layers.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

/// An image's state, as far as can be told without reading contents.
pub(super) struct Key(String);

/// Makes a [`Key`].
pub(super) struct KeyBuilder {
    hash: Sha256,
    newest: Duration,
}

#[derive(Deserialize, Serialize)]
struct Record {
    /// The image's path.
    source: PathBuf,
    config: ImageConfig,
}

impl KeyBuilder {
    pub(super) fn new() -> Self {
        let mut hash = Sha256::new();
        hash.update(FORMAT.to_le_bytes());
        hash.update(std::env::consts::ARCH);
        // Decides about owners, see `directory`.
        hash.update(rustix::process::geteuid().as_raw().to_le_bytes());
        Self {
            hash,
            newest: Duration::ZERO,
        }
    }

    /// Adds the name that an entry has in its directory.
    pub(super) fn name(&mut self, name: &[u8]) {
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(name);
    }

    /// Adds all that tells two states of a file apart.
    pub(super) fn stat(&mut self, stat: &rustix::fs::Stat) {
        let mut bytes = [0; 11 * 8];
        let fields = [
            stat.st_dev.to_le_bytes(),
            stat.st_ino.to_le_bytes(),
            u64::from(stat.st_mode).to_le_bytes(),
            u64::from(stat.st_uid).to_le_bytes(),
            u64::from(stat.st_gid).to_le_bytes(),
            stat.st_rdev.to_le_bytes(),
            stat.st_size.to_le_bytes(),
            stat.st_mtime.to_le_bytes(),
            stat.st_mtime_nsec.to_le_bytes(),
            stat.st_ctime.to_le_bytes(),
            stat.st_ctime_nsec.to_le_bytes(),
        ];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field);
        }
        self.hash.update(bytes);
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        self.newest = self
            .newest
            .max(Duration::new(seconds, nanoseconds(stat.st_ctime_nsec)));
    }

    /// The end of a directory's names.
    pub(super) fn end(&mut self) {
        self.hash.update(u64::MAX.to_le_bytes());
    }

    /// The key; one that nothing else will ever have if the image changed
    /// just now.
    pub(super) fn finish(mut self) -> Key {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.abs_diff(self.newest) < TICK {
            self.hash.update(now.as_nanos().to_le_bytes());
        }
        Key(self
            .hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

impl Key {
    /// A key that nothing else will ever have.
    fn unique() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        KeyBuilder {
            newest: now,
            ..KeyBuilder::new()
        }
        .finish()
    }
}

/// The nanosecond field of a `stat`, whose type differs by architecture.
pub(super) fn nanoseconds(value: impl TryInto<u32>) -> u32 {
    value.try_into().unwrap_or(0)
}

impl Cache {
    /// Layers in that directory, which is made when needed.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Layers in the user's own cache directory
    /// (`${XDG_CACHE_HOME:-~/.cache}/nerite/layers`).
    ///
    /// # Errors
    ///
    /// [`ImageError::NoCache`].
    pub fn of_user() -> Result<Self, ImageError> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .map(|cache| Self::new(cache.join("nerite/layers")))
            .ok_or(ImageError::NoCache)
    }

    /// Where the layers are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, key: &Key, extension: &str) -> PathBuf {
        self.directory.join(&key.0).with_extension(extension)
    }

    fn error(&self, source: io::Error) -> ImageError {
        ImageError::write(&self.directory, source)
    }

    /// The layer with that key. One that cannot be read is as good as none.
    pub(super) fn find(&self, key: &Key) -> Option<PreparedImage> {
        let layer = self.path(key, "erofs");
        let file = File::open(&layer).ok()?;
        let record: Record = read_record(&self.path(key, "json"))?;
        Some(PreparedImage {
            layer,
            file,
            config: record.config,
            cached: true,
        })
    }

    /// Makes the layer with that key, or waits for another program that
    /// does. `build` gets an empty file and tells the image's key afterwards.
    pub(super) fn fill(
        &self,
        key: &Key,
        source: &Path,
        build: impl FnOnce(File) -> Result<(File, ImageConfig, Key), ImageError>,
    ) -> Result<PreparedImage, ImageError> {
        let error = |source| self.error(source);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(error)?;
        let partial = Partial::lock(self.path(key, "partial")).map_err(error)?;
        if let Some(found) = self.find(key) {
            return Ok(found);
        }
        self.sweep(source);

        partial.file.set_len(0).map_err(error)?;
        let (file, config, after) = build(partial.file.try_clone().map_err(error)?)?;
        // What changed while it was read is a snapshot as good as any copy,
        // but it must not be found again.
        let kept = if after.0 == key.0 {
            key
        } else {
            &Key::unique()
        };
        let record = Record {
            source: source.into(),
            config,
        };
        let json = serde_json::to_vec(&record).map_err(|e| error(e.into()))?;
        fs::write(self.path(kept, "json"), json).map_err(error)?;
        file.sync_data().map_err(error)?;
        let layer = self.path(kept, "erofs");
        let file = partial.rename(&layer).map_err(error)?;
        Ok(PreparedImage {
            layer,
            file,
            config: record.config,
            cached: false,
        })
    }

    /// Removes partial files that nobody works on, and earlier layers of the
    /// same image. What cannot be removed stays, and harms nobody.
    fn sweep(&self, source: &Path) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let extension = path.extension().and_then(OsStr::to_str);
            if extension == Some("partial") {
                let Ok(file) = File::open(&path) else {
                    continue;
                };
                if file.try_lock().is_ok() && is_at(&file, &path) {
                    let _ = fs::remove_file(&path);
                }
            } else if extension == Some("json")
                && read_record(&path).is_some_and(|record| record.source == source)
            {
                let _ = fs::remove_file(path.with_extension("erofs"));
                let _ = fs::remove_file(&path);
            }
        }
    }
}

fn read_record(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether that path still names the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// A layer being made, removed when it does not get its name.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    /// Opens and locks the file; waits while another program has it.
    fn lock(path: PathBuf) -> io::Result<Self> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            file.lock()?;
            // Its former owner renamed or removed it while we waited.
            if is_at(&file, &path) {
                return Ok(Self { file, path });
            }
        }
    }

    /// Gives the finished layer its name, and opens it for reading.
    fn rename(self, layer: &Path) -> io::Result<File> {
        fs::rename(&self.path, layer)?;
        File::open(layer)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Only while it is ours: after the rename the name may be another's.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
