//! Names and paths: lengths, bytes, dots, slashes.

use libc::{O_CREAT, O_EXCL, O_RDONLY, O_WRONLY, S_IFIFO};

use crate::suite::{Suite, all, file, listing, look, names};
use crate::sys::{self, Res};

/// A name of so many bytes.
fn long(length: usize) -> Vec<u8> {
    vec![b'n'; length]
}

/// A path of so many bytes to the working directory or a file in it.
fn long_path(length: usize, end: &str) -> Vec<u8> {
    let mut path = Vec::new();
    while path.len() + end.len() + 2 <= length {
        path.extend(b"./");
    }
    path.extend(end.as_bytes());
    while path.len() < length {
        path.insert(0, b'.');
        path.insert(1, b'/');
        if path.len() > length {
            path.drain(..1);
        }
    }
    path
}

/// What a call does with a name.
type Act = fn(&[u8]) -> Res<()>;

const ACTS: [(&str, Act); 12] = [
    ("open", |name| sys::open(name, O_RDONLY, 0).map(|_| ())),
    ("creat", |name| {
        sys::open(name, O_CREAT | O_WRONLY, 0o644).map(|_| ())
    }),
    ("mkdir", |name| sys::mkdir(name, 0o755)),
    ("mknod", |name| sys::mknod(name, S_IFIFO | 0o644, 0)),
    ("symlink", |name| sys::symlink("target", name)),
    ("link", |name| sys::link("file", name)),
    ("rename-to", |name| sys::rename("file", name, 0)),
    ("rename-from", |name| sys::rename(name, "file2", 0)),
    ("unlink", |name| sys::unlink(name)),
    ("rmdir", |name| sys::rmdir(name)),
    ("stat", |name| sys::lstat(name).map(|_| ())),
    ("chmod", |name| sys::chmod(name, 0o600)),
];

pub(super) fn run(suite: &mut Suite) {
    for (act_name, act) in ACTS {
        suite.check(format!("{act_name}-of-255-and-256-bytes"), || {
            file("file")?;
            Ok(all![act(&long(255)), act(&long(256)), look(long(255))])
        });
        suite.check(format!("{act_name}-of-dots-and-slashes"), || {
            file("file")?;
            sys::mkdir("directory", 0o755)?;
            let mut results = Vec::new();
            for name in [
                ".",
                "..",
                "/",
                "",
                "file/",
                "file/.",
                "file/..",
                "directory/",
                "directory/.",
                "directory/..",
                "missing/",
                "missing/.",
            ] {
                // The directory of this check must not go.
                let result = act(name.as_bytes());
                results.push(all![result]);
            }
            Ok(results.join(" "))
        });
    }
    suite.check("every-byte-comes-back", || {
        let mut made = Vec::new();
        for byte in 1..=255_u8 {
            if byte != b'/' {
                let name = [b'x', byte];
                sys::mknod(name, libc::S_IFREG | 0o644, 0)?;
                made.push(name.to_vec());
            }
        }
        Ok(all![names(".")? == made, made.len()])
    });
    suite.check("names-that-look-special", || {
        for name in [
            "...",
            " ",
            "\n",
            "-",
            "~",
            ".x",
            "\u{e4}\u{f6}",
            "\u{1f40c}",
        ] {
            file(name)?;
        }
        file([0xff, 0xfe, 0x80])?;
        Ok(all![listing(".")])
    });
    suite.check("case-matters", || {
        file("name")?;
        file("NAME")?;
        Ok(all![listing(".")])
    });
    suite.check("composed-and-decomposed-differ", || {
        file("\u{e4}")?;
        file("a\u{308}")?;
        Ok(all![names(".")?.len()])
    });
    suite.check("path-of-4095-and-4096-bytes", || {
        file("file")?;
        Ok(all![
            sys::lstat(long_path(4095, "file")).map(|_| ()),
            sys::lstat(long_path(4096, "file")).map(|_| ()),
            sys::open(long_path(4095, "new"), O_CREAT | O_EXCL | O_WRONLY, 0o644),
            sys::open(long_path(4096, "newer"), O_CREAT | O_EXCL | O_WRONLY, 0o644),
            listing("."),
        ])
    });
    suite.check("forty-and-forty-one-links", || {
        file("0")?;
        for number in 1..=41 {
            sys::symlink((number - 1).to_string(), number.to_string())?;
        }
        Ok(all![
            sys::open("40", O_RDONLY, 0),
            sys::open("41", O_RDONLY, 0),
            sys::stat("41").map(|_| ()),
            sys::lstat("41").map(|_| ()),
        ])
    });
    suite.check("links-that-lead-to-each-other", || {
        sys::symlink("b", "a")?;
        sys::symlink("a", "b")?;
        Ok(all![
            sys::stat("a").map(|_| ()),
            sys::stat("a/x").map(|_| ()),
            sys::mkdir("a/x", 0o755),
            sys::chmod("a", 0o600),
            sys::truncate("a", 0),
            sys::access("a", libc::F_OK, 0),
            sys::mkdir("a", 0o755),
            sys::rename("a", "c", 0),
        ])
    });
    suite.check("way-through-a-file", || {
        file("file")?;
        Ok(all![
            sys::stat("file/x").map(|_| ()),
            sys::mkdir("file/x", 0o755),
            sys::unlink("file/x"),
            sys::rmdir("file/x"),
            sys::rename("file/x", "y", 0),
            sys::rename("file", "file/x", 0),
            sys::link("file", "file/x"),
            sys::symlink("x", "file/x"),
            sys::truncate("file/x", 0),
            sys::access("file/x", libc::F_OK, 0),
            sys::readlink("file/x"),
        ])
    });
    suite.check("way-through-a-pipe", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        Ok(all![
            sys::stat("pipe/x").map(|_| ()),
            sys::mkdir("pipe/x", 0o755)
        ])
    });
    suite.check("way-through-what-is-missing", || {
        Ok(all![
            sys::stat("missing/x").map(|_| ()),
            sys::stat("missing/..").map(|_| ()),
            sys::mkdir("missing/x", 0o755),
            sys::symlink("x", "missing/x"),
        ])
    });
    suite.check("name-is-gone-at-once", || {
        file("file")?;
        sys::lstat("file")?;
        sys::unlink("file")?;
        let gone = sys::lstat("file").map(|_| ());
        file("file")?;
        Ok(all![gone, look("file")])
    });
    suite.check("name-is-there-at-once", || {
        let gone = sys::lstat("file").map(|_| ());
        file("file")?;
        Ok(all![gone, look("file")])
    });
    suite.check("kind-behind-a-name-changes", || {
        let mut seen = Vec::new();
        for _ in 0..3 {
            file("name")?;
            seen.push(all![look("name")]);
            sys::unlink("name")?;
            sys::mkdir("name", 0o700)?;
            seen.push(all![look("name")]);
            sys::rmdir("name")?;
            sys::symlink("target", "name")?;
            seen.push(all![look("name")]);
            sys::unlink("name")?;
        }
        Ok(seen.join(" "))
    });
}
