//! open(2): every kind of file with every kind of flag.

use libc::{
    O_ACCMODE, O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_EXCL, O_NOATIME, O_NOFOLLOW, O_NONBLOCK,
    O_PATH, O_RDONLY, O_RDWR, O_SYNC, O_TMPFILE, O_TRUNC, O_WRONLY,
};

use crate::suite::{Suite, all, content, file, listing, look, new_file, size};
use crate::sys::{self, HERE, Res, process};

/// What is behind the name that is opened.
const KINDS: [&str; 12] = [
    "missing",
    "file",
    "directory",
    "link-to-file",
    "link-to-directory",
    "dangling-link",
    "looping-link",
    "pipe",
    "socket",
    "null-device",
    "below-file",
    "below-missing",
];

const FLAGS: [(&str, i32); 18] = [
    ("O_RDONLY", O_RDONLY | O_NONBLOCK),
    ("O_WRONLY", O_WRONLY | O_NONBLOCK),
    ("O_RDWR", O_RDWR | O_NONBLOCK),
    ("O_ACCMODE", O_ACCMODE | O_NONBLOCK),
    ("O_CREAT", O_CREAT | O_WRONLY | O_NONBLOCK),
    ("O_CREAT|O_EXCL", O_CREAT | O_EXCL | O_WRONLY | O_NONBLOCK),
    ("O_CREAT|O_TRUNC", O_CREAT | O_TRUNC | O_RDWR | O_NONBLOCK),
    ("O_CREAT|O_DIRECTORY", O_CREAT | O_DIRECTORY | O_NONBLOCK),
    (
        "O_CREAT|O_NOFOLLOW",
        O_CREAT | O_NOFOLLOW | O_RDWR | O_NONBLOCK,
    ),
    ("O_TRUNC", O_TRUNC | O_WRONLY | O_NONBLOCK),
    ("O_TRUNC|O_RDONLY", O_TRUNC | O_RDONLY | O_NONBLOCK),
    ("O_APPEND|O_TRUNC", O_APPEND | O_TRUNC | O_RDWR | O_NONBLOCK),
    ("O_DIRECTORY", O_DIRECTORY),
    ("O_NOFOLLOW", O_NOFOLLOW | O_NONBLOCK),
    ("O_PATH", O_PATH),
    ("O_PATH|O_NOFOLLOW", O_PATH | O_NOFOLLOW),
    ("O_PATH|O_DIRECTORY", O_PATH | O_DIRECTORY),
    ("O_TMPFILE", O_TMPFILE | O_RDWR),
];

/// Makes something of a kind; answers the name to be opened.
pub(super) fn make(kind: &str) -> Res<&'static str> {
    match kind {
        "missing" => {}
        "file" => file("name")?,
        "directory" => sys::mkdir("name", 0o755)?,
        "link-to-file" => {
            file("target")?;
            sys::symlink("target", "name")?;
        }
        "link-to-directory" => {
            sys::mkdir("target", 0o755)?;
            sys::symlink("target", "name")?;
        }
        "dangling-link" => sys::symlink("target", "name")?,
        "looping-link" => sys::symlink("name", "name")?,
        "pipe" => sys::mknod("name", libc::S_IFIFO | 0o644, 0)?,
        "socket" => sys::mknod("name", libc::S_IFSOCK | 0o644, 0)?,
        "null-device" => sys::mknod("name", libc::S_IFCHR | 0o644, 0x103)?,
        "below-file" => {
            file("name")?;
            return Ok("name/below");
        }
        _ => return Ok("missing/below"),
    }
    Ok("name")
}

pub(super) fn run(suite: &mut Suite) {
    for kind in KINDS {
        for (flags_name, flags) in FLAGS {
            suite.check(format!("{kind}+{flags_name}"), || {
                let name = make(kind)?;
                Ok(all![
                    sys::open(name, flags, 0o640),
                    listing("."),
                    look("name")
                ])
            });
        }
    }
    details(suite);
    references(suite);
    temporary(suite);
}

