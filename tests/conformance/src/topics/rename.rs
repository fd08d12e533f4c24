//! rename(2) and its flags: everything over everything.

use libc::{O_RDONLY, O_RDWR, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};

use crate::suite::{Suite, all, content, file, links, listing, look};
use crate::sys::{self, Res, process};

const KINDS: [&str; 7] = ["missing", "file", "empty", "full", "link", "pipe", "same"];

fn make(kind: &str, name: &str, other: &str) -> Res<()> {
    match kind {
        "file" => file(name),
        "empty" => sys::mkdir(name, 0o755),
        "full" => {
            sys::mkdir(name, 0o755)?;
            file(format!("{name}/inside"))
        }
        "link" => sys::symlink("nowhere", name),
        "pipe" => sys::mknod(name, libc::S_IFIFO | 0o600, 0),
        "same" => sys::link(other, name),
        _ => Ok(()),
    }
}

pub(super) fn run(suite: &mut Suite) {
    for (flag_name, flag) in [
        ("", 0),
        ("+RENAME_NOREPLACE", RENAME_NOREPLACE),
        ("+RENAME_EXCHANGE", RENAME_EXCHANGE),
    ] {
        for from in KINDS.into_iter().take(6) {
            for to in KINDS {
                // Directories and what is missing have no second name.
                if to == "same" && matches!(from, "missing" | "empty" | "full") {
                    continue;
                }
                suite.check(format!("{from}-to-{to}{flag_name}"), || {
                    make(from, "from", "")?;
                    make(to, "to", "from")?;
                    Ok(all![
                        sys::rename("from", "to", flag),
                        look("from"),
                        look("to")
                    ])
                });
            }
        }
    }
    flags(suite);
    places(suite);
    permissions(suite);
}

fn flags(suite: &mut Suite) {
    suite.check("whiteout", || {
        file("from")?;
        let done = sys::rename("from", "to", RENAME_WHITEOUT);
        Ok(all![
            done,
            look("from"),
            look("to"),
            sys::lstat("from").map(|status| status.st_rdev)
        ])
    });
    suite.check("whiteout-of-a-directory-over-an-empty-one", || {
        sys::mkdir("from", 0o755)?;
        sys::mkdir("to", 0o755)?;
        Ok(all![
            sys::rename("from", "to", RENAME_WHITEOUT),
            look("from"),
            look("to")
        ])
    });
    suite.check("whiteout-without-replacement", || {
        file("from")?;
        file("to")?;
        let flags = RENAME_WHITEOUT | RENAME_NOREPLACE;
        Ok(all![
            sys::rename("from", "to", flags),
            sys::rename("from", "new", flags),
            look("from")
        ])
    });
    suite.check("flags-that-exclude-each-other", || {
        file("from")?;
        file("to")?;
        Ok(all![
            sys::rename("from", "to", RENAME_EXCHANGE | RENAME_NOREPLACE),
            sys::rename("from", "to", RENAME_EXCHANGE | RENAME_WHITEOUT),
            sys::rename("from", "to", 1 << 20),
            listing("."),
        ])
    });
    suite.check("exchange-between-directories", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("b", 0o755)?;
        file("a/x")?;
        sys::mkdir("b/y", 0o700)?;
        file("b/y/inside")?;
        Ok(all![
            sys::rename("a/x", "b/y", RENAME_EXCHANGE),
            look("a/x"),
            look("b/y"),
            listing("a/x"),
            content("b/y"),
        ])
    });
    suite.check("exchange-with-own-ancestor", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("a/b", 0o755)?;
        Ok(all![
            sys::rename("a", "a/b", RENAME_EXCHANGE),
            sys::rename("a/b", "a", RENAME_EXCHANGE),
        ])
    });
}

