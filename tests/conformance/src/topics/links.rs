//! Hard and symbolic links.

use libc::{AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, O_PATH, O_RDWR};

use super::open::make;
use crate::suite::{Suite, all, content, file, links, listing, look, owner};
use crate::sys::{self, HERE, process};

pub(super) fn run(suite: &mut Suite) {
    for kind in [
        "missing",
        "file",
        "directory",
        "link-to-file",
        "link-to-directory",
        "dangling-link",
        "pipe",
        "socket",
        "null-device",
    ] {
        suite.check(format!("link-of-{kind}"), || {
            make(kind)?;
            Ok(all![sys::link("name", "twin"), look("name"), look("twin")])
        });
        suite.check(format!("link-to-existing-{kind}"), || {
            make(kind)?;
            file("source")?;
            Ok(all![
                sys::link("source", "name"),
                look("source"),
                look("name")
            ])
        });
        suite.check(format!("symlink-to-existing-{kind}"), || {
            make(kind)?;
            Ok(all![sys::symlink("somewhere", "name"), look("name")])
        });
        suite.check(format!("readlink-of-{kind}"), || {
            make(kind)?;
            Ok(all![sys::readlink("name")])
        });
    }
    suite.check("link-that-follows", || {
        make("link-to-file")?;
        let follow = sys::linkat((HERE, b"name"), (HERE, b"twin"), AT_SYMLINK_FOLLOW);
        Ok(all![follow, look("twin"), look("target")])
    });
    suite.check("link-flags-unknown", || {
        file("file")?;
        Ok(all![sys::linkat((HERE, b"file"), (HERE, b"twin"), 0x1)])
    });
    suite.check("link-by-descriptor", || {
        file("file")?;
        let open = sys::open("file", O_PATH, 0)?;
        Ok(all![
            sys::linkat((open.raw(), b""), (HERE, b"twin"), AT_EMPTY_PATH),
            links("file")
        ])
    });
    suite.check("link-of-a-removed-file", || {
        file("file")?;
        let open = sys::open("file", O_RDWR, 0)?;
        sys::unlink("file")?;
        let path = format!("/proc/self/fd/{}", open.raw());
        let linked = sys::linkat((HERE, path.as_bytes()), (HERE, b"again"), AT_SYMLINK_FOLLOW);
        Ok(all![linked, listing(".")])
    });
    suite.check("names-share-everything", || {
        file("a")?;
        sys::link("a", "b")?;
        sys::chmod("a", 0o600)?;
        sys::chown("b", 3, 4)?;
        sys::truncate("a", 3)?;
        let (a, b) = (sys::lstat("a")?, sys::lstat("b")?);
        Ok(all![
            owner("a"),
            owner("b"),
            content("b"),
            a.st_ino == b.st_ino
        ])
    });
    suite.check("written-by-one-name-read-by-the-other", || {
        file("a")?;
        sys::link("a", "b")?;
        let one = sys::open("a", O_RDWR, 0)?;
        let other = sys::open("b", O_RDWR, 0)?;
        sys::pwrite(one.raw(), "CON", 0)?;
        let read = sys::pread(other.raw(), 9, 0);
        sys::pwrite(other.raw(), "TENT", 3)?;
        Ok(all![read, sys::pread(one.raw(), 9, 0)])
    });
    suite.check("count-goes-up-and-down", || {
        file("0")?;
        let mut counts = Vec::new();
        for number in 1..=20 {
            sys::link("0", number.to_string())?;
        }
        counts.push(all![links("0")]);
        sys::unlink("0")?;
        counts.push(all![links("20")]);
        for number in 1..20 {
            sys::unlink(number.to_string())?;
        }
        counts.push(all![links("20"), content("20")]);
        Ok(counts.join(" "))
    });
    suite.check("in-another-directory", || {
        sys::mkdir("directory", 0o755)?;
        file("file")?;
        sys::link("file", "directory/twin")?;
        sys::unlink("file")?;
        Ok(all![content("directory/twin"), links("directory/twin")])
    });
    suite.check("to-another-file-system", || {
        file("file")?;
        Ok(all![
            sys::link("file", "/dev/shm/twin"),
            sys::rename("file", "/dev/shm/twin", 0),
            sys::link("/proc/self/status", "twin"),
        ])
    });
    suite.check("of-a-file-one-may-not-read", || {
        file("file")?;
        sys::chmod("file", 0o600)?;
        sys::chmod(".", 0o777)?;
        Ok(process::run_as(process::user(1000), || {
            all![sys::link("file", "twin"), links("file")]
        }))
    });
    suite.check("in-a-directory-without-permission", || {
        file("file")?;
        sys::mkdir("closed", 0o555)?;
        Ok(process::run_as(process::user(1000), || {
            all![
                sys::link("file", "closed/twin"),
                sys::symlink("x", "closed/link"),
                sys::unlink("file"),
            ]
        }))
    });
    suite.check("targets-of-all-lengths", || {
        let mut results = Vec::new();
        for length in [1, 59, 60, 61, 255, 256, 1000, 4000, 4095, 4096] {
            let name = format!("l{length}");
            let made = sys::symlink(vec![b't'; length], &name);
            let read = sys::readlink(&name).map(|target| target.len());
            results.push(all![
                made,
                read,
                sys::lstat(&name).map(|status| status.st_size)
            ]);
        }
        Ok(results.join(", "))
    });
    suite.check("target-empty-or-strange", || {
        let bytes: Vec<u8> = (1..=255).collect();
        sys::symlink(&bytes, "bytes")?;
        Ok(all![
            sys::symlink("", "empty"),
            sys::readlink("bytes")? == bytes
        ])
    });
    suite.check("target-into-a-short-buffer", || {
        sys::symlink("0123456789", "link")?;
        Ok(all![
            sys::readlinkat(HERE, "link", 4),
            sys::readlinkat(HERE, "link", 0),
            sys::readlinkat(HERE, "link", 10),
        ])
    });
    suite.check("absolute-and-relative-targets", || {
        file("file")?;
        sys::mkdir("d", 0o755)?;
        let here = sys::getcwd()?;
        sys::symlink([&here[..], b"/file"].concat(), "absolute")?;
        sys::symlink("../file", "d/relative")?;
        sys::symlink("d/relative", "twice")?;
        Ok(all![
            content("absolute"),
            content("d/relative"),
            content("twice")
        ])
    });
    suite.check("owner-of-a-link", || {
        file("target")?;
        sys::symlink("target", "link")?;
        Ok(all![
            sys::lchown("link", 7, 8),
            owner("link"),
            owner("target"),
            sys::fchmodat2("link", 0o600, libc::AT_SYMLINK_NOFOLLOW),
            sys::chmod("link", 0o640),
            owner("link"),
            owner("target"),
        ])
    });
    suite.check("made-with-any-umask", || {
        sys::umask(0o777);
        let made = sys::symlink("target", "link");
        sys::umask(0o022);
        Ok(all![made, look("link")])
    });
}
