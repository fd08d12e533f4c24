//! Data past the cache and in memory: O_DIRECT and mmap(2).

use libc::{
    MAP_PRIVATE, MAP_SHARED, MS_ASYNC, MS_SYNC, O_DIRECT, O_RDONLY, O_RDWR, O_WRONLY, PROT_READ,
    PROT_WRITE,
};

use crate::suite::{Suite, all, content, file, new_file, size};
use crate::sys::memory::{Map, PAGE, anonymous};
use crate::sys::process::apart;
use crate::sys::{self, Fd, Res};

const BOTH: i32 = PROT_READ | PROT_WRITE;

pub(super) fn run(suite: &mut Suite) {
    direct(suite);
    mapping(suite);
}

fn direct(suite: &mut Suite) {
    suite.check("direct-aligned", || {
        let open = sys::open("file", O_RDWR | libc::O_CREAT | O_DIRECT, 0o644)?;
        let memory = anonymous(2 * PAGE)?;
        memory.set(0, &[b'd'; PAGE]);
        let stored = memory.store(open.raw(), 0, PAGE, 0);
        let filled = memory.fill(open.raw(), PAGE, PAGE, 0);
        Ok(all![stored, filled, memory.get(PAGE, 3), size("file")])
    });
    suite.check("direct-and-cached-agree", || {
        let cached = new_file("file")?;
        sys::write(cached.raw(), vec![b'a'; 2 * PAGE])?;
        let open = sys::open("file", O_RDWR | O_DIRECT, 0)?;
        let memory = anonymous(PAGE)?;
        let filled = memory.fill(open.raw(), 0, PAGE, 0);
        let seen = memory.get(0, 3);
        memory.set(0, &[b'b'; PAGE]);
        let stored = memory.store(open.raw(), 0, PAGE, 0);
        Ok(all![
            filled,
            seen,
            stored,
            sys::pread(cached.raw(), 3, 0),
            sys::pread(cached.raw(), 2, 4095),
        ])
    });
    suite.check("direct-at-the-end", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY | O_DIRECT, 0)?;
        let memory = anonymous(PAGE)?;
        Ok(all![
            memory.fill(open.raw(), 0, PAGE, 0),
            memory.get(0, 7),
            memory.fill(open.raw(), 0, PAGE, 4096)
        ])
    });
    suite.check("direct-unaligned", || {
        let cached = new_file("file")?;
        sys::write(cached.raw(), vec![b'a'; 2 * PAGE])?;
        let open = sys::open("file", O_RDWR | O_DIRECT, 0)?;
        let memory = anonymous(PAGE)?;
        Ok(all![
            memory.fill(open.raw(), 1, 512, 0),
            memory.fill(open.raw(), 0, 100, 0),
            memory.fill(open.raw(), 0, 512, 7),
            memory.store(open.raw(), 0, 100, 0),
        ])
    });
}

/// A file of two pages, mapped.
fn mapped(flags: i32) -> Res<(Fd, Map)> {
    let open = new_file("file")?;
    sys::write(open.raw(), vec![b'f'; 2 * PAGE])?;
    let map = Map::new(open.raw(), 2 * PAGE, BOTH, flags, 0)?;
    Ok((open, map))
}

fn mapping(suite: &mut Suite) {
    suite.check("shared-mapping-is-seen-by-read", || {
        let (open, map) = mapped(MAP_SHARED)?;
        map.set(10, b"map");
        let before = sys::pread(open.raw(), 3, 10);
        Ok(all![
            before,
            map.sync(MS_SYNC),
            sys::pread(open.raw(), 3, 10),
            map.sync(MS_ASYNC)
        ])
    });
    suite.check("write-is-seen-by-a-shared-mapping", || {
        let (open, map) = mapped(MAP_SHARED)?;
        let first = map.get(0, 3);
        sys::pwrite(open.raw(), "new", 0)?;
        Ok(all![first, map.get(0, 3)])
    });
    suite.check("private-mapping-is-not-seen", || {
        let (open, map) = mapped(MAP_PRIVATE)?;
        map.set(0, b"map");
        Ok(all![
            sys::pread(open.raw(), 3, 0),
            map.get(0, 3),
            map.sync(MS_SYNC),
            content("file").map(|bytes| bytes.first() == Some(&b'f'))
        ])
    });
    suite.check("mapping-and-process", || {
        let (open, map) = mapped(MAP_SHARED)?;
        let child = apart(|| {
            map.set(100, b"child");
            "wrote".into()
        });
        Ok(all![child, map.get(100, 5), sys::pread(open.raw(), 5, 100)])
    });
    suite.check("mapping-beyond-the-end-is-zero-and-lost", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        let map = Map::new(open.raw(), PAGE, BOTH, MAP_SHARED, 0)?;
        let rest = map.get(7, 3);
        map.set(7, b"lost");
        let synced = map.sync(MS_SYNC);
        Ok(all![
            rest,
            synced,
            size("file"),
            sys::ftruncate(open.raw(), 20),
            sys::pread(open.raw(), 99, 0)
        ])
    });
    suite.check("mapping-of-a-page-that-is-not-there", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        Ok(apart(|| {
            match Map::new(open.raw(), 2 * PAGE, BOTH, MAP_SHARED, 0) {
                Ok(map) => all![map.get(PAGE, 1)],
                Err(errno) => errno.to_string(),
            }
        }))
    });
    suite.check("mapping-after-truncation", || {
        let (open, map) = mapped(MAP_SHARED)?;
        let before = map.get(PAGE, 1);
        sys::ftruncate(open.raw(), 10)?;
        let first = map.get(8, 4);
        let died = apart(|| all![map.get(PAGE, 1)]);
        sys::ftruncate(open.raw(), i64::try_from(2 * PAGE).unwrap_or(0))?;
        Ok(all![before, first, died, map.get(PAGE, 1)])
    });
    suite.check("mapping-outlives-the-descriptor", || {
        let (open, map) = mapped(MAP_SHARED)?;
        drop(open);
        map.set(0, b"after");
        Ok(all![
            map.sync(MS_SYNC),
            content("file").map(|mut bytes| {
                bytes.truncate(6);
                bytes
            })
        ])
    });
    suite.check("mapping-modes", || {
        file("file")?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let write = sys::open("file", O_WRONLY, 0)?;
        sys::mkdir("d", 0o755)?;
        let directory = sys::open("d", O_RDONLY, 0)?;
        let shared = Map::new(read.raw(), PAGE, PROT_READ, MAP_SHARED, 0)?;
        Ok(all![
            Map::new(read.raw(), PAGE, BOTH, MAP_SHARED, 0),
            Map::new(read.raw(), PAGE, BOTH, MAP_PRIVATE, 0),
            Map::new(write.raw(), PAGE, PROT_WRITE, MAP_SHARED, 0),
            Map::new(directory.raw(), PAGE, PROT_READ, MAP_SHARED, 0),
            Map::new(read.raw(), PAGE, PROT_READ, MAP_SHARED, 100),
            Map::new(read.raw(), 0, PROT_READ, MAP_SHARED, 0),
            shared.protect(BOTH),
            shared.advise(libc::MADV_DONTNEED),
            shared.get(0, 3),
        ])
    });
    suite.check("mapped-after-removal", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        let map = Map::new(open.raw(), PAGE, BOTH, MAP_SHARED, 0)?;
        sys::unlink("file")?;
        map.set(0, b"MAP");
        Ok(all![map.sync(MS_SYNC), sys::pread(open.raw(), 9, 0)])
    });
}
