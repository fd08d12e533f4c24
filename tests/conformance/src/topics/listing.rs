//! Reading directories: order, positions, changes meanwhile.

use libc::{O_DIRECTORY, O_RDONLY, SEEK_CUR, SEEK_SET};

use crate::suite::{Suite, all, entries, file, some_entries};
use crate::sys::{self, Fd, Res};

const MANY: usize = 1000;

fn open() -> Res<Fd> {
    sys::open(".", O_RDONLY | O_DIRECTORY, 0)
}

/// Makes that many files.
fn fill(count: usize) -> Res<()> {
    for number in 0..count {
        sys::mknod(format!("file-{number:05}"), libc::S_IFREG | 0o644, 0)?;
    }
    Ok(())
}

/// How many names that are not dots, and whether one comes twice.
fn count(names: impl Iterator<Item = Vec<u8>>) -> String {
    let mut names: Vec<_> = names.filter(|name| !name.starts_with(b".")).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    all![all, names.len() == all]
}

pub(super) fn run(suite: &mut Suite) {
    suite.check("of-an-empty-directory", || {
        let mut names: Vec<_> = entries(&open()?)?
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        names.sort();
        Ok(all![names.concat()])
    });
    suite.check("types", || {
        file("1-file")?;
        sys::mkdir("2-directory", 0o755)?;
        sys::symlink("x", "3-link")?;
        sys::mknod("4-pipe", libc::S_IFIFO | 0o644, 0)?;
        sys::mknod("5-socket", libc::S_IFSOCK | 0o644, 0)?;
        sys::mknod("6-device", libc::S_IFCHR | 0o644, 0x103)?;
        let mut found: Vec<_> = entries(&open()?)?
            .into_iter()
            .map(|entry| (entry.name, entry.kind))
            .collect();
        found.sort();
        Ok(found
            .into_iter()
            .map(|(_, kind)| kind.to_string())
            .collect::<Vec<_>>()
            .join(" "))
    });
    suite.check("numbers-are-those-of-the-files", || {
        file("a")?;
        sys::mkdir("b", 0o755)?;
        let mut same = Vec::new();
        for entry in entries(&open()?)? {
            same.push(entry.name == b".." || sys::lstat(&entry.name)?.st_ino == entry.inode);
        }
        Ok(all![same.iter().all(|&same| same)])
    });
    suite.check("many", || {
        fill(MANY)?;
        Ok(count(
            entries(&open()?)?.into_iter().map(|entry| entry.name),
        ))
    });
    suite.check("twice", || {
        fill(10)?;
        let directory = open()?;
        let first = entries(&directory)?.len();
        let end = entries(&directory)?.len();
        sys::lseek(directory.raw(), 0, SEEK_SET)?;
        Ok(all![first, end, entries(&directory)?.len()])
    });
    suite.check("in-small-pieces", || {
        fill(100)?;
        let directory = open()?;
        let mut names = Vec::new();
        loop {
            let some = some_entries(&directory, 100)?;
            if some.is_empty() {
                return Ok(count(names.into_iter()));
            }
            names.extend(some.into_iter().map(|entry| entry.name));
        }
    });
    suite.check("into-too-little-room", || {
        fill(3)?;
        let directory = open()?;
        Ok(all![
            sys::getdents(directory.raw(), &mut [0; 8]),
            sys::getdents(directory.raw(), &mut []),
            entries(&directory)?.len(),
        ])
    });
    suite.check("positions-lead-back", || {
        fill(200)?;
        let directory = open()?;
        let whole = entries(&directory)?;
        let mut right = 0;
        for (number, entry) in whole.iter().enumerate() {
            let at = sys::lseek(directory.raw(), entry.next, SEEK_SET);
            let next = some_entries(&directory, 2000)?;
            let wanted = whole.get(number + 1).map(|entry| &entry.name);
            if at.is_ok() && next.first().map(|entry| &entry.name) == wanted {
                right += 1;
            }
        }
        Ok(all![right, whole.len()])
    });
    suite.check("position-is-told", || {
        fill(5)?;
        let directory = open()?;
        let some = some_entries(&directory, 100)?;
        let last = some.last().map(|entry| entry.next);
        let told = sys::lseek(directory.raw(), 0, SEEK_CUR)?;
        Ok(all![
            last.is_some_and(|last| usize::try_from(last) == Ok(told))
        ])
    });
    suite.check("all-removed-while-read", || {
        fill(MANY)?;
        let directory = open()?;
        let mut removed = 0;
        loop {
            let some = some_entries(&directory, 1000)?;
            if some.is_empty() {
                break;
            }
            for entry in some {
                if !entry.name.starts_with(b".") {
                    sys::unlink(&entry.name)?;
                    removed += 1;
                }
            }
        }
        Ok(all![removed, crate::suite::listing(".")])
    });
    suite.check("what-stays-is-seen-whatever-comes-and-goes", || {
        fill(300)?;
        let directory = open()?;
        let mut seen = some_entries(&directory, 1000)?;
        for number in 0..50 {
            sys::mknod(format!("new-{number}"), libc::S_IFREG | 0o644, 0)?;
            sys::unlink(format!("new-{number}"))?;
        }
        seen.extend(entries(&directory)?);
        let old = seen
            .into_iter()
            .map(|entry| entry.name)
            .filter(|name| name.starts_with(b"file"));
        Ok(count(old))
    });
    suite.check("new-entries-after-rewind", || {
        let directory = open()?;
        let before = entries(&directory)?.len();
        fill(7)?;
        sys::lseek(directory.raw(), 0, SEEK_SET)?;
        Ok(all![before, entries(&directory)?.len()])
    });
    suite.check("renamed-entries", || {
        fill(20)?;
        for number in 0..20 {
            sys::rename(format!("file-{number:05}"), format!("moved-{number:05}"), 0)?;
        }
        Ok(all![crate::suite::listing(".")])
    });
    suite.check("of-what-is-no-directory", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY, 0)?;
        Ok(all![
            sys::getdents(open.raw(), &mut [0; 100]),
            sys::getdents(9999, &mut [0; 100])
        ])
    });
    suite.check("of-a-removed-directory", || {
        sys::mkdir("d", 0o755)?;
        let directory = sys::open("d", O_RDONLY, 0)?;
        sys::rmdir("d")?;
        Ok(all![entries(&directory).map(|entries| entries.len())])
    });
    suite.check("with-long-names", || {
        for number in 0..100 {
            file(format!("{number:0255}"))?;
        }
        Ok(count(
            entries(&open()?)?.into_iter().map(|entry| entry.name),
        ))
    });
}
