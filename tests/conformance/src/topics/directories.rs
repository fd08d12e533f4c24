//! mkdir, rmdir, unlink, links of directories, working directories.

use libc::{AT_REMOVEDIR, O_DIRECTORY, O_RDONLY};

use super::open::make;
use crate::suite::{Suite, all, file, links, listing, look, mode, owner};
use crate::sys::{self, HERE, process};

const KINDS: [&str; 9] = [
    "missing",
    "file",
    "directory",
    "link-to-file",
    "link-to-directory",
    "dangling-link",
    "pipe",
    "socket",
    "null-device",
];

pub(super) fn run(suite: &mut Suite) {
    for kind in KINDS {
        suite.check(format!("mkdir-over-{kind}"), || {
            make(kind)?;
            Ok(all![sys::mkdir("name", 0o755), look("name")])
        });
        suite.check(format!("rmdir-of-{kind}"), || {
            make(kind)?;
            Ok(all![sys::rmdir("name"), look("name"), listing(".")])
        });
        suite.check(format!("unlink-of-{kind}"), || {
            make(kind)?;
            Ok(all![sys::unlink("name"), look("name"), listing(".")])
        });
    }
    suite.check("rmdir-of-a-full-directory", || {
        sys::mkdir("directory", 0o755)?;
        file("directory/file")?;
        let full = sys::rmdir("directory");
        sys::unlink("directory/file")?;
        Ok(all![full, sys::rmdir("directory")])
    });
    suite.check("rmdir-of-a-directory-with-a-hidden-name", || {
        sys::mkdir("directory", 0o755)?;
        file("directory/.hidden")?;
        Ok(all![sys::rmdir("directory")])
    });
    suite.check("unlinkat-flags", || {
        sys::mkdir("directory", 0o755)?;
        file("file")?;
        Ok(all![
            sys::unlinkat(HERE, "file", AT_REMOVEDIR),
            sys::unlinkat(HERE, "directory", 0),
            sys::unlinkat(HERE, "file", 0x1000_0000),
            sys::unlinkat(HERE, "directory", AT_REMOVEDIR),
            sys::unlinkat(9999, "file", 0),
        ])
    });
    suite.check("links-count-subdirectories", || {
        sys::mkdir("d", 0o755)?;
        let mut counts = vec![all![links("d")]];
        for name in ["d/1", "d/2", "d/3"] {
            sys::mkdir(name, 0o755)?;
            counts.push(all![links("d")]);
        }
        file("d/file")?;
        counts.push(all![links("d")]);
        sys::rmdir("d/1")?;
        counts.push(all![links("d")]);
        sys::rename("d/2", "2", 0)?;
        counts.push(all![links("d"), links("."), links("2")]);
        Ok(counts.join(" "))
    });
    suite.check("links-after-a-directory-replaces-another", || {
        sys::mkdir("from", 0o755)?;
        sys::mkdir("from/d", 0o755)?;
        sys::mkdir("to", 0o755)?;
        sys::mkdir("to/d", 0o755)?;
        sys::rename("from/d", "to/d", 0)?;
        Ok(all![links("from"), links("to"), links("to/d")])
    });
    suite.check("links-after-an-exchange", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("a/d", 0o755)?;
        sys::mkdir("b", 0o755)?;
        file("b/f")?;
        sys::rename("a/d", "b/f", libc::RENAME_EXCHANGE)?;
        Ok(all![links("a"), links("b"), look("a/d"), look("b/f")])
    });
    suite.check("removed-directory-has-no-links", || {
        sys::mkdir("directory", 0o755)?;
        let open = sys::open("directory", O_RDONLY | O_DIRECTORY, 0)?;
        sys::rmdir("directory")?;
        Ok(all![sys::fstat(open.raw()).map(|status| status.st_nlink)])
    });
    suite.check("removed-working-directory", || {
        sys::mkdir("directory", 0o755)?;
        sys::chdir("directory")?;
        sys::rmdir("../directory")?;
        Ok(all![
            sys::getcwd(),
            sys::mkdir("x", 0o755),
            listing("."),
            sys::stat("..").map(|_| ()),
            sys::open("x", libc::O_CREAT | libc::O_RDWR, 0o644),
            sys::symlink("t", "x"),
            sys::chdir("."),
        ])
    });
    suite.check("working-directory-is-renamed", || {
        sys::mkdir("old", 0o755)?;
        sys::chdir("old")?;
        sys::rename("../old", "../new", 0)?;
        file("file")?;
        let path = sys::getcwd()?;
        Ok(all![path.ends_with(b"/new"), look("../new/file")])
    });
    suite.check("parent-of-a-moved-directory", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("b", 0o755)?;
        sys::mkdir("a/moved", 0o755)?;
        file("b/mark")?;
        let moved = sys::open("a/moved", O_RDONLY, 0)?;
        sys::rename("a/moved", "b/moved", 0)?;
        sys::fchdir(moved.raw())?;
        Ok(all![look("../mark")])
    });
    suite.check("chdir-errors", || {
        file("file")?;
        sys::mkdir("closed", 0o700)?;
        Ok(all![
            sys::chdir("missing"),
            sys::chdir("file"),
            process::run_as(process::user(1000), || all![sys::chdir("closed")]),
        ])
    });
    suite.check("mode-of-mkdir", || {
        sys::umask(0);
        for mode in [0o000, 0o777, 0o1777, 0o2755, 0o4755, 0o7777] {
            sys::mkdir(format!("{mode:o}"), mode)?;
        }
        let old = sys::umask(0o022);
        Ok(all![
            old,
            mode("0"),
            mode("777"),
            mode("1777"),
            mode("2755"),
            mode("4755"),
            mode("7777")
        ])
    });
    suite.check("mkdir-in-a-read-only-directory", || {
        sys::mkdir("closed", 0o555)?;
        let make = || all![sys::mkdir("closed/x", 0o755)];
        Ok(all![process::run_as(process::user(1000), make), make()])
    });
    suite.check("deep-directories", || {
        const DEPTH: usize = 1000;
        for _ in 0..DEPTH {
            sys::mkdir("deep", 0o755)?;
            sys::chdir("deep")?;
        }
        file("file")?;
        let found = look("file");
        let path = sys::getcwd();
        let length = path.map(|path| path.len() > 5 * DEPTH);
        sys::unlink("file")?;
        for _ in 0..DEPTH {
            sys::chdir("..")?;
            sys::rmdir("deep")?;
        }
        Ok(all![found, length, listing(".")])
    });
    suite.check("owner-of-what-others-make", || {
        sys::chmod(".", 0o777)?;
        let made = process::run_as(process::user(1000), || {
            all![
                sys::mkdir("directory", 0o755),
                file("file"),
                sys::symlink("target", "link"),
                sys::mknod("pipe", libc::S_IFIFO | 0o644, 0),
                sys::mknod("socket", libc::S_IFSOCK | 0o644, 0),
                sys::mknod("device", libc::S_IFCHR | 0o644, 0x103),
            ]
        });
        Ok(all![
            made,
            owner("directory"),
            owner("file"),
            owner("link"),
            owner("pipe"),
            owner("socket")
        ])
    });
}
