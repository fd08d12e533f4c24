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

use std::collections::HashMap;
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
    used: u64,
}

/// The open files of a device.
#[derive(Debug, Default)]
pub(super) struct Files {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    clock: u64,
}

impl Files {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor of a node. One for writing serves reading too.
    pub(super) fn get(&self, node: u64, access: Access) -> Option<Arc<File>> {
        let mut table = self.table();
        table.clock = table.clock.saturating_add(1);
        let clock = table.clock;
        let entry = table.entries.get_mut(&node)?;
        entry.used = clock;
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
        if table.entries.len() >= MOST && !table.entries.contains_key(&node) {
            let oldest = table.entries.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(node, _)| *node) {
                table.entries.remove(&oldest);
            }
        }
        table.clock = table.clock.saturating_add(1);
        let clock = table.clock;
        let entry = table.entries.entry(node).or_default();
        entry.used = clock;
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
        self.table().entries.clear();
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
