//! utimensat(2), statx(2), and which calls change which times.

use libc::{
    AT_SYMLINK_NOFOLLOW, O_NOATIME, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, UTIME_NOW, UTIME_OMIT,
};

use crate::suite::{Suite, all, changes, compare, file, new_file, tick, times};
use crate::sys::process::{run_as, user};
use crate::sys::{self, HERE, Res, Time};

/// Access and modification.
fn told(name: &str) -> Res<String> {
    times(name).map(|[access, change, _]| {
        format!("{}.{:09} {}.{:09}", access.0, access.1, change.0, change.1)
    })
}

fn set(name: &str, times: [Time; 2]) -> Res<()> {
    sys::utimensat(HERE, Some(name), Some(times), 0)
}

const NOW: Time = (0, UTIME_NOW);
const OMIT: Time = (0, UTIME_OMIT);

/// A call, and what it does with `name` or beside it.
type Act = fn() -> Res<()>;

const ACTS: [(&str, Act); 28] = [
    ("read", || {
        sys::read(sys::open("name", O_RDONLY, 0)?.raw(), 1).map(|_| ())
    }),
    ("read-of-nothing", || {
        sys::read(sys::open("name", O_RDONLY, 0)?.raw(), 0).map(|_| ())
    }),
    ("read-without-atime", || {
        sys::read(sys::open("name", O_RDONLY | O_NOATIME, 0)?.raw(), 1).map(|_| ())
    }),
    ("write", || {
        sys::write(sys::open("name", O_WRONLY, 0)?.raw(), "x").map(|_| ())
    }),
    ("write-of-nothing", || {
        sys::write(sys::open("name", O_WRONLY, 0)?.raw(), "").map(|_| ())
    }),
    ("open", || sys::open("name", O_RDWR, 0).map(|_| ())),
    ("open-and-truncate", || {
        sys::open("name", O_WRONLY | O_TRUNC, 0).map(|_| ())
    }),
    ("truncate-shorter", || sys::truncate("name", 3)),
    ("truncate-longer", || sys::truncate("name", 9)),
    ("truncate-to-the-same", || sys::truncate("name", 7)),
    ("ftruncate-to-the-same", || {
        sys::ftruncate(sys::open("name", O_WRONLY, 0)?.raw(), 7)
    }),
    ("fallocate", || {
        sys::fallocate(sys::open("name", O_WRONLY, 0)?.raw(), 0, 0, 100)
    }),
    ("chmod", || sys::chmod("name", 0o600)),
    ("chmod-to-the-same", || sys::chmod("name", 0o644)),
    ("chown", || sys::chown("name", 1, 1)),
    ("chown-to-nobody", || sys::chown("name", -1, -1)),
    ("link", || sys::link("name", "twin")),
    ("rename", || {
        sys::rename("name", "moved", 0)?;
        sys::rename("moved", "name", 0)
    }),
    ("unlink-of-another-name", || {
        sys::link("name", "twin")?;
        tick();
        sys::unlink("twin")
    }),
    ("setxattr", || sys::setxattr("name", "user.x", "1", 0)),
    ("stat", || sys::stat("name").map(|_| ())),
    ("access", || sys::access("name", libc::R_OK, 0)),
    ("fsync", || sys::fsync(sys::open("name", O_RDWR, 0)?.raw())),
    ("utimensat-both-omitted", || set("name", [OMIT, OMIT])),
    ("utimensat-access-now", || set("name", [NOW, OMIT])),
    ("utimensat-modification-now", || set("name", [OMIT, NOW])),
    ("utimensat-now", || {
        sys::utimensat(HERE, Some("name"), None, 0)
    }),
    ("mapped-write", || {
        let open = sys::open("name", O_RDWR, 0)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = sys::memory::Map::new(open.raw(), 4096, access, libc::MAP_SHARED, 0)?;
        map.set(0, b"x");
        map.sync(libc::MS_SYNC)
    }),
];

