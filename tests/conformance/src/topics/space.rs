//! truncate(2), fallocate(2), statfs(2), sync(2), limits.

use libc::{
    FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_ZERO_RANGE, O_PATH, O_RDONLY, O_RDWR, O_WRONLY,
};

use super::open::make;
use crate::suite::{Suite, all, content, file, new_file, size};
use crate::sys;
use crate::sys::process::{run_as, user};

const MODES: [(&str, i32); 8] = [
    ("plain", 0),
    ("keep-size", FALLOC_FL_KEEP_SIZE),
    ("punch-hole", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
    ("punch-hole-alone", FALLOC_FL_PUNCH_HOLE),
    ("zero-range", FALLOC_FL_ZERO_RANGE),
    (
        "zero-range-keep-size",
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
    ),
    ("collapse-range", FALLOC_FL_COLLAPSE_RANGE),
    ("insert-range", FALLOC_FL_INSERT_RANGE),
];

pub(super) fn run(suite: &mut Suite) {
    for kind in [
        "missing",
        "file",
        "directory",
        "link-to-file",
        "dangling-link",
        "pipe",
        "socket",
        "null-device",
        "below-file",
    ] {
        suite.check(format!("truncate-of-{kind}"), || {
            let name = make(kind)?;
            Ok(all![
                sys::truncate(name, 3),
                sys::truncate(name, -1),
                size(name)
            ])
        });
        suite.check(format!("statfs-of-{kind}"), || {
            let name = make(kind)?;
            Ok(all![sys::statfs(name).map(|_| ())])
        });
    }
    suite.check("truncate-to-all-lengths", || {
        file("file")?;
        let mut results = Vec::new();
        for length in [
            7,
            100,
            3,
            0,
            4096,
            1 << 32,
            (1 << 43) + 1,
            i64::MAX,
            i64::MIN,
            5,
        ] {
            results.push(all![sys::truncate("file", length), size("file")]);
        }
        Ok(all![results.join(" "), content("file")])
    });
    suite.check("truncate-leaves-zeroes", || {
        let open = new_file("file")?;
        sys::write(open.raw(), vec![b'x'; 5000])?;
        sys::ftruncate(open.raw(), 10)?;
        sys::ftruncate(open.raw(), 5000)?;
        let bytes = sys::pread(open.raw(), 5000, 0)?;
        Ok(all![
            bytes.len(),
            bytes.iter().filter(|&&byte| byte == b'x').count()
        ])
    });
    suite.check("truncate-by-those-who-may-not", || {
        file("file")?;
        Ok(run_as(user(1000), || {
            all![sys::truncate("file", 0), size("file")]
        }))
    });
    suite.check("ftruncate-errors", || {
        file("file")?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let write = sys::open("file", O_WRONLY, 0)?;
        let reference = sys::open("file", O_PATH, 0)?;
        let (pipe, _other) = sys::pipe(0)?;
        Ok(all![
            sys::ftruncate(read.raw(), 0),
            sys::ftruncate(write.raw(), -1),
            sys::ftruncate(reference.raw(), 0),
            sys::ftruncate(pipe.raw(), 0),
            sys::ftruncate(9999, 0),
        ])
    });
    allocation(suite);
    file_systems(suite);
}

fn allocation(suite: &mut Suite) {
    for (name, mode) in MODES {
        suite.check(format!("fallocate-{name}"), || {
            let open = new_file("file")?;
            sys::write(open.raw(), vec![b'x'; 16_384])?;
            let done = sys::fallocate(open.raw(), mode, 4096, 4096);
            let bytes = sys::pread(open.raw(), 65_536, 0)?;
            let zeroes = bytes.iter().filter(|&&byte| byte == 0).count();
            Ok(all![done, size("file"), bytes.len(), zeroes])
        });
        suite.check(format!("fallocate-{name}-beyond-the-end"), || {
            file("file")?;
            let open = sys::open("file", O_RDWR, 0)?;
            Ok(all![
                sys::fallocate(open.raw(), mode, 4096, 8192),
                size("file"),
                content("file").map(|bytes| bytes.len())
            ])
        });
        suite.check(format!("fallocate-{name}-unaligned"), || {
            let open = new_file("file")?;
            sys::write(open.raw(), vec![b'x'; 16_384])?;
            let done = sys::fallocate(open.raw(), mode, 100, 5000);
            let bytes = sys::pread(open.raw(), 65_536, 0)?;
            Ok(all![
                done,
                size("file"),
                bytes.iter().filter(|&&byte| byte == 0).count()
            ])
        });
    }
    suite.check("fallocate-errors", || {
        file("file")?;
        let write = sys::open("file", O_WRONLY, 0)?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let (pipe, end) = sys::pipe(0)?;
        Ok(all![
            sys::fallocate(write.raw(), 0, -1, 10),
            sys::fallocate(write.raw(), 0, 0, 0),
            sys::fallocate(write.raw(), 0, 0, -1),
            sys::fallocate(write.raw(), 0, i64::MAX, 10),
            sys::fallocate(write.raw(), 0, 0, i64::MAX),
            sys::fallocate(write.raw(), 1 << 20, 0, 10),
            sys::fallocate(write.raw(), FALLOC_FL_UNSHARE_RANGE, 0, 7),
            sys::fallocate(read.raw(), 0, 0, 10),
            sys::fallocate(pipe.raw(), 0, 0, 10),
            sys::fallocate(end.raw(), 0, 0, 10),
            sys::fallocate(9999, 0, 0, 10),
        ])
    });
    suite.check("allocated-blocks-are-counted", || {
        let open = new_file("file")?;
        sys::fallocate(open.raw(), 0, 0, 1 << 20)?;
        let full = sys::fstat(open.raw())?.st_blocks >= 2048;
        let punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        let punched = sys::fallocate(open.raw(), punch, 0, 1 << 20);
        Ok(all![
            full,
            punched,
            sys::fstat(open.raw())?.st_blocks < 2048
        ])
    });
}

fn file_systems(suite: &mut Suite) {
    suite.check("statfs-fields", || {
        let status = sys::statfs(".")?;
        Ok(all![
            status.f_bsize.to_string(),
            status.f_frsize.to_string(),
            status.f_namelen.to_string(),
            status.f_blocks.to_string(),
            status.f_files.to_string(),
            status.f_bfree >= status.f_bavail,
        ])
    });
    suite.check("statfs-type", || {
        Ok(all![sys::statfs(".")?.f_type.to_string()])
    });
    suite.check("fstatfs", || {
        file("file")?;
        let open = sys::open("file", O_PATH, 0)?;
        let (by_name, by_descriptor) = (sys::statfs("file")?, sys::fstatfs(open.raw())?);
        Ok(all![
            by_name.f_blocks == by_descriptor.f_blocks,
            sys::fstatfs(9999).map(|_| ())
        ])
    });
    suite.check("sync-of-everything", || {
        let open = new_file("file")?;
        sys::write(open.raw(), vec![1; 10_000])?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let directory = sys::open(".", O_RDONLY, 0)?;
        let reference = sys::open("file", O_PATH, 0)?;
        let (pipe, _end) = sys::pipe(0)?;
        Ok(all![
            sys::fsync(open.raw()),
            sys::fdatasync(open.raw()),
            sys::fsync(read.raw()),
            sys::fdatasync(read.raw()),
            sys::fsync(directory.raw()),
            sys::fdatasync(directory.raw()),
            sys::syncfs(open.raw()),
            sys::syncfs(directory.raw()),
            sys::fsync(reference.raw()),
            sys::syncfs(reference.raw()),
            sys::fsync(pipe.raw()),
            sys::fsync(9999),
        ])
    });
    suite.check("sync-of-a-range", || {
        let open = new_file("file")?;
        sys::write(open.raw(), vec![1; 10_000])?;
        let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        Ok(all![
            sys::sync_file_range(open.raw(), 0, 0, all),
            sys::sync_file_range(open.raw(), 100, 50, all),
            sys::sync_file_range(open.raw(), -1, 0, all),
            sys::sync_file_range(open.raw(), 0, 0, 64),
        ])
    });
    suite.check("ioctl-of-a-file", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY, 0)?;
        Ok(all![
            sys::ioctl_get(open.raw(), libc::FIONREAD),
            sys::ioctl(open.raw(), libc::TCFLSH, 0),
            sys::ioctl(open.raw(), 0x4e_5249, 0),
        ])
    });
    suite.check("handles", || {
        file("file")?;
        Ok(all![sys::handle_size("file"), sys::handle_size("missing")])
    });
}
