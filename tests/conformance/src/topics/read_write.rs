//! Reading, writing, appending, moving: what is seen where.

use libc::{
    O_APPEND, O_RDONLY, O_RDWR, O_WRONLY, SEEK_CUR, SEEK_DATA, SEEK_END, SEEK_HOLE, SEEK_SET,
};

use crate::suite::{Suite, all, content, describe, file, new_file, size};
use crate::sys::process::{apart, limit_file_size};
use crate::sys::{self, Fd};

pub(super) fn run(suite: &mut Suite) {
    positions(suite);
    vectors(suite);
    appending(suite);
    nameless(suite);
    moving(suite);
}

fn positions(suite: &mut Suite) {
    suite.check("position-moves", || {
        let open = new_file("file")?;
        Ok(all![
            sys::write(open.raw(), "0123456789"),
            sys::lseek(open.raw(), 2, SEEK_SET),
            sys::read(open.raw(), 3),
            sys::lseek(open.raw(), 0, SEEK_CUR),
            sys::pread(open.raw(), 2, 8),
            sys::pwrite(open.raw(), "xx", 0),
            sys::lseek(open.raw(), 0, SEEK_CUR),
            sys::lseek(open.raw(), -1, SEEK_END),
            sys::read(open.raw(), 9),
            sys::read(open.raw(), 9),
        ])
    });
    suite.check("position-is-shared-by-duplicates", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY, 0)?;
        let twin = sys::dup(open.raw())?;
        Ok(all![sys::read(open.raw(), 3), sys::read(twin.raw(), 3)])
    });
    suite.check("position-errors", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        let raw = open.raw();
        Ok(all![
            sys::lseek(raw, -1, SEEK_SET),
            sys::lseek(raw, i64::MAX, SEEK_SET),
            sys::lseek(raw, 0, 99),
            sys::lseek(9999, 0, SEEK_SET),
            sys::pread(raw, 1, -1),
            sys::pwrite(raw, "x", -1),
            sys::pread(raw, 1, i64::MAX),
            sys::pwrite(raw, "x", i64::MAX),
            sys::lseek(raw, 100, SEEK_SET),
            sys::read(raw, 1),
        ])
    });
    suite.check("read-and-write-of-a-directory", || {
        sys::mkdir("d", 0o755)?;
        let open = sys::open("d", O_RDONLY, 0)?;
        Ok(all![
            sys::read(open.raw(), 9),
            sys::pread(open.raw(), 9, 0),
            sys::write(open.raw(), "x"),
            sys::ftruncate(open.raw(), 0),
            sys::fallocate(open.raw(), 0, 0, 1),
        ])
    });
    suite.check("write-beyond-the-end-leaves-zeroes", || {
        let open = new_file("file")?;
        Ok(all![
            sys::pwrite(open.raw(), "x", 5),
            content("file"),
            size("file")
        ])
    });
    suite.check("large-write-and-read", || {
        let open = new_file("file")?;
        let bytes: Vec<u8> = (0..3_000_001_u32)
            .map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1])
            .collect();
        let written = sys::write(open.raw(), &bytes);
        let read = sys::pread(open.raw(), 4_000_000, 0)?;
        Ok(all![written, read.len(), read == bytes])
    });
    suite.check("limit-of-file-size", || {
        Ok(apart(|| {
            let open = new_file("file");
            let raw = open.as_ref().map_or(-1, Fd::raw);
            all![
                limit_file_size(1000),
                sys::pwrite(raw, vec![1; 2000], 0),
                sys::pwrite(raw, "x", 1000),
                sys::ftruncate(raw, 1001),
                sys::ftruncate(raw, 1000),
                sys::fallocate(raw, 0, 0, 1001),
                size("file"),
            ]
        }))
    });
    suite.check("written-by-one-descriptor-read-by-another", || {
        let one = new_file("file")?;
        let other = sys::open("file", O_RDONLY, 0)?;
        let mut results = Vec::new();
        for text in ["one", "two", "three"] {
            sys::write(one.raw(), text)?;
            results.push(all![sys::read(other.raw(), 99), size("file")]);
        }
        Ok(results.join(" "))
    });
    suite.check("written-by-one-process-read-by-another", || {
        let open = new_file("file")?;
        let wrote = apart(|| all![sys::write(open.raw(), "child")]);
        Ok(all![
            wrote,
            sys::read(open.raw(), 9),
            sys::pread(open.raw(), 9, 0)
        ])
    });
    suite.check("large-positions", || {
        let open = new_file("file")?;
        let far = 1 << 40;
        Ok(all![
            sys::pwrite(open.raw(), "far", far),
            size("file"),
            sys::pread(open.raw(), 9, far),
            sys::pread(open.raw(), 4, far - 4),
            sys::pwrite(open.raw(), "x", (1 << 62) - 1),
        ])
    });
}