/// What changes a directory's times.
const IN_DIRECTORY: [(&str, Act); 12] = [
    ("creation", || new_file("d/new").map(|_| ())),
    ("mkdir", || sys::mkdir("d/new", 0o755)),
    ("symlink", || sys::symlink("x", "d/new")),
    ("mknod", || sys::mknod("d/new", libc::S_IFIFO | 0o644, 0)),
    ("link", || sys::link("d/name", "d/new")),
    ("unlink", || sys::unlink("d/name")),
    ("rename", || sys::rename("d/name", "d/new", 0)),
    ("rename-out", || sys::rename("d/name", "new", 0)),
    ("failed-creation", || sys::mkdir("d/name", 0o755).or(Ok(()))),
    ("write-to-a-file", || {
        sys::write(sys::open("d/name", O_WRONLY, 0)?.raw(), "x").map(|_| ())
    }),
    ("chmod-of-a-file", || sys::chmod("d/name", 0o600)),
    ("lookup", || sys::lstat("d/missing").map(|_| ()).or(Ok(()))),
];

pub(super) fn run(suite: &mut Suite) {
    for (name, act) in ACTS {
        suite.check(format!("changed-by-{name}"), || {
            file("name")?;
            changes("name", act).map(|changed| all![changed])
        });
    }
    for (name, act) in IN_DIRECTORY {
        suite.check(format!("of-a-directory-changed-by-{name}"), || {
            sys::mkdir("d", 0o755)?;
            file("d/name")?;
            changes("d", act)
        });
    }
    suite.check("of-a-new-file", || {
        let open = new_file("file")?;
        let [access, change, status] = times("file")?;
        Ok(all![
            sys::fstat(open.raw()).is_ok(),
            access == change,
            change == status
        ])
    });
    suite.check("written-then-looked-at-by-both", || {
        let open = new_file("file")?;
        tick();
        sys::write(open.raw(), "x")?;
        let first = times("file")?;
        let second = times("file")?;
        sys::fsync(open.raw())?;
        Ok(all![
            compare(first, second),
            compare(second, times("file")?)
        ])
    });
    suite.check("written-then-set", || {
        let open = new_file("file")?;
        sys::write(open.raw(), "x")?;
        set("file", [(5, 6), (7, 8)])?;
        let before = told("file");
        sys::fsync(open.raw())?;
        drop(open);
        Ok(all![before, told("file")])
    });
    values(suite);
    permissions(suite);
    extended(suite);
}

fn values(suite: &mut Suite) {
    suite.check("values-come-back", || {
        file("file")?;
        let mut results = Vec::new();
        for time in [
            (0, 0),
            (1, 999_999_999),
            (-1, 0),
            (-1, 500_000_000),
            (-2_147_483_648, 0),
            (2_147_483_647, 1),
            (2_147_483_648, 0),
            (4_294_967_295, 7),
            (4_294_967_296, 7),
            (9_999_999_999, 123_456_789),
            (15_032_385_535, 0),
            (1 << 40, 0),
            (i64::MAX, 0),
            (i64::MIN, 0),
        ] {
            results.push(all![set("file", [time, (1, 2)]), told("file")]);
        }
        Ok(results.join(", "))
    });
    suite.check("values-wrong", || {
        file("file")?;
        Ok(all![
            set("file", [(0, 1_000_000_000), (0, 0)]),
            set("file", [(0, -1), (0, 0)]),
            set("missing", [(0, 0), (0, 0)]),
            set("missing", [OMIT, OMIT]),
            sys::utimensat(HERE, Some("file"), None, 0x1),
            sys::utimensat(9999, None, None, 0),
        ])
    });
    suite.check("one-is-omitted", || {
        file("file")?;
        set("file", [(10, 1), (20, 2)])?;
        set("file", [(30, 3), OMIT])?;
        let first = told("file");
        set("file", [OMIT, (40, 4)])?;
        Ok(all![first, told("file")])
    });
    suite.check("of-a-link", || {
        file("file")?;
        sys::symlink("file", "link")?;
        set("file", [(1, 1), (2, 2)])?;
        let times = Some([(10, 0), (20, 0)]);
        Ok(all![
            sys::utimensat(HERE, Some("link"), times, AT_SYMLINK_NOFOLLOW),
            told("link"),
            told("file"),
            sys::utimensat(HERE, Some("link"), times, 0),
            told("file"),
        ])
    });
    suite.check("of-a-directory-and-others", || {
        sys::mkdir("d", 0o755)?;
        sys::mknod("pipe", libc::S_IFIFO | 0o644, 0)?;
        sys::mknod("socket", libc::S_IFSOCK | 0o644, 0)?;
        let mut results = Vec::new();
        for name in ["d", "pipe", "socket"] {
            results.push(all![set(name, [(1, 2), (3, 4)]), told(name)]);
        }
        Ok(results.join(" "))
    });
    suite.check("by-descriptor", || {
        file("file")?;
        let open = sys::open("file", O_RDONLY, 0)?;
        let reference = sys::open("file", libc::O_PATH, 0)?;
        Ok(all![
            sys::utimensat(open.raw(), None, Some([(1, 2), (3, 4)]), 0),
            told("file"),
            sys::utimensat(reference.raw(), None, Some([(1, 2), (3, 4)]), 0),
            sys::utimensat(
                reference.raw(),
                Some(""),
                Some([(5, 6), (7, 8)]),
                libc::AT_EMPTY_PATH
            ),
            told("file"),
        ])
    });
    suite.check("kept-by-rename-and-link", || {
        file("file")?;
        set("file", [(1, 2), (3, 4)])?;
        sys::link("file", "twin")?;
        sys::rename("file", "moved", 0)?;
        Ok(all![told("twin"), told("moved")])
    });
}

