//! The OS layer: the agent as `/init` and the directories that it mounts on.
//!
//! Nothing else is in it: no shell, no library, no device node (the kernel
//! mounts devtmpfs on `/dev` itself). Equal agents give equal bytes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::erofs::{StoreError, Writer};
use crate::tree::{Content, Entry, Meta, Names, NodeId, Tree};

/// Directories that the kernel and the agent need, with their modes.
const DIRECTORIES: [(&str, u16); 9] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("shares", 0o755),
    // One for each kind of directory device.
    ("shares/exclusive", 0o755),
    ("shares/shared", 0o755),
    ("sockets", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// An OS layer that was not built. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum OsError {
    /// The agent's binary cannot be read.
    #[error("read the agent {}", path.display())]
    Agent {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not a regular file with contents.
    #[error("the agent {} is not a file with contents", path.display())]
    NoAgent {
        /// Which file.
        path: PathBuf,
    },
    /// The image cannot be written.
    #[error("write the OS layer {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Builds the OS layer from the agent's binary. `output` appears or is
/// replaced whole.
///
/// # Errors
///
/// [`OsError`].
pub fn build(agent: &Path, output: &Path) -> Result<(), OsError> {
    let read = |source| OsError::Agent {
        path: agent.into(),
        source,
    };
    let write = |source| OsError::Write {
        path: output.into(),
        source,
    };

    let mut binary = File::open(agent).map_err(read)?;
    let found = binary.metadata().map_err(read)?;
    if !found.is_file() || found.len() == 0 {
        return Err(OsError::NoAgent { path: agent.into() });
    }
    let parent = output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let image = tempfile::NamedTempFile::new_in(parent).map_err(write)?;
    let mut writer = Writer::new(image.as_file().try_clone().map_err(write)?);
    let init = writer.store(&mut binary).map_err(|error| match error {
        StoreError::Read(source) => read(source),
        StoreError::Write(source) => write(source),
    })?;

    let mut tree = Tree::new(Meta::root(0o755));
    let meta = Meta::root(0o755);
    name(&mut tree, Tree::ROOT, "init", meta, Content::File(init));
    let mut made = vec![("", Tree::ROOT)];
    for (path, mode) in DIRECTORIES {
        let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
        // Parents come first in the list.
        let parent = made
            .iter()
            .find_map(|(path, node)| (*path == above).then_some(*node));
        let content = Content::Directory(Names::new());
        let parent = parent.unwrap_or(Tree::ROOT);
        let node = name(&mut tree, parent, last, Meta::root(mode), content);
        made.push((path, node));
    }
    writer.finish(&tree).map_err(write)?;
    fs::set_permissions(image.path(), PermissionsExt::from_mode(0o644)).map_err(write)?;
    image.persist(output).map_err(|error| write(error.error))?;
    Ok(())
}

fn name(tree: &mut Tree, parent: NodeId, name: &str, meta: Meta, content: Content) -> NodeId {
    let node = tree.add(meta, content);
    if let Some(names) = tree.names_mut(parent) {
        names.insert(name.as_bytes().into(), Entry { node, layer: 0 });
    }
    node
}