fn vectors(suite: &mut Suite) {
    suite.check("vectors", || {
        let open = new_file("file")?;
        let raw = open.raw();
        Ok(all![
            sys::pwritev2(raw, &[b"abc", b"", b"defg"], 0, 0),
            sys::preadv2(raw, &[2, 0, 3, 9], 1, 0),
            sys::pwritev2(raw, &[b"end"], -1, 0),
            sys::preadv2(raw, &[9], -1, 0),
            content("file"),
            sys::pwritev2(raw, &[], 0, 0),
            sys::preadv2(raw, &[1], -2, 0),
        ])
    });
    suite.check("vector-flags", || {
        let open = new_file("file")?;
        let raw = open.raw();
        sys::write(raw, "start")?;
        Ok(all![
            sys::pwritev2(raw, &[b"more"], 0, libc::RWF_APPEND),
            content("file"),
            sys::pwritev2(raw, &[b"x"], 0, libc::RWF_DSYNC),
            sys::pwritev2(raw, &[b"y"], 1, libc::RWF_SYNC),
            sys::pwritev2(raw, &[b"z"], 0, 1 << 30),
            content("file"),
        ])
    });
}

fn appending(suite: &mut Suite) {
    suite.check("append-from-two-descriptors", || {
        file("file")?;
        let one = sys::open("file", O_WRONLY | O_APPEND, 0)?;
        let two = sys::open("file", O_WRONLY | O_APPEND, 0)?;
        for _ in 0..3 {
            sys::write(one.raw(), "1")?;
            sys::write(two.raw(), "22")?;
        }
        Ok(all![content("file"), sys::lseek(one.raw(), 0, SEEK_CUR)])
    });
    suite.check("append-from-two-processes", || {
        file("file")?;
        let open = sys::open("file", O_WRONLY | O_APPEND, 0)?;
        let other = apart(|| {
            let open = sys::open("file", O_WRONLY | O_APPEND, 0);
            all![open.and_then(|open| sys::write(open.raw(), "child"))]
        });
        sys::write(open.raw(), "parent")?;
        Ok(all![other, content("file")])
    });
    suite.check("append-with-a-position", || {
        file("file")?;
        let open = sys::open("file", O_RDWR | O_APPEND, 0)?;
        Ok(all![
            sys::pwrite(open.raw(), "X", 0),
            content("file"),
            sys::lseek(open.raw(), 0, SEEK_CUR),
            sys::read(open.raw(), 3),
            sys::write(open.raw(), "Y"),
            content("file"),
        ])
    });
    suite.check("append-after-truncation", || {
        file("file")?;
        let open = sys::open("file", O_WRONLY | O_APPEND, 0)?;
        sys::write(open.raw(), "more")?;
        sys::truncate("file", 2)?;
        Ok(all![sys::write(open.raw(), "end"), content("file")])
    });
    suite.check("append-set-later", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        Ok(all![
            sys::fcntl(open.raw(), libc::F_SETFL, O_APPEND),
            sys::write(open.raw(), "more"),
            sys::fcntl(open.raw(), libc::F_SETFL, 0),
            sys::pwrite(open.raw(), "C", 0),
            content("file"),
        ])
    });
}

fn nameless(suite: &mut Suite) {
    suite.check("removed-file-lives-on", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        sys::unlink("file")?;
        Ok(all![
            sys::fstat(open.raw()).map(|status| describe(&status)),
            sys::pwrite(open.raw(), "more", 7),
            sys::pread(open.raw(), 99, 0),
            sys::fchmod(open.raw(), 0o600),
            sys::fchown(open.raw(), 3, 4),
            sys::ftruncate(open.raw(), 3),
            sys::fsync(open.raw()),
            sys::fsetxattr(open.raw(), "user.x", "1", 0),
            sys::fallocate(open.raw(), 0, 0, 9000),
            sys::utimensat(open.raw(), None, Some([(1, 2), (3, 4)]), 0),
            sys::fstat(open.raw()).map(|status| describe(&status)),
        ])
    });
    suite.check("removed-file-opened-again-by-descriptor", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY, 0)?;
        sys::unlink("file")?;
        let again = sys::open(format!("/proc/self/fd/{}", open.raw()), O_RDWR, 0);
        let raw = again.as_ref().map_or(-1, Fd::raw);
        Ok(all![
            again,
            sys::write(raw, "C"),
            sys::pread(open.raw(), 9, 0)
        ])
    });
    suite.check("removed-file-and-a-new-one-of-its-name", || {
        file("file")?;
        let old = sys::open("file", O_RDWR, 0)?;
        sys::unlink("file")?;
        let new = new_file("file")?;
        sys::write(new.raw(), "new")?;
        sys::pwrite(old.raw(), "OLD", 0)?;
        Ok(all![sys::pread(old.raw(), 99, 0), content("file")])
    });
}

