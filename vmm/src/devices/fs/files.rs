//! Open files by node.
//!
//! The broker opens, here is kept what it has opened: a descriptor for reading
//! and one for writing, each when it is first needed. They are few; a guest
//! that has a million files open has a million nodes in the broker and no
//! descriptor here. Whatever is closed for want of room is asked for again.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Nodes with open descriptors at a time.
const MOST: usize = 512;

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// Reading.
    Read,
    /// Writing, and reading as well.
    Write,
}

#[derive(Debug, Default)]
struct Entry {
    read: Option<Arc<File>>,
    write: Option<Arc<File>>,
    /// Used since it was last considered for closing.
    recent: bool,
}

/// The open files of a device.
#[derive(Debug, Default)]
pub(super) struct Files {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    /// The nodes in `entries`, and some that were, oldest first.
    order: VecDeque<u64>,
}

impl Files {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor of a node. One for writing serves reading too.
    pub(super) fn get(&self, node: u64, access: Access) -> Option<Arc<File>> {
        let mut table = self.table();
        let entry = table.entries.get_mut(&node)?;
        entry.recent = true;
        match access {
            Access::Read => entry.write.as_ref().or(entry.read.as_ref()),
            Access::Write => entry.write.as_ref(),
        }
        .cloned()
    }

    /// Keeps a descriptor.
    pub(super) fn put(&self, node: u64, access: Access, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut table = self.table();
        if !table.entries.contains_key(&node) {
            table.make_room();
            table.order.push_back(node);
        }
        let entry = table.entries.entry(node).or_default();
        match access {
            Access::Read => entry.read = Some(Arc::clone(&file)),
            Access::Write => {
                entry.write = Some(Arc::clone(&file));
                // It may be of a file that overlayfs has copied since.
                entry.read = None;
            }
        }
        file
    }

    /// Closes what belongs to a node: its space is free only then, if it has
    /// been removed.
    pub(super) fn forget(&self, node: u64) {
        self.table().entries.remove(&node);
    }

    /// Closes everything.
    pub(super) fn clear(&self) {
        let mut table = self.table();
        table.entries.clear();
        table.order.clear();
    }
}

impl Table {
    /// Closes what has not been used for long, until there is room for one
    /// more. Each round drops a node from the order, or takes away its second
    /// chance.
    fn make_room(&mut self) {
        while self.order.len() >= MOST {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            match self.entries.get_mut(&oldest) {
                Some(entry) if entry.recent => {
                    entry.recent = false;
                    self.order.push_back(oldest);
                }
                Some(_) => {
                    self.entries.remove(&oldest);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_for_writing_serves_reading() {
        let files = Files::default();
        assert!(files.get(1, Access::Read).is_none());
        files.put(1, Access::Read, tempfile::tempfile().unwrap());
        assert!(files.get(1, Access::Read).is_some());
        assert!(files.get(1, Access::Write).is_none());
        let write = files.put(1, Access::Write, tempfile::tempfile().unwrap());
        assert!(Arc::ptr_eq(&files.get(1, Access::Read).unwrap(), &write));
        files.forget(1);
        assert!(files.get(1, Access::Read).is_none());
    }

    #[test]
    fn least_recently_used_descriptor_gives_way() {
        let files = Files::default();
        let file = tempfile::tempfile().unwrap();
        for node in 0..MOST as u64 {
            files.put(node, Access::Read, file.try_clone().unwrap());
        }
        assert!(files.get(0, Access::Read).is_some());
        files.put(MOST as u64, Access::Read, file);
        assert!(files.get(0, Access::Read).is_some());
        assert!(files.get(1, Access::Read).is_none());
        assert_eq!(files.table().entries.len(), MOST);
    }
}
