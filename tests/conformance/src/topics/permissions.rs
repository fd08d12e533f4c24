//! access(2), open(2) and changes as several users.

use libc::{AT_EACCESS, F_OK, O_DIRECTORY, O_RDONLY, O_RDWR, O_WRONLY, R_OK, W_OK, X_OK};

use crate::suite::{Suite, all, file, listing, look};
use crate::sys;
use crate::sys::process::{self, User, run_as, user};

const WHO: [(&str, User); 6] = [
    ("root", user(0)),
    (
        "owner",
        User {
            uid: 1000,
            gid: 9,
            groups: &[],
        },
    ),
    (
        "group",
        User {
            uid: 1001,
            gid: 77,
            groups: &[],
        },
    ),
    (
        "supplementary",
        User {
            uid: 1001,
            gid: 9,
            groups: &[5, 77, 6],
        },
    ),
    ("other", user(1001)),
    (
        "owner-in-group",
        User {
            uid: 1000,
            gid: 77,
            groups: &[77],
        },
    ),
];

const MODES: [u32; 9] = [
    0o000, 0o400, 0o040, 0o004, 0o700, 0o070, 0o007, 0o077, 0o555,
];

pub(super) fn run(suite: &mut Suite) {
    for (name, who) in WHO {
        suite.check(format!("access-as-{name}"), || {
            let mut results = Vec::new();
            for bits in MODES {
                let path = format!("{bits:o}");
                file(&path)?;
                sys::chown(&path, 1000, 77)?;
                sys::chmod(&path, bits)?;
                results.push(run_as(who, || {
                    [F_OK, R_OK, W_OK, X_OK, R_OK | W_OK, R_OK | X_OK]
                        .map(|wanted| all![sys::access(&path, wanted, AT_EACCESS)])
                        .join(" ")
                }));
            }
            Ok(results.join(", "))
        });
        suite.check(format!("open-as-{name}"), || {
            let mut results = Vec::new();
            for bits in MODES {
                let path = format!("{bits:o}");
                file(&path)?;
                sys::chown(&path, 1000, 77)?;
                sys::chmod(&path, bits)?;
                results.push(run_as(who, || {
                    all![
                        sys::open(&path, O_RDONLY, 0),
                        sys::open(&path, O_WRONLY, 0),
                        sys::open(&path, O_RDWR, 0),
                        sys::truncate(&path, 1),
                    ]
                }));
            }
            Ok(results.join(", "))
        });
        suite.check(format!("directory-as-{name}"), || {
            let mut results = Vec::new();
            for bits in MODES {
                let path = format!("{bits:o}");
                sys::mkdir(&path, 0o755)?;
                file(format!("{path}/file"))?;
                sys::chown(&path, 1000, 77)?;
                sys::chmod(&path, bits)?;
                results.push(run_as(who, || {
                    all![
                        listing(&path),
                        look(format!("{path}/file")),
                        look(format!("{path}/missing")),
                        sys::open(&path, O_RDONLY | O_DIRECTORY, 0),
                        sys::mkdir(format!("{path}/new"), 0o755),
                        sys::unlink(format!("{path}/file")),
                    ]
                }));
            }
            Ok(results.join(", "))
        });
    }
    suite.check("root-without-its-capabilities", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        sys::chmod("file", 0o600)?;
        // CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_CHOWN.
        Ok(process::apart(|| {
            all![
                process::drop_capability(1),
                sys::open("file", O_RDONLY, 0),
                sys::chmod("file", 0o644),
                process::drop_capability(3),
                sys::chmod("file", 0o600),
                process::drop_capability(0),
                sys::chown("file", 0, 0),
                sys::mknod("node", libc::S_IFREG | 0o600, 0),
            ]
        }))
    });
    suite.check("real-and-effective-user", || {
        file("file")?;
        sys::chmod("file", 0o600)?;
        Ok(process::apart(|| {
            all![
                process::set_effective_user(1000),
                sys::access("file", R_OK, 0),
                sys::access("file", R_OK, AT_EACCESS),
                sys::open("file", O_RDONLY, 0),
                process::set_effective_user(0),
                sys::open("file", O_RDONLY, 0),
            ]
        }))
    });
    suite.check("device-by-an-ordinary-user", || {
        sys::chmod(".", 0o777)?;
        Ok(run_as(user(1000), || {
            all![
                sys::mknod("character", libc::S_IFCHR | 0o644, 0x103),
                sys::mknod("block", libc::S_IFBLK | 0o644, 0x700),
                sys::mknod("pipe", libc::S_IFIFO | 0o644, 0),
                sys::mknod("regular", libc::S_IFREG | 0o644, 0),
                sys::mknod("whiteout", libc::S_IFCHR, 0),
            ]
        }))
    });
    suite.check("open-file-after-permission-is-taken", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        Ok(run_as(user(1000), || {
            let open = sys::open("file", O_RDWR, 0);
            let raw = open.as_ref().map_or(-1, sys::Fd::raw);
            all![
                sys::chmod("file", 0),
                sys::write(raw, "more"),
                sys::pread(raw, 9, 0),
                sys::ftruncate(raw, 2),
                sys::fchmod(raw, 0o400),
                sys::open("file", O_WRONLY, 0),
            ]
        }))
    });
    suite.check("sticky-directory", || {
        sys::chmod(".", 0o1777)?;
        file("roots")?;
        sys::mkdir("rootd", 0o777)?;
        Ok(run_as(user(1000), || {
            all![
                file("mine"),
                sys::unlink("roots"),
                sys::rmdir("rootd"),
                sys::rename("roots", "stolen", 0),
                run_as(user(1001), || all![sys::unlink("mine")]),
                sys::unlink("mine"),
            ]
        }))
    });
    suite.check("executable-without-read", || {
        file("script")?;
        sys::chmod("script", 0o111)?;
        Ok(run_as(user(1000), || {
            all![
                sys::open("script", O_RDONLY, 0),
                sys::access("script", X_OK, 0)
            ]
        }))
    });
}
