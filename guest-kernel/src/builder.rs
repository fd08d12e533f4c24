//! From fragments to a kernel in the cache.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Kernel};
use crate::command::{CommandError, run, tool};
use crate::digest::{Digest, Inputs};
use crate::fragment::{self, FragmentError};
use crate::make::{self, MakeError, SETTINGS, Trees};
use crate::pack::{PackError, pack};
use crate::patch::{self, PatchError};
use crate::progress::Progress;
use crate::source::{self, SourceError};

/// What to build, where to, and how fast.
#[derive(Debug, Clone)]
pub struct Order {
    /// Holds finished kernels, the source and the objects.
    pub cache: Cache,
    /// The directory of the fragments.
    pub fragments: PathBuf,
    /// The directory of the patches.
    pub patches: PathBuf,
    /// Compilers at a time.
    pub jobs: NonZeroUsize,
}

/// There is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The fragments are wrong.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// The patches are wrong.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The source is not to be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Configuring or compiling failed.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// What was linked is no kernel.
    #[error("pack {}", path.display())]
    Pack {
        /// The linked file.
        path: PathBuf,
        /// What is wrong with it.
        source: PackError,
    },
    /// A compiler or a tool for objects failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The kernel of `order`: from the cache at once, or built into it.
///
/// # Errors
///
/// [`BuildError`]; the cache then holds no part of a kernel.
pub fn build(order: &Order, progress: &mut Progress) -> Result<Kernel, BuildError> {
    let requests = fragment::read_directory(&order.fragments)?;
    let patches = patch::read_directory(&order.patches)?;
    let version = source::offered_version()?;
    let digest = Digest::of(&Inputs {
        source_version: &version,
        options: &fragment::merged(&requests),
        patches: &patches,
        toolchain: &make::toolchain()?,
        settings: &SETTINGS,
    });
    let kernel = order.cache.kernel(&digest);
    if kernel.exists() {
        kernel.used();
        return Ok(kernel);
    }
    let _lock = order
        .cache
        .lock(|| progress.step("waiting for another build"))?;
    if kernel.exists() {
        return Ok(kernel);
    }
    let source = source::get(&order.cache, &version, &patches, &mut |step| {
        progress.step(step);
    })?;
    let trees = Trees {
        source: &source.tree,
        objects: &source.objects,
    };
    progress.step("configuring");
    trees.configure(&requests)?;
    let staging = order.cache.staging()?;
    compile(order, trees, &staging, progress)?;
    Ok(order.cache.finish(&staging, &digest)?)
}

fn compile(
    order: &Order,
    trees: Trees<'_>,
    staging: &Path,
    progress: &mut Progress,
) -> Result<(), BuildError> {
    let estimate = order.cache.estimate();
    let expected = fs::read_to_string(&estimate)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    progress.step("compiling");
    progress.count_to(expected);
    let compiled = trees.compile(order.jobs, &staging.join("build.log"), progress)?;
    // An incremental build says nothing about the next full one.
    if expected.is_none_or(|expected: u64| compiled > expected) {
        fs::write(&estimate, compiled.to_string()).map_err(CacheError::file("write", &estimate))?;
    }
    let linked = trees.objects.join("vmlinux");
    let packed =
        pack(&fs::read(&linked).map_err(CacheError::file("read", &linked))?).map_err(|source| {
            BuildError::Pack {
                path: linked,
                source,
            }
        })?;
    keep(staging, "vmlinux", |to| fs::write(to, packed))?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        let from = trees.objects.join(from);
        keep(staging, to, |to| fs::copy(&from, to).map(|_| ()))?;
    }
    let sizes = object_sizes(trees.objects)?;
    keep(staging, "sizes", |to| fs::write(to, sizes))?;
    Ok(())
}

fn keep(
    staging: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), CacheError> {
    let path = staging.join(name);
    write(&path).map_err(CacheError::file("write", &path))
}

/// What `size` says of each object in the archive that was linked.
fn object_sizes(objects: &Path) -> Result<String, BuildError> {
    let (list, _) = run(tool("ar").args(["t", "vmlinux.a"]).current_dir(objects))?;
    let response = objects.join("linked-objects");
    fs::write(&response, list).map_err(CacheError::file("write", &response))?;
    let (sizes, _) = run(tool("size").arg("@linked-objects").current_dir(objects))?;
    Ok(sizes)
}
