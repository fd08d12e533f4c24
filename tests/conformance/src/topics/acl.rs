//! POSIX access lists, in the form that the kernel keeps as attributes.

use libc::{O_CREAT, O_RDONLY, O_RDWR};

use crate::suite::{Suite, all, file, mode};
use crate::sys::process::{User, run_as, user};
use crate::sys::{self, Res};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJECT: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJECT: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// An entry: tag, permissions, id.
type Entry = (u16, u16, u32);

const NOBODY: u32 = u32::MAX;

/// `struct posix_acl_xattr`: a version, then entries.
fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn list(user: u16, named: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    encode(&[
        (USER_OBJECT, user, NOBODY),
        (USER, named, 1000),
        (GROUP_OBJECT, group, NOBODY),
        (GROUP, named, 77),
        (MASK, mask, NOBODY),
        (OTHER, other, NOBODY),
    ])
}

fn get(name: &str, attribute: &str) -> Res<Vec<u8>> {
    sys::getxattr(name, attribute, 1024).map(|(_, value)| value)
}

pub(super) fn run(suite: &mut Suite) {
    suite.check("comes-back", || {
        file("file")?;
        let set = sys::setxattr("file", ACCESS, list(7, 6, 4, 6, 0), 0);
        Ok(all![set, get("file", ACCESS), mode("file")])
    });
    suite.check("minimal-is-the-mode", || {
        file("file")?;
        let minimal = encode(&[
            (USER_OBJECT, 6, NOBODY),
            (GROUP_OBJECT, 4, NOBODY),
            (OTHER, 0, NOBODY),
        ]);
        Ok(all![
            sys::setxattr("file", ACCESS, minimal, 0),
            get("file", ACCESS),
            mode("file")
        ])
    });
    suite.check("chmod-changes-the-mask", || {
        file("file")?;
        sys::setxattr("file", ACCESS, list(7, 6, 4, 6, 0), 0)?;
        Ok(all![
            sys::chmod("file", 0o715),
            get("file", ACCESS),
            mode("file")
        ])
    });
    suite.check("broken-lists", || {
        file("file")?;
        let twice = encode(&[
            (USER_OBJECT, 6, NOBODY),
            (USER_OBJECT, 6, NOBODY),
            (OTHER, 0, NOBODY),
        ]);
        let no_mask = encode(&[
            (USER_OBJECT, 6, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJECT, 4, NOBODY),
            (OTHER, 0, NOBODY),
        ]);
        Ok(all![
            sys::setxattr("file", ACCESS, twice, 0),
            sys::setxattr("file", ACCESS, no_mask, 0),
            sys::setxattr("file", ACCESS, "x", 0),
            sys::setxattr("file", ACCESS, [1, 0, 0, 0], 0),
            sys::setxattr("file", ACCESS, "", 0),
        ])
    });
    suite.check("default-of-a-file", || {
        file("file")?;
        Ok(all![
            sys::setxattr("file", DEFAULT, list(7, 6, 4, 6, 0), 0),
            get("file", DEFAULT)
        ])
    });
    suite.check("removal", || {
        file("file")?;
        sys::setxattr("file", ACCESS, list(7, 6, 4, 6, 0), 0)?;
        Ok(all![
            sys::removexattr("file", ACCESS),
            get("file", ACCESS),
            mode("file"),
            sys::removexattr("file", ACCESS),
        ])
    });
    suite.check("listed-among-attributes", || {
        file("file")?;
        sys::setxattr("file", ACCESS, list(7, 6, 4, 6, 0), 0)?;
        Ok(all![sys::listxattr("file", 1024).map(|(_, names)| names)])
    });
    for mask in [0o000, 0o022, 0o077] {
        suite.check(
            format!("default-takes-the-place-of-umask-{mask:03o}"),
            || {
                sys::mkdir("d", 0o755)?;
                sys::setxattr("d", DEFAULT, list(7, 6, 5, 7, 1), 0)?;
                sys::umask(mask);
                let made = all![
                    sys::open("d/file", O_CREAT | O_RDWR, 0o666),
                    sys::mkdir("d/directory", 0o777),
                    sys::mknod("d/pipe", libc::S_IFIFO | 0o666, 0),
                    sys::symlink("x", "d/link"),
                ];
                sys::umask(0o022);
                Ok(all![
                    made,
                    mode("d/file"),
                    get("d/file", ACCESS),
                    mode("d/directory"),
                    get("d/directory", ACCESS),
                    get("d/directory", DEFAULT),
                    mode("d/pipe"),
                ])
            },
        );
    }
    suite.check("default-and-a-nameless-file", || {
        sys::mkdir("d", 0o755)?;
        sys::setxattr("d", DEFAULT, list(7, 6, 5, 7, 1), 0)?;
        let open = sys::open("d", libc::O_TMPFILE | O_RDWR, 0o666)?;
        Ok(all![
            sys::fstat(open.raw()).map(|status| crate::suite::describe(&status))
        ])
    });
    let member = User {
        uid: 1001,
        gid: 1001,
        groups: &[77],
    };
    for (name, who) in [
        ("named-user", user(1000)),
        ("member-of-named-group", member),
        ("other", user(1001)),
    ] {
        for (mask_name, mask) in [("wide", 7), ("narrow", 4)] {
            suite.check(format!("{name}-with-a-{mask_name}-mask"), || {
                file("file")?;
                sys::setxattr("file", ACCESS, list(6, 6, 0, mask, 0), 0)?;
                Ok(run_as(who, || {
                    all![
                        sys::open("file", O_RDONLY, 0),
                        sys::open("file", O_RDWR, 0),
                        sys::access("file", libc::W_OK, 0),
                    ]
                }))
            });
        }
    }
    suite.check("set-by-the-owner-and-others", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        Ok(all![
            run_as(user(1001), || all![sys::setxattr(
                "file",
                ACCESS,
                list(7, 7, 7, 7, 7),
                0
            )]),
            run_as(user(1000), || all![sys::setxattr(
                "file",
                ACCESS,
                list(6, 4, 4, 4, 0),
                0
            )]),
            get("file", ACCESS),
        ])
    });
    suite.check("set-outside-of-the-group-clears-set-group-id", || {
        file("file")?;
        sys::chown("file", 1000, 77)?;
        sys::chmod("file", 0o2755)?;
        let set = run_as(user(1000), || {
            all![sys::setxattr("file", ACCESS, list(7, 5, 5, 5, 5), 0)]
        });
        Ok(all![set, mode("file")])
    });
    suite.check("of-a-link", || {
        sys::symlink("x", "link")?;
        Ok(all![sys::lsetxattr("link", ACCESS, list(7, 6, 4, 6, 0), 0)])
    });
}