fn details(suite: &mut Suite) {
    suite.check("empty-name", || {
        Ok(all![
            sys::open("", O_RDONLY, 0),
            sys::open("", O_CREAT | O_RDWR, 0)
        ])
    });
    suite.check("bad-directory-descriptor", || {
        file("file")?;
        let file = sys::open("file", O_RDONLY, 0)?;
        Ok(all![
            sys::openat(9999, "file", O_RDONLY, 0),
            sys::openat(file.raw(), "file", O_RDONLY, 0),
        ])
    });
    suite.check("trailing-slash", || {
        file("file")?;
        sys::mkdir("directory", 0o755)?;
        sys::symlink("directory", "link")?;
        Ok(all![
            sys::open("file/", O_RDONLY, 0),
            sys::open("directory/", O_RDONLY, 0),
            sys::open("link/", O_RDONLY | O_NOFOLLOW, 0),
            sys::open("missing/", O_CREAT | O_RDWR, 0o644),
        ])
    });
    suite.check("mode-forbids-what-the-creator-has-open", || {
        let file = sys::open("file", O_CREAT | O_EXCL | O_RDWR, 0o000)?;
        Ok(all![
            sys::write(file.raw(), "text"),
            look("file"),
            sys::pread(file.raw(), 9, 0)
        ])
    });
    suite.check("mode-forbids-what-an-ordinary-creator-has-open", || {
        sys::chmod(".", 0o777)?;
        Ok(process::run_as(process::user(1000), || {
            let made = sys::open("file", O_CREAT | O_EXCL | O_RDWR, 0o000);
            let written = made
                .as_ref()
                .map_err(|&errno| errno)
                .and_then(|file| sys::write(file.raw(), "text"));
            all![made, written, look("file"), sys::open("file", O_RDONLY, 0)]
        }))
    });
    suite.check("truncation-keeps-mode-and-owner", || {
        file("file")?;
        sys::chmod("file", 0o604)?;
        sys::chown("file", 5, 6)?;
        Ok(all![
            sys::open("file", O_TRUNC | O_WRONLY, 0o777),
            crate::suite::owner("file"),
            size("file")
        ])
    });
    suite.check("read-only-descriptor-refuses-writes", || {
        file("file")?;
        let file = sys::open("file", O_RDONLY, 0)?;
        Ok(all![
            sys::write(file.raw(), "x"),
            sys::ftruncate(file.raw(), 1)
        ])
    });
    suite.check("write-only-descriptor-refuses-reads", || {
        file("file")?;
        let file = sys::open("file", O_WRONLY, 0)?;
        Ok(all![sys::read(file.raw(), 4), sys::pread(file.raw(), 4, 0)])
    });
    suite.check("flags-are-remembered", || {
        file("file")?;
        let flags = O_RDWR | O_APPEND | O_NONBLOCK | O_SYNC;
        let file = sys::open("file", flags, 0)?;
        let got = sys::fcntl(file.raw(), libc::F_GETFL, 0)?;
        Ok(all![got & flags == flags])
    });
    suite.check("append-can-be-set-later", || {
        file("file")?;
        let file = sys::open("file", O_RDWR, 0)?;
        let set = sys::fcntl(file.raw(), libc::F_SETFL, O_APPEND);
        Ok(all![set, sys::write(file.raw(), "!"), content("file")])
    });
    suite.check("direct-can-be-set-later", || {
        file("file")?;
        let file = sys::open("file", O_RDWR, 0)?;
        Ok(all![sys::fcntl(file.raw(), libc::F_SETFL, O_DIRECT)])
    });
    suite.check("noatime-for-owner-and-others", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        sys::chmod("file", 0o666)?;
        let open = || all![sys::open("file", O_RDONLY | O_NOATIME, 0)];
        Ok(all![
            open(),
            process::run_as(process::user(1000), open),
            process::run_as(process::user(1001), open),
        ])
    });
    suite.check("exclusive-without-create", || {
        file("file")?;
        Ok(all![sys::open("file", O_EXCL | O_RDWR, 0)])
    });
    suite.check("created-below-a-link-to-a-directory", || {
        sys::mkdir("directory", 0o755)?;
        sys::symlink("directory", "link")?;
        Ok(all![new_file("link/file"), look("directory/file")])
    });
    suite.check("created-through-a-dangling-link", || {
        sys::symlink("later", "link")?;
        Ok(all![
            sys::open("link", O_CREAT | O_WRONLY, 0o600),
            look("later")
        ])
    });
    suite.check("exclusive-through-a-dangling-link", || {
        sys::symlink("later", "link")?;
        Ok(all![new_file("link"), look("later")])
    });
    suite.check("in-removed-directory", || {
        sys::mkdir("directory", 0o755)?;
        let directory = sys::open("directory", O_RDONLY, 0)?;
        sys::rmdir("directory")?;
        Ok(all![
            sys::openat(directory.raw(), "file", O_CREAT | O_RDWR, 0o644),
            sys::openat(directory.raw(), "file", O_RDONLY, 0),
            sys::openat(directory.raw(), ".", O_RDONLY, 0),
            sys::openat(directory.raw(), ".", O_TMPFILE | O_RDWR, 0o600),
            sys::mkdirat(directory.raw(), "below", 0o755),
        ])
    });
}

