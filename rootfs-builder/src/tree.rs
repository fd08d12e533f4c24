//! A file tree in memory: what a layer will hold, before it is written.
//!
//! Only names and attributes live here. File contents are already in the
//! image by the time a node exists (see [`crate::erofs`]), so that a tree of
//! any size costs a few hundred bytes per file and no content twice.
//!
//! Hard links are several names for one node. Nodes are never removed; a node
//! without a name is not written.

use std::collections::BTreeMap;

use crate::erofs::Extent;

/// Longest path that an image may hold, as Linux has it (`PATH_MAX`).
pub(crate) const MAX_PATH: usize = 4096;
/// Longest name of one directory entry (`NAME_MAX`).
pub(crate) const MAX_NAME: usize = 255;

/// A node's number in its [`Tree`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct NodeId(usize);

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// What the name stands for.
    pub(crate) node: NodeId,
    /// The layer that last named it, counted from the lowest.
    pub(crate) layer: usize,
}

/// Names of one directory, in the byte order that EROFS wants.
pub(crate) type Names = BTreeMap<Box<[u8]>, Entry>;

/// Owner, mode, time and extended attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    /// Permission bits with set-id and sticky bits; no file type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) mtime_nanoseconds: u32,
    /// Full names (`security.capability`) and values.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Root's, of 1970.
    pub(crate) fn root(mode: u16) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Content {
    Directory(Names),
    File(Extent),
    Symlink(Box<[u8]>),
    Character(Device),
    Block(Device),
    Fifo,
    Socket,
}

/// A device's number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// A file, directory or other object.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) content: Content,
}

/// A root directory and everything below.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory.
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// A tree of nothing but its root.
    pub(crate) fn new(root: Meta) -> Self {
        Self {
            nodes: vec![Node {
                meta: root,
                content: Content::Directory(Names::new()),
            }],
        }
    }

    /// Number of nodes, nameless ones included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Every node, nameless ones included.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (NodeId(index), node))
    }

    /// Adds a node that has no name yet.
    pub(crate) fn add(&mut self, meta: Meta, content: Content) -> NodeId {
        self.nodes.push(Node { meta, content });
        NodeId(self.nodes.len() - 1)
    }

    /// The node with that number; numbers come from this tree only.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The node with that number, to change it.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// A directory's names; `None` for anything else.
    pub(crate) fn names(&self, id: NodeId) -> Option<&Names> {
        match &self.node(id).content {
            Content::Directory(names) => Some(names),
            _ => None,
        }
    }

    /// A directory's names, to change them; `None` for anything else.
    pub(crate) fn names_mut(&mut self, id: NodeId) -> Option<&mut Names> {
        match &mut self.node_mut(id).content {
            Content::Directory(names) => Some(names),
            _ => None,
        }
    }
}

/// A value per node of a tree.
#[derive(Debug)]
pub(crate) struct PerNode<T>(Vec<T>);

impl<T: Clone + Default> PerNode<T> {
    pub(crate) fn new(tree: &Tree) -> Self {
        Self(vec![T::default(); tree.len()])
    }

    pub(crate) fn get(&self, id: NodeId) -> &T {
        &self.0[id.0]
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> &mut T {
        &mut self.0[id.0]
    }
}
