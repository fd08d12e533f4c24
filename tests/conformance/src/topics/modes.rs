//! chmod(2), chown(2), umask, set-id bits: who may, and what is lost on the way.

use libc::{O_CREAT, O_RDWR, O_TRUNC, O_WRONLY};

use super::open::make;
use crate::suite::{Suite, all, file, file_with, mode, owner};
use crate::sys::process::{User, run_as, user};
use crate::sys::{self, Res};

/// Modes whose special bits a change may clear.
const SPECIAL: [u32; 7] = [0o4755, 0o2755, 0o6755, 0o2745, 0o6644, 0o4644, 0o1755];

/// A way to change a file, and its name.
type Act = fn(&str) -> Res<()>;

const ACTS: [(&str, Act); 10] = [
    ("write", |name| {
        let file = sys::open(name, O_WRONLY, 0)?;
        sys::write(file.raw(), "x").map(|_| ())
    }),
    ("write-of-nothing", |name| {
        let file = sys::open(name, O_WRONLY, 0)?;
        sys::write(file.raw(), "").map(|_| ())
    }),
    ("truncate", |name| sys::truncate(name, 3)),
    ("ftruncate", |name| {
        let file = sys::open(name, O_WRONLY, 0)?;
        sys::ftruncate(file.raw(), 3)
    }),
    ("open-and-truncate", |name| {
        sys::open(name, O_WRONLY | O_TRUNC, 0).map(|_| ())
    }),
    ("fallocate", |name| {
        let file = sys::open(name, O_WRONLY, 0)?;
        sys::fallocate(file.raw(), 0, 0, 8192)
    }),
    ("copy-file-range", |name| {
        let from = sys::open("source", libc::O_RDONLY, 0)?;
        let to = sys::open(name, O_WRONLY, 0)?;
        sys::copy_file_range((from.raw(), None), (to.raw(), None), 3, 0).map(|_| ())
    }),
    ("mapped-write", |name| {
        let file = sys::open(name, O_RDWR, 0)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = sys::memory::Map::new(file.raw(), 4096, access, libc::MAP_SHARED, 0)?;
        map.set(0, b"x");
        map.sync(libc::MS_SYNC)
    }),
    ("chown-to-the-same", |name| sys::chown(name, 1000, 1000)),
    ("chown-to-nobody-else", |name| sys::chown(name, -1, -1)),
];

pub(super) fn run(suite: &mut Suite) {
    for (act_name, act) in ACTS {
        for (who_name, who) in [("root", user(0)), ("owner", user(1000))] {
            suite.check(format!("set-id-after-{act_name}-by-{who_name}"), || {
                file_with("source", b"sourcesource", 0o644)?;
                let mut results = Vec::new();
                for special in SPECIAL {
                    let name = format!("{special:o}");
                    file_with(&name, b"content", 0o644)?;
                    sys::chown(&name, 1000, 1000)?;
                    sys::chmod(&name, special)?;
                    let done = run_as(who, || all![act(&name)]);
                    results.push(all![done, mode(&name)]);
                }
                Ok(results.join(", "))
            });
        }
        suite.check(format!("set-id-after-{act_name}-by-others"), || {
            file_with("source", b"sourcesource", 0o644)?;
            let mut results = Vec::new();
            for special in SPECIAL {
                let name = format!("{special:o}");
                file_with(&name, b"content", 0o644)?;
                sys::chmod(&name, special | 0o022)?;
                let done = run_as(user(1001), || all![act(&name)]);
                results.push(all![done, mode(&name)]);
            }
            Ok(results.join(", "))
        });
    }
    changes(suite);
    owners(suite);
    inheritance(suite);
}

fn changes(suite: &mut Suite) {
    for kind in [
        "missing",
        "file",
        "directory",
        "link-to-file",
        "dangling-link",
        "pipe",
        "socket",
        "null-device",
    ] {
        suite.check(format!("chmod-of-{kind}"), || {
            let name = make(kind)?;
            let mut results = Vec::new();
            for bits in [0o000, 0o777, 0o7777, 0o4711, 0o2070, 0o1000, 0o170_644] {
                results.push(all![sys::chmod(name, bits), mode(name)]);
            }
            Ok(results.join(" "))
        });
        suite.check(format!("chown-of-{kind}"), || {
            let name = make(kind)?;
            let mut results = Vec::new();
            for (uid, gid) in [
                (1, 2),
                (-1, 3),
                (4, -1),
                (-1, -1),
                (65_534, 65_535),
                (i32::MAX, 70_000),
            ] {
                results.push(all![
                    sys::chown(name, uid, gid),
                    sys::lchown(name, uid, gid),
                    owner(name)
                ]);
            }
            Ok(results.join(" "))
        });
    }
    suite.check("chmod-by-the-owner-and-others", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        let mut results = Vec::new();
        for uid in [1000, 1001, 0] {
            results.push(run_as(user(uid), || {
                all![sys::chmod("file", 0o640), mode("file")]
            }));
        }
        Ok(results.join(" "))
    });
    suite.check("chmod-set-group-id-outside-of-the-group", || {
        file("file")?;
        sys::chown("file", 1000, 77)?;
        let member = User {
            uid: 1000,
            gid: 1000,
            groups: &[77],
        };
        Ok(all![
            run_as(user(1000), || all![
                sys::chmod("file", 0o2755),
                mode("file")
            ]),
            run_as(member, || all![sys::chmod("file", 0o2755), mode("file")]),
        ])
    });
    suite.check("fchmod-through-a-read-only-descriptor", || {
        file("file")?;
        let open = sys::open("file", libc::O_RDONLY, 0)?;
        Ok(all![
            sys::fchmod(open.raw(), 0o4711),
            mode("file"),
            sys::fchmod(9999, 0o600)
        ])
    });
    suite.check("sticky-file-by-an-ordinary-owner", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        Ok(run_as(user(1000), || {
            all![sys::chmod("file", 0o1755), mode("file")]
        }))
    });
}

