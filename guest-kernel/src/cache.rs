//! Where kernels, source and objects are kept between builds.
//!
//! ```text
//!  ${XDG_CACHE_HOME:-~/.cache}/nerite/kernel/
//!    lock                     held while building
//!    objects-of-last-build    a number: the progress bar's length
//!    <digest>/                vmlinux, config, System.map, sizes, build.log
//!    source/<version>/        tree/ and objects/ of the newest source only
//! ```
//!
//! A kernel's directory appears by a rename when it is complete, so that a
//! reader needs no lock. Disk use is bounded: one source tree with one object
//! tree (about 2 GB), and the kernels used last.

use std::cmp::Reverse;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::digest::Digest;

/// Kernels that stay when another is added.
const KERNELS_KEPT: usize = 6;

/// The cache's root directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The files of one finished kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    directory: PathBuf,
}

/// The cache could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither variable is set.
    #[error("no cache directory: set XDG_CACHE_HOME or HOME")]
    NoHome,
    /// A file operation failed.
    #[error("{act} {}", path.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl CacheError {
    /// For `map_err`: `act` on `path` failed.
    pub fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { act, path, source }
    }
}

impl Cache {
    /// The user's cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoHome`] if the environment names no place for it.
    pub fn of_user() -> Result<Self, CacheError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = match (set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join(".cache"),
            (None, None) => return Err(CacheError::NoHome),
        };
        Ok(Self::at(base.join("nerite/kernel")))
    }

    /// A cache in `root`, which need not exist yet.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the kernel of `digest` is or will be.
    #[must_use]
    pub fn kernel(&self, digest: &Digest) -> Kernel {
        Kernel {
            directory: self.root.join(digest.to_string()),
        }
    }

    /// Where the source of `version` in this `variant` and its objects belong.
    #[must_use]
    pub fn source(&self, version: &str, variant: &str) -> PathBuf {
        // A Debian version may hold `:` and `~`, never `/` nor `_`.
        self.root
            .join("source")
            .join(format!("{version}_{variant}"))
    }

    /// The file that remembers how many objects the last full build compiled.
    #[must_use]
    pub fn estimate(&self) -> PathBuf {
        self.root.join("objects-of-last-build")
    }

    /// Takes the lock on all building; `wait` is called once if another holds it.
    /// The lock ends with the returned file.
    ///
    /// # Errors
    ///
    /// [`CacheError::File`] if the lock's file cannot be made or locked.
    pub fn lock(&self, wait: impl FnOnce()) -> Result<File, CacheError> {
        let path = self.root.join("lock");
        fs::create_dir_all(&self.root).map_err(CacheError::file("create", &self.root))?;
        let file = File::create(&path).map_err(CacheError::file("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock().map_err(CacheError::file("lock", &path))?;
            }
            Err(TryLockError::Error(error)) => return Err(CacheError::file("lock", &path)(error)),
        }
        Ok(file)
    }

    /// An empty directory beside the finished kernels, to be filled and handed
    /// to [`Cache::finish`]. What an interrupted build left there goes.
    ///
    /// # Errors
    ///
    /// [`CacheError::File`].
    pub fn staging(&self) -> Result<PathBuf, CacheError> {
        let path = self.root.join("staging");
        remove_tree(&path)?;
        fs::create_dir_all(&path).map_err(CacheError::file("create", &path))?;
        Ok(path)
    }

    /// Turns the staging directory into the kernel of `digest`, and removes the
    /// kernels beyond those used last.
    ///
    /// # Errors
    ///
    /// [`CacheError::File`].
    pub fn finish(&self, staging: &Path, digest: &Digest) -> Result<Kernel, CacheError> {
        let kernel = self.kernel(digest);
        remove_tree(&kernel.directory)?;
        fs::rename(staging, &kernel.directory).map_err(CacheError::file("rename", staging))?;
        kernel.used();
        self.prune(KERNELS_KEPT)?;
        Ok(kernel)
    }

    fn prune(&self, kept: usize) -> Result<(), CacheError> {
        let mut kernels = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(CacheError::file("read", &self.root))? {
            let entry = entry.map_err(CacheError::file("read", &self.root))?;
            if Digest::is_name(&entry.file_name().to_string_lossy()) {
                let used = entry
                    .path()
                    .join(Kernel::USED)
                    .metadata()
                    .and_then(|metadata| metadata.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                kernels.push((Reverse(used), entry.path()));
            }
        }
        kernels.sort();
        kernels
            .iter()
            .skip(kept)
            .try_for_each(|(_, path)| remove_tree(path))
    }
}

impl Kernel {
    /// An empty file whose time says when the kernel was last asked for.
    const USED: &str = "used";

    /// The kernel itself.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// Its complete `.config`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// Size of each object that was linked.
    #[must_use]
    pub fn sizes(&self) -> PathBuf {
        self.directory.join("sizes")
    }

    /// Whether it has been built.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.vmlinux().exists()
    }

    /// Marks it as used now. Failing to is harmless: it may be pruned earlier.
    pub fn used(&self) {
        let _ = File::create(self.directory.join(Self::USED))
            .and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// Removes a directory with all in it; one that is not there is fine.
///
/// # Errors
///
/// [`CacheError::File`].
pub fn remove_tree(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CacheError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Inputs;

    fn digest(version: &str) -> Digest {
        Digest::of(&Inputs {
            source_version: version,
            options: "",
            patches: &[],
            toolchain: "",
            settings: &[],
        })
    }

    #[test]
    fn finish_shows_a_kernel_only_when_complete_and_keeps_the_latest() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("kernel"));
        for version in ["1", "2", "3"] {
            let staging = cache.staging().unwrap();
            fs::write(staging.join("vmlinux"), version).unwrap();
            assert!(!cache.kernel(&digest(version)).exists());
            assert!(cache.finish(&staging, &digest(version)).unwrap().exists());
        }
        cache.kernel(&digest("1")).used();
        cache.prune(2).unwrap();
        let left = ["1", "2", "3"].map(|version| cache.kernel(&digest(version)).exists());
        assert_eq!(left, [true, false, true]);
    }

    #[test]
    fn lock_is_held_until_dropped() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned());
        let held = cache.lock(|| panic!("nobody holds it")).unwrap();
        let second = File::open(root.path().join("lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        second.try_lock().unwrap();
    }
}