fn references(suite: &mut Suite) {
    suite.check("reference-refuses-data", || {
        file("file")?;
        let file = sys::open("file", O_PATH, 0)?;
        Ok(all![
            sys::read(file.raw(), 1),
            sys::write(file.raw(), "x"),
            sys::ftruncate(file.raw(), 0),
            sys::fchmod(file.raw(), 0o600),
            sys::fchown(file.raw(), 1, 1),
            sys::fsync(file.raw()),
            sys::fsetxattr(file.raw(), "user.x", "1", 0),
            sys::fstat(file.raw()).map(|status| crate::suite::describe(&status)),
        ])
    });
    suite.check("reference-to-a-link", || {
        sys::symlink("target", "link")?;
        let link = sys::open("link", O_PATH | O_NOFOLLOW, 0)?;
        Ok(all![
            sys::fstat(link.raw()).map(|status| crate::suite::describe(&status)),
            sys::readlinkat(link.raw(), "", 100),
            sys::fchownat(link.raw(), "", (3, 4), libc::AT_EMPTY_PATH),
            crate::suite::owner("link"),
        ])
    });
    suite.check("reference-opened-again", || {
        file("file")?;
        let reference = sys::open("file", O_PATH, 0)?;
        sys::rename("file", "moved", 0)?;
        let path = format!("/proc/self/fd/{}", reference.raw());
        let again = sys::open(path, O_RDWR, 0)?;
        Ok(all![sys::write(again.raw(), "C"), content("moved")])
    });
    suite.check("reference-to-a-directory-is-a-place", || {
        sys::mkdir("directory", 0o755)?;
        file("directory/file")?;
        let place = sys::open("directory", O_PATH, 0)?;
        Ok(all![
            sys::openat(place.raw(), "file", O_RDONLY, 0),
            sys::getdents(place.raw(), &mut [0; 1024]),
            sys::fchdir(place.raw()),
            look("file"),
        ])
    });
}

fn temporary(suite: &mut Suite) {
    suite.check("nameless-is-written-and-read", || {
        let file = sys::open(".", O_TMPFILE | O_RDWR, 0o640)?;
        let written = sys::write(file.raw(), "text");
        Ok(all![
            written,
            sys::pread(file.raw(), 9, 0),
            sys::fstat(file.raw()).map(|status| crate::suite::describe(&status)),
            listing("."),
        ])
    });
    suite.check("nameless-gets-a-name", || {
        let file = sys::open(".", O_TMPFILE | O_RDWR, 0o640)?;
        sys::write(file.raw(), "text")?;
        let path = format!("/proc/self/fd/{}", file.raw());
        let linked = sys::linkat(
            (HERE, path.as_bytes()),
            (HERE, b"name"),
            libc::AT_SYMLINK_FOLLOW,
        );
        let more = sys::write(file.raw(), "more");
        Ok(all![linked, more, look("name"), content("name")])
    });
    suite.check("nameless-gets-a-name-by-descriptor", || {
        let file = sys::open(".", O_TMPFILE | O_RDWR, 0o640)?;
        let linked = sys::linkat((file.raw(), b""), (HERE, b"name"), libc::AT_EMPTY_PATH);
        Ok(all![linked, look("name")])
    });
    suite.check("nameless-gets-two-names", || {
        let file = sys::open(".", O_TMPFILE | O_RDWR, 0o640)?;
        let path = format!("/proc/self/fd/{}", file.raw());
        let link = |name: &[u8]| {
            sys::linkat(
                (HERE, path.as_bytes()),
                (HERE, name),
                libc::AT_SYMLINK_FOLLOW,
            )
        };
        Ok(all![link(b"one"), link(b"two"), link(b"two"), look("one")])
    });
    suite.check("exclusively-nameless-gets-no-name", || {
        let file = sys::open(".", O_TMPFILE | O_EXCL | O_RDWR, 0o640)?;
        let path = format!("/proc/self/fd/{}", file.raw());
        let linked = sys::linkat(
            (HERE, path.as_bytes()),
            (HERE, b"name"),
            libc::AT_SYMLINK_FOLLOW,
        );
        Ok(all![linked, listing(".")])
    });
    suite.check("nameless-read-only", || {
        Ok(all![sys::open(".", O_TMPFILE | O_RDONLY, 0o640)])
    });
    suite.check("nameless-as-ordinary-user", || {
        sys::chmod(".", 0o2775)?;
        sys::chown(".", 1000, 77)?;
        sys::chmod(".", 0o2775)?;
        Ok(process::run_as(process::user(1000), || {
            let file = sys::open(".", O_TMPFILE | O_RDWR, 0o666);
            let status = file.and_then(|file| sys::fstat(file.raw()));
            all![status.map(|status| format!(
                "{}:{},{}",
                status.st_uid,
                status.st_gid,
                crate::suite::describe(&status)
            ))]
        }))
    });
    suite.check("nameless-in-a-directory-without-permission", || {
        Ok(process::run_as(process::user(1000), || {
            all![sys::open(".", O_TMPFILE | O_RDWR, 0o666)]
        }))
    });
}