fn owners(suite: &mut Suite) {
    suite.check("chown-by-the-owner", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        let member = User {
            uid: 1000,
            gid: 1000,
            groups: &[77, 78],
        };
        Ok(run_as(member, || {
            all![
                sys::chown("file", 1001, -1),
                sys::chown("file", -1, 1001),
                sys::chown("file", -1, 77),
                owner("file"),
                sys::chown("file", 1000, 78),
                owner("file"),
                sys::chown("file", 0, 0),
                sys::chown("file", -1, -1),
            ]
        }))
    });
    suite.check("chown-by-others", || {
        file("file")?;
        Ok(run_as(user(1000), || {
            all![
                sys::chown("file", 1000, -1),
                sys::chown("file", -1, 1000),
                sys::chown("file", -1, -1)
            ]
        }))
    });
    suite.check("chgrp-by-the-owner-clears-set-ids", || {
        let mut results = Vec::new();
        let member = User {
            uid: 1000,
            gid: 1000,
            groups: &[77],
        };
        for special in SPECIAL {
            let name = format!("{special:o}");
            file(&name)?;
            sys::chown(&name, 1000, 1000)?;
            sys::chmod(&name, special)?;
            results.push(run_as(member, || {
                all![sys::chown(&name, -1, 77), mode(&name)]
            }));
        }
        Ok(results.join(", "))
    });
    suite.check("chown-of-a-directory-keeps-set-ids", || {
        sys::mkdir("d", 0o755)?;
        sys::chmod("d", 0o7755)?;
        Ok(all![sys::chown("d", 5, 6), owner("d")])
    });
    suite.check("fchown", || {
        file("file")?;
        let open = sys::open("file", libc::O_RDONLY, 0)?;
        Ok(all![
            sys::fchown(open.raw(), 11, 12),
            owner("file"),
            sys::fchown(9999, 1, 1)
        ])
    });
}

fn inheritance(suite: &mut Suite) {
    for mask in [0o000, 0o002, 0o022, 0o027, 0o077, 0o777] {
        suite.check(format!("umask-{mask:03o}"), || {
            sys::umask(mask);
            let made = [
                sys::open("file", O_CREAT | O_RDWR, 0o666).map(|_| ()),
                sys::open("program", O_CREAT | O_RDWR, 0o7777).map(|_| ()),
                sys::mkdir("directory", 0o777),
                sys::mknod("pipe", libc::S_IFIFO | 0o666, 0),
                sys::mknod("node", libc::S_IFREG | 0o666, 0),
            ];
            sys::umask(0o022);
            made.into_iter().collect::<Res<Vec<()>>>()?;
            Ok(all![
                mode("file"),
                mode("program"),
                mode("directory"),
                mode("pipe"),
                mode("node")
            ])
        });
    }
    let member = User {
        uid: 1000,
        gid: 1000,
        groups: &[77],
    };
    for (name, who) in [
        ("root", user(0)),
        ("member", member),
        ("stranger", user(1000)),
    ] {
        suite.check(format!("set-group-id-directory-used-by-{name}"), || {
            sys::mkdir("d", 0o777)?;
            sys::chown("d", 0, 77)?;
            sys::chmod("d", 0o2777)?;
            Ok(run_as(who, || {
                let made = all![
                    sys::mkdir("d/directory", 0o755),
                    sys::open("d/file", O_CREAT | O_RDWR, 0o644),
                    sys::open("d/program", O_CREAT | O_RDWR, 0o2755),
                    sys::open("d/plain", O_CREAT | O_RDWR, 0o2744),
                    sys::mknod("d/pipe", libc::S_IFIFO | 0o644, 0),
                    sys::symlink("x", "d/link"),
                    sys::mknod("d/node", libc::S_IFREG | 0o2755, 0),
                ];
                let owners = [
                    "directory",
                    "file",
                    "program",
                    "plain",
                    "pipe",
                    "link",
                    "node",
                ]
                .map(|name| all![owner(format!("d/{name}"))]);
                all![made, owners.join(" ")]
            }))
        });
    }
    suite.check("set-group-id-directory-left-behind", || {
        sys::mkdir("d", 0o755)?;
        sys::chown("d", 0, 77)?;
        sys::chmod("d", 0o2755)?;
        sys::mkdir("out", 0o755)?;
        file("file")?;
        sys::rename("out", "d/in", 0)?;
        sys::rename("file", "d/file", 0)?;
        Ok(all![owner("d/in"), owner("d/file")])
    });
}