fn places(suite: &mut Suite) {
    suite.check("into-own-subdirectory", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("a/b", 0o755)?;
        Ok(all![
            sys::rename("a", "a/c", 0),
            sys::rename("a", "a/b/c", 0),
            sys::rename("a", "a/b", 0),
            sys::rename("a/b", "a", 0),
        ])
    });
    suite.check("of-dots", || {
        sys::mkdir("a", 0o755)?;
        Ok(all![
            sys::rename(".", "b", 0),
            sys::rename("..", "b", 0),
            sys::rename("a", ".", 0),
            sys::rename("a", "..", 0),
            sys::rename("a/.", "b", 0),
            sys::rename("a/..", "b", 0),
        ])
    });
    suite.check("with-trailing-slashes", || {
        file("file")?;
        sys::mkdir("directory", 0o755)?;
        Ok(all![
            sys::rename("file/", "x", 0),
            sys::rename("file", "x/", 0),
            sys::rename("directory/", "moved/", 0),
            sys::rename("moved", "again/", 0),
            listing("."),
        ])
    });
    suite.check("to-itself", || {
        file("file")?;
        sys::mkdir("directory", 0o755)?;
        Ok(all![
            sys::rename("file", "file", 0),
            sys::rename("directory", "directory", 0),
            sys::rename("file", "file", RENAME_NOREPLACE),
            sys::rename("file", "file", RENAME_EXCHANGE),
            listing("."),
        ])
    });
    suite.check("between-two-names-of-one-file", || {
        file("a")?;
        sys::link("a", "b")?;
        Ok(all![sys::rename("a", "b", 0), links("a"), links("b")])
    });
    suite.check("of-an-open-file", || {
        file("old")?;
        let open = sys::open("old", O_RDWR, 0)?;
        sys::rename("old", "new", 0)?;
        sys::pwrite(open.raw(), "CON", 0)?;
        let gone = sys::lstat("old").map(|_| ());
        file("old")?;
        sys::pwrite(open.raw(), "TENT", 3)?;
        Ok(all![
            gone,
            content("new"),
            content("old"),
            sys::fchmod(open.raw(), 0o600),
            look("new")
        ])
    });
    suite.check("over-an-open-file", || {
        file("target")?;
        let open = sys::open("target", O_RDWR, 0)?;
        crate::suite::file_with("source", b"other", 0o644)?;
        sys::rename("source", "target", 0)?;
        let written = sys::pwrite(open.raw(), "old", 0);
        Ok(all![
            written,
            sys::pread(open.raw(), 9, 0),
            sys::fstat(open.raw()).map(|status| status.st_nlink),
            content("target"),
        ])
    });
    suite.check("of-a-full-directory-to-another-place", || {
        sys::mkdir("a", 0o755)?;
        sys::mkdir("b", 0o755)?;
        sys::mkdir("a/tree", 0o755)?;
        sys::mkdir("a/tree/inner", 0o755)?;
        file("a/tree/inner/file")?;
        let open = sys::open("a/tree/inner/file", O_RDONLY, 0)?;
        sys::rename("a/tree", "b/tree", 0)?;
        Ok(all![
            content("b/tree/inner/file"),
            sys::read(open.raw(), 9),
            sys::lstat("a/tree/inner").map(|_| ()),
            file("b/tree/inner/more"),
            listing("b/tree/inner"),
        ])
    });
    suite.check("back-and-forth-many-times", || {
        file("a")?;
        for _ in 0..50 {
            sys::rename("a", "b", 0)?;
            sys::rename("b", "a", 0)?;
        }
        Ok(all![listing("."), content("a")])
    });
    suite.check("chain-of-names", || {
        for (name, text) in [("1", b"one"), ("2", b"two"), ("3", b"333")] {
            crate::suite::file_with(name, text, 0o644)?;
        }
        sys::rename("3", "t", 0)?;
        sys::rename("2", "3", 0)?;
        sys::rename("1", "2", 0)?;
        sys::rename("t", "1", 0)?;
        Ok(all![content("1"), content("2"), content("3")])
    });
    suite.check("atomic-switch-of-a-link", || {
        sys::mkdir("v1", 0o755)?;
        sys::mkdir("v2", 0o755)?;
        file("v1/file")?;
        crate::suite::file_with("v2/file", b"second", 0o644)?;
        sys::symlink("v1", "current")?;
        let before = content("current/file");
        sys::symlink("v2", "next")?;
        sys::rename("next", "current", 0)?;
        Ok(all![
            before,
            content("current/file"),
            sys::readlink("current")
        ])
    });
}

fn permissions(suite: &mut Suite) {
    suite.check("without-permission", || {
        sys::mkdir("closed", 0o755)?;
        sys::mkdir("open", 0o777)?;
        file("closed/file")?;
        sys::mkdir("closed/directory", 0o755)?;
        Ok(process::run_as(process::user(1000), || {
            file("open/mine").ok();
            all![
                sys::rename("closed/file", "open/file", 0),
                sys::rename("open/mine", "closed/mine", 0),
                sys::rename("closed/file", "closed/other", 0),
                sys::rename("open/mine", "open/yours", 0),
            ]
        }))
    });
    suite.check("of-a-directory-one-may-not-write", || {
        sys::chmod(".", 0o777)?;
        sys::mkdir("one", 0o777)?;
        sys::chmod("one", 0o777)?;
        sys::mkdir("theirs", 0o755)?;
        Ok(process::run_as(process::user(1000), || {
            all![
                sys::rename("theirs", "renamed", 0),
                sys::rename("renamed", "one/moved", 0),
                listing("."),
            ]
        }))
    });
    suite.check("sticky", || {
        sys::mkdir("sticky", 0o1777)?;
        sys::chmod("sticky", 0o1777)?;
        for (name, uid) in [("mine", 1000), ("theirs", 1001), ("roots", 0)] {
            let path = format!("sticky/{name}");
            crate::suite::file_with(&path, b"", 0o666)?;
            sys::chown(&path, uid, 0)?;
        }
        Ok(process::run_as(process::user(1000), || {
            all![
                sys::rename("sticky/theirs", "sticky/x", 0),
                sys::rename("sticky/mine", "sticky/theirs", 0),
                sys::rename("sticky/mine", "sticky/x", 0),
                sys::unlink("sticky/theirs"),
                sys::unlink("sticky/roots"),
                sys::unlink("sticky/x"),
                sys::rename("sticky/theirs", "sticky/roots", RENAME_EXCHANGE),
            ]
        }))
    });
    suite.check("sticky-directory-of-ones-own", || {
        sys::mkdir("sticky", 0o1777)?;
        sys::chmod("sticky", 0o1777)?;
        sys::chown("sticky", 1000, 1000)?;
        sys::chmod("sticky", 0o1777)?;
        file("sticky/roots")?;
        Ok(process::run_as(process::user(1000), || {
            all![sys::unlink("sticky/roots")]
        }))
    });
}