fn moving(suite: &mut Suite) {
    suite.check("sendfile-to-a-file-and-a-pipe", || {
        file("from")?;
        let from = sys::open("from", O_RDONLY, 0)?;
        let to = new_file("to")?;
        let (read, write) = sys::pipe(0)?;
        Ok(all![
            sys::sendfile(to.raw(), from.raw(), None, 100),
            content("to"),
            sys::sendfile(write.raw(), from.raw(), Some(2), 3),
            sys::read(read.raw(), 9),
            sys::sendfile(from.raw(), to.raw(), Some(0), 3),
        ])
    });
    suite.check("splice-both-ways", || {
        file("from")?;
        let from = sys::open("from", O_RDONLY, 0)?;
        let to = new_file("to")?;
        let append = sys::open("to", O_WRONLY | O_APPEND, 0)?;
        let (read, write) = sys::pipe(0)?;
        Ok(all![
            sys::splice((from.raw(), Some(1)), (write.raw(), None), 4),
            sys::splice((read.raw(), None), (to.raw(), Some(2)), 4),
            content("to"),
            sys::splice((from.raw(), None), (to.raw(), None), 4),
            sys::splice((from.raw(), None), (write.raw(), None), 4),
            sys::splice((read.raw(), None), (append.raw(), None), 4),
        ])
    });
    for (name, flags) in [("same-file", true), ("another-file", false)] {
        suite.check(format!("copy-file-range-to-{name}"), || {
            file("from")?;
            let from = sys::open("from", O_RDWR, 0)?;
            let other = new_file("to")?;
            let to = if flags { from.raw() } else { other.raw() };
            Ok(all![
                sys::copy_file_range((from.raw(), Some(0)), (to, Some(10)), 100, 0),
                sys::copy_file_range((from.raw(), Some(0)), (to, Some(2)), 4, 0),
                sys::copy_file_range((from.raw(), Some(100)), (to, Some(0)), 4, 0),
                sys::copy_file_range((from.raw(), None), (to, Some(30)), 2, 0),
                sys::lseek(from.raw(), 0, SEEK_CUR),
                content(if flags { "from" } else { "to" }),
            ])
        });
    }
    suite.check("copy-file-range-errors", || {
        file("from")?;
        sys::mkdir("d", 0o755)?;
        let from = sys::open("from", O_RDONLY, 0)?;
        let append = sys::open("to", O_WRONLY | O_APPEND | libc::O_CREAT, 0o644)?;
        let to = sys::open("to", O_WRONLY, 0)?;
        let directory = sys::open("d", O_RDONLY, 0)?;
        let copy = |from, to, flags| sys::copy_file_range((from, None), (to, None), 4, flags);
        Ok(all![
            copy(from.raw(), append.raw(), 0),
            copy(from.raw(), from.raw(), 0),
            copy(to.raw(), to.raw(), 0),
            copy(directory.raw(), to.raw(), 0),
            copy(from.raw(), to.raw(), 1),
            copy(from.raw(), 9999, 0),
            copy(from.raw(), to.raw(), 0),
        ])
    });
    suite.check("holes", || {
        let open = new_file("file")?;
        sys::pwrite(open.raw(), vec![b'x'; 4096], 65_536)?;
        sys::ftruncate(open.raw(), 1 << 20)?;
        sys::fsync(open.raw())?;
        let seek = |at, whence| all![sys::lseek(open.raw(), at, whence)];
        Ok(all![
            seek(0, SEEK_HOLE),
            seek(0, SEEK_DATA),
            seek(65_536, SEEK_HOLE),
            seek(65_537, SEEK_DATA),
            seek(200_000, SEEK_DATA),
            seek(1 << 20, SEEK_HOLE),
            seek(1 << 20, SEEK_DATA),
            seek(-1, SEEK_DATA),
        ])
    });
    suite.check("holes-of-what-is-not-written-yet", || {
        let open = new_file("file")?;
        sys::pwrite(open.raw(), vec![b'x'; 4096], 65_536)?;
        Ok(all![
            sys::lseek(open.raw(), 0, SEEK_DATA),
            sys::lseek(open.raw(), 65_536, SEEK_HOLE),
        ])
    });
}