fn permissions(suite: &mut Suite) {
    for (name, uid, mode) in [
        ("owner", 1000, 0o400),
        ("writer", 1001, 0o666),
        ("other", 1001, 0o644),
        ("root", 0, 0o000),
    ] {
        suite.check(format!("set-by-{name}"), || {
            file("file")?;
            sys::chown("file", 1000, 1000)?;
            sys::chmod("file", mode)?;
            Ok(run_as(user(uid), || {
                all![
                    set("file", [(1, 2), (3, 4)]),
                    set("file", [NOW, NOW]),
                    set("file", [OMIT, NOW]),
                    set("file", [OMIT, OMIT]),
                    sys::utimensat(HERE, Some("file"), None, 0),
                ]
            }))
        });
    }
}

fn extended(suite: &mut Suite) {
    for kind in ["file", "directory", "link-to-file", "pipe", "null-device"] {
        suite.check(format!("statx-of-{kind}"), || {
            let name = super::open::make(kind)?;
            let status = sys::statx(
                name,
                AT_SYMLINK_NOFOLLOW,
                libc::STATX_BASIC_STATS | libc::STATX_BTIME,
            )?;
            let basic = status.stx_mask & libc::STATX_BASIC_STATS;
            let size = if kind == "directory" {
                0
            } else {
                status.stx_size
            };
            Ok(all![
                basic,
                status.stx_mask & libc::STATX_BTIME != 0,
                status.stx_nlink,
                crate::suite::mode_text(status.stx_mode.into()),
                size,
                status.stx_blksize,
                status.stx_rdev_major,
                status.stx_rdev_minor,
            ])
        });
    }
    suite.check("birth-stays", || {
        file("file")?;
        let birth = || {
            sys::statx("file", 0, libc::STATX_BTIME)
                .map(|status| (status.stx_btime.tv_sec, status.stx_btime.tv_nsec))
        };
        let before = birth()?;
        tick();
        sys::chmod("file", 0o600)?;
        sys::truncate("file", 1)?;
        set("file", [(1, 1), (1, 1)])?;
        sys::rename("file", "moved", 0)?;
        sys::rename("moved", "file", 0)?;
        Ok(all![before == birth()?, before.0 > 1_000_000_000])
    });
    suite.check("statx-flags", || {
        file("file")?;
        let ask = |flags, mask| sys::statx("file", flags, mask).map(|_| ());
        Ok(all![
            ask(libc::AT_STATX_FORCE_SYNC, libc::STATX_SIZE),
            ask(libc::AT_STATX_DONT_SYNC, libc::STATX_SIZE),
            ask(
                libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC,
                libc::STATX_SIZE
            ),
            ask(0, 0x8000_0000),
            ask(0x1, 0),
            sys::statx("", 0, 0).map(|_| ()),
            sys::statx("", libc::AT_EMPTY_PATH, 0).map(|_| ()),
        ])
    });
    suite.check("statx-attributes", || {
        file("file")?;
        let status = sys::statx("file", 0, libc::STATX_BASIC_STATS)?;
        Ok(all![status.stx_attributes.to_string()])
    });
}
