//! Layers upon layers: one tree of many (OCI image specification 1.1,
//! layer.md, "Applying Changesets").
//!
//! An entry replaces what has its name, except that a directory keeps what it
//! holds. `.wh.NAME` hides NAME and `.wh..wh..opq` hides all of its
//! directory, both only what *lower* layers brought, in whatever order the
//! layer lists things. Hence every name remembers the layer that last
//! mentioned it or something below it.
//!
//! Paths are resolved within this tree, never on the host: links that an
//! archive brings along can lead nowhere else. Links among a path's
//! directories are followed, as container engines do, because images rely on
//! it (`lib` is a link to `usr/lib`, and a later layer brings `lib/x`).

use super::archive_error::ArchiveError;
use super::tar::Budget;
use crate::tree::{Content, Entry, MAX_NAME, MAX_PATH, Meta, Names, NodeId, Tree};

/// As many links as Linux follows in one path.
const MAX_LINKS: usize = 40;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of an old storage driver; never part of a file system.
const PRIVATE: &[u8] = b".wh..wh.";

/// A tree that grows layer by layer.
#[derive(Debug)]
pub(super) struct Merge {
    tree: Tree,
    layer: usize,
    /// For the entries of all layers together.
    pub(super) budget: Budget,
}

/// A path's components, none of them empty, `.` or `..`.
struct Path<'a>(Vec<&'a [u8]>);

impl<'a> Path<'a> {
    fn parse(raw: &'a [u8]) -> Result<Self, ArchiveError> {
        let shown = || String::from_utf8_lossy(raw).into_owned();
        if raw.len() > MAX_PATH {
            return Err(ArchiveError::LongName { path: shown() });
        }
        if raw.contains(&0) {
            return Err(ArchiveError::BadName { path: shown() });
        }
        let parts: Vec<&[u8]> = raw
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        if parts.iter().any(|part| part.len() > MAX_NAME) {
            return Err(ArchiveError::LongName { path: shown() });
        }
        if parts.contains(&&b".."[..]) {
            return Err(ArchiveError::Outside { path: shown() });
        }
        Ok(Self(parts))
    }
}

/// What to do where a path's directory does not exist.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Missing {
    Create,
    Fail,
}

impl Merge {
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(Meta::root(0o755)),
            layer: 0,
            budget: Budget::new(),
        }
    }

    /// What follows belongs to the next higher layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn finish(self) -> Tree {
        self.tree
    }

    /// Whether an entry of that name stands for itself. If not, it was about
    /// names of lower layers, and is done.
    pub(super) fn apply_whiteout(&mut self, path: &[u8]) -> Result<bool, ArchiveError> {
        let parsed = Path::parse(path)?;
        let Some((name, parents)) = parsed.0.split_last() else {
            return Ok(false);
        };
        if *name == OPAQUE {
            if let Some(directory) = self.directory(parents, Missing::Fail)? {
                self.hide_lower(directory);
            }
            return Ok(true);
        }
        if parsed.0.iter().any(|part| part.starts_with(PRIVATE)) {
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ArchiveError::BadName { path: lossy(path) });
        }
        if let Some(directory) = self.directory(parents, Missing::Fail)? {
            self.hide(directory, hidden);
        }
        Ok(true)
    }

    /// Adds anything but a hard link.
    pub(super) fn add(
        &mut self,
        path: &[u8],
        meta: Meta,
        content: Content,
    ) -> Result<(), ArchiveError> {
        let parsed = Path::parse(path)?;
        let is_directory = matches!(content, Content::Directory(_));
        let Some((name, parents)) = parsed.0.split_last() else {
            if !is_directory {
                return Err(ArchiveError::BadName { path: lossy(path) });
            }
            self.tree.node_mut(Tree::ROOT).meta = meta;
            return Ok(());
        };
        let directory = self.create(parents, path)?;
        let existing = self.lookup(directory, name).map(|entry| entry.node);
        match existing.filter(|id| is_directory && self.tree.names(*id).is_some()) {
            Some(id) => {
                self.tree.node_mut(id).meta = meta;
                self.insert(directory, name, id);
            }
            None => {
                let id = self.tree.add(meta, content);
                self.insert(directory, name, id);
            }
        }
        Ok(())
    }

    /// Adds another name for a file.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ArchiveError> {
        let missing = || ArchiveError::LinkTarget {
            path: lossy(path),
            target: lossy(target),
        };
        let parsed = Path::parse(target)?;
        let (name, parents) = parsed.0.split_last().ok_or_else(missing)?;
        let from = self
            .directory(parents, Missing::Fail)?
            .ok_or_else(missing)?;
        let node = self.lookup(from, name).ok_or_else(missing)?.node;
        if self.tree.names(node).is_some() {
            return Err(missing());
        }
        let parsed = Path::parse(path)?;
        let (name, parents) = parsed.0.split_last().ok_or_else(missing)?;
        let directory = self.create(parents, path)?;
        self.insert(directory, name, node);
        Ok(())
    }

    fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<Entry> {
        self.tree.names(directory)?.get(name).copied()
    }

    fn insert(&mut self, directory: NodeId, name: &[u8], node: NodeId) {
        let entry = Entry {
            node,
            layer: self.layer,
        };
        if let Some(names) = self.tree.names_mut(directory) {
            names.insert(name.into(), entry);
        }
    }

    fn create(&mut self, parents: &[&[u8]], path: &[u8]) -> Result<NodeId, ArchiveError> {
        self.directory(parents, Missing::Create)?
            .ok_or_else(|| ArchiveError::NotADirectory { path: lossy(path) })
    }

    /// The directory at that path. When something is to be created there,
    /// every directory on the way counts as mentioned by this layer.
    fn directory(
        &mut self,
        parts: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<NodeId>, ArchiveError> {
        let mut stack = vec![Tree::ROOT];
        let mut links = 0;
        // Components still to go, the next one last.
        let mut rest: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        while let Some(part) = rest.pop() {
            let here = stack.last().copied().unwrap_or(Tree::ROOT);
            if part == b".." {
                // Of a link; the root is its own parent.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let Some(entry) = self.lookup(here, &part) else {
                if missing == Missing::Fail {
                    return Ok(None);
                }
                let id = self
                    .tree
                    .add(Meta::root(0o755), Content::Directory(Names::new()));
                self.insert(here, &part, id);
                stack.push(id);
                continue;
            };
            match &self.tree.node(entry.node).content {
                Content::Directory(_) => {
                    if missing == Missing::Create {
                        self.insert(here, &part, entry.node);
                    }
                    stack.push(entry.node);
                }
                Content::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(ArchiveError::LinkLoop {
                            path: lossy(&parts.join(&b'/')),
                        });
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    rest.extend(
                        parts
                            .filter(|p| !p.is_empty() && *p != b".")
                            .map(<[u8]>::to_vec),
                    );
                }
                _ if missing == Missing::Fail => return Ok(None),
                _ => {
                    return Err(ArchiveError::NotADirectory {
                        path: lossy(&parts.join(&b'/')),
                    });
                }
            }
        }
        Ok(stack.last().copied())
    }

    /// Removes what lower layers put under that name.
    fn hide(&mut self, directory: NodeId, name: &[u8]) {
        let layer = self.layer;
        match self.lookup(directory, name) {
            Some(entry) if entry.layer < layer => {
                if let Some(names) = self.tree.names_mut(directory) {
                    names.remove(name);
                }
            }
            Some(entry) => self.hide_lower(entry.node),
            None => {}
        }
    }

    /// Removes everything below a directory that lower layers put there.
    fn hide_lower(&mut self, directory: NodeId) {
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            if let Some(names) = self.tree.names_mut(id) {
                names.retain(|_, entry| entry.layer >= self.layer);
                pending.extend(names.values().map(|entry| entry.node));
            }
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::Device;

    /// What a layer says about a path; files are told apart by number.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Said {
        Directory,
        File(u32),
    }

    #[derive(Clone, Debug, Default)]
    struct Layer {
        says: BTreeMap<String, Said>,
        hides: Vec<String>,
        opaque: Vec<String>,
        whiteouts_first: bool,
    }

    fn below(path: &str, directory: &str) -> bool {
        path.strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// The rules once more, over sets of whole paths.
    fn model(layers: &[Layer]) -> BTreeMap<String, Said> {
        let mut all: BTreeMap<String, Said> = BTreeMap::new();
        for layer in layers {
            all.retain(|path, _| {
                let hidden = layer.hides.iter().any(|h| path == h || below(path, h))
                    || layer.opaque.iter().any(|o| below(path, o));
                let covered = layer
                    .says
                    .iter()
                    .any(|(p, said)| matches!(said, Said::File(_)) && below(path, p));
                !hidden && !covered
            });
            all.extend(layer.says.iter().map(|(path, said)| (path.clone(), *said)));
        }
        all
    }

    fn merged(layers: &[Layer]) -> BTreeMap<String, Said> {
        let mut merge = Merge::new();
        for layer in layers {
            let whiteouts = |merge: &mut Merge| {
                for path in &layer.hides {
                    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                    let path = format!("{parent}/.wh.{name}");
                    assert!(merge.apply_whiteout(path.as_bytes()).unwrap());
                }
                for path in &layer.opaque {
                    let path = format!("{path}/.wh..wh..opq");
                    assert!(merge.apply_whiteout(path.as_bytes()).unwrap());
                }
            };
            if layer.whiteouts_first {
                whiteouts(&mut merge);
            }
            for (path, said) in &layer.says {
                assert!(!merge.apply_whiteout(path.as_bytes()).unwrap());
                let content = match said {
                    Said::Directory => Content::Directory(Names::new()),
                    Said::File(major) => Content::Character(Device {
                        major: *major,
                        minor: 0,
                    }),
                };
                merge
                    .add(path.as_bytes(), Meta::root(0o644), content)
                    .unwrap();
            }
            if !layer.whiteouts_first {
                whiteouts(&mut merge);
            }
            merge.next_layer();
        }
        let tree = merge.finish();
        let mut found = BTreeMap::new();
        let mut pending = vec![(String::new(), Tree::ROOT)];
        while let Some((prefix, id)) = pending.pop() {
            for (name, entry) in tree.names(id).into_iter().flatten() {
                let path = format!("{prefix}{}", std::str::from_utf8(name).unwrap());
                let said = match tree.node(entry.node).content {
                    Content::Character(device) => Said::File(device.major),
                    _ => Said::Directory,
                };
                pending.push((format!("{path}/"), entry.node));
                found.insert(path, said);
            }
        }
        found
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
    }

    fn layer() -> impl Strategy<Value = Layer> {
        let said = prop_oneof![Just(Said::Directory), (1_u32..1000).prop_map(Said::File)];
        (
            prop::collection::btree_map(path(), said, 0..8),
            prop::collection::vec(path(), 0..3),
            prop::collection::vec(path(), 0..2),
            any::<bool>(),
        )
            .prop_map(|(mut says, hides, opaque, whiteouts_first)| {
                // A layer is a tree: what holds something is a directory.
                for path in says.keys().cloned().collect::<Vec<_>>() {
                    for (at, _) in path.match_indices('/') {
                        says.insert(path[..at].to_owned(), Said::Directory);
                    }
                }
                Layer {
                    says,
                    hides,
                    opaque,
                    whiteouts_first,
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..<_>::default() })]

        #[test]
        fn layers_merge_as_the_specification_says(layers in prop::collection::vec(layer(), 1..5)) {
            prop_assert_eq!(merged(&layers), model(&layers));
        }

        #[test]
        fn no_name_leads_out_or_panics(
            paths in prop::collection::vec("(/|\\.|\\.\\.|a|b|\\.wh\\.|//){0,6}", 1..12),
            targets in prop::collection::vec("(/|\\.\\.|a|b){0,6}", 1..12),
        ) {
            let mut merge = Merge::new();
            for (index, path) in paths.iter().enumerate() {
                let target = targets[index % targets.len()].as_bytes();
                let content = match index % 2 {
                    0 => Content::Symlink(target.into()),
                    _ => Content::Directory(Names::new()),
                };
                if merge.apply_whiteout(path.as_bytes()).is_ok_and(|done| !done) {
                    // Refused or done; the tree stays a tree either way.
                    let _ = merge.add(path.as_bytes(), Meta::root(0o755), content);
                    let _ = merge.link(path.as_bytes(), target);
                }
            }
            let tree = merge.finish();
            for (_, node) in tree.nodes() {
                if let Content::Directory(names) = &node.content {
                    for name in names.keys() {
                        prop_assert!(!matches!(&**name, b"" | b"." | b".."));
                        prop_assert!(!name.contains(&b'/'));
                    }
                }
            }
        }
    }
}
