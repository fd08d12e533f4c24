//! Extended attributes: namespaces, sizes, flags, who may.

use libc::{O_RDONLY, O_WRONLY, XATTR_CREATE, XATTR_REPLACE};

use super::open::make;
use crate::suite::{Suite, all, file};
use crate::sys::process::{run_as, user};
use crate::sys::{self, Res};

fn get(name: &str, attribute: &str) -> Res<Vec<u8>> {
    sys::getxattr(name, attribute, 1000).map(|(_, value)| value)
}

/// The names that are the file's own, in order.
fn list(name: &str) -> Res<Vec<u8>> {
    let (_, names) = sys::listxattr(name, 65_536)?;
    let mut names: Vec<_> = names.split_inclusive(|&byte| byte == 0).collect();
    names.sort_unstable();
    Ok(names.concat())
}

/// A change of the file.
type Act = fn() -> Res<()>;

/// A file capability: version 2, CAP_NET_RAW effective and permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

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
    ] {
        suite.check(format!("user-attribute-of-{kind}"), || {
            let name = make(kind)?;
            Ok(all![
                sys::setxattr(name, "user.one", "first", 0),
                get(name, "user.one"),
                sys::setxattr(name, "user.two", "", 0),
                get(name, "user.two"),
                list(name),
                sys::removexattr(name, "user.one"),
                sys::removexattr(name, "user.one"),
                get(name, "user.one"),
                list(name),
            ])
        });
        suite.check(format!("user-attribute-of-{kind}-itself"), || {
            let name = make(kind)?;
            Ok(all![
                sys::lsetxattr(name, "user.one", "1", 0),
                sys::lgetxattr(name, "user.one")
            ])
        });
    }
    suite.check("flags", || {
        file("file")?;
        Ok(all![
            sys::setxattr("file", "user.x", "1", XATTR_REPLACE),
            sys::setxattr("file", "user.x", "1", XATTR_CREATE),
            sys::setxattr("file", "user.x", "2", XATTR_CREATE),
            sys::setxattr("file", "user.x", "3", XATTR_REPLACE),
            sys::setxattr("file", "user.x", "4", 64),
            sys::setxattr("file", "user.y", "5", XATTR_CREATE | XATTR_REPLACE),
            get("file", "user.x"),
        ])
    });
    suite.check("sizes-asked-for", || {
        file("file")?;
        sys::setxattr("file", "user.x", "0123456789", 0)?;
        let ask = |room| sys::getxattr("file", "user.x", room).map(|(size, _)| size);
        let list = |room| sys::listxattr("file", room).map(|(size, _)| size);
        Ok(all![
            ask(0),
            ask(9),
            ask(10),
            ask(65_536),
            ask(100_000),
            list(0),
            list(1),
            list(7),
            list(8)
        ])
    });
    suite.check("lengths-of-names", || {
        file("file")?;
        let name = |length: usize| format!("user.{}", "n".repeat(length - 5));
        Ok(all![
            sys::setxattr("file", name(255), "1", 0),
            get("file", &name(255)),
            sys::setxattr("file", name(256), "1", 0),
            sys::setxattr("file", "user.", "1", 0),
            sys::setxattr("file", "", "1", 0),
            get("file", ""),
            sys::setxattr("file", "name", "1", 0),
            sys::setxattr("file", "unknown.x", "1", 0),
            get("file", "unknown.x"),
        ])
    });
    suite.check("lengths-of-values", || {
        file("file")?;
        let mut results = Vec::new();
        for length in [1, 100, 1000, 2000, 3000, 3900] {
            results.push(all![
                sys::setxattr("file", "user.x", vec![b'v'; length], 0),
                sys::getxattr("file", "user.x", 65_536).map(|(size, _)| size),
            ]);
        }
        for length in [65_537, 100_000] {
            results.push(all![sys::setxattr("file", "user.x", vec![b'v'; length], 0)]);
        }
        Ok(results.join(", "))
    });
    suite.check("value-of-64-kib", || {
        file("file")?;
        Ok(all![
            sys::setxattr("file", "user.x", vec![b'v'; 65_536], 0),
            sys::getxattr("file", "user.x", 65_536).map(|(size, _)| size),
        ])
    });
    suite.check("many", || {
        file("file")?;
        for number in 10..40 {
            sys::setxattr("file", format!("user.{number}"), "v", 0)?;
        }
        Ok(all![list("file")])
    });
    suite.check("any-bytes", || {
        file("file")?;
        let value: Vec<u8> = (0..=255).collect();
        sys::setxattr("file", b"user.\xff\x01", &value, 0)?;
        Ok(all![
            sys::getxattr("file", b"user.\xff\x01", 300)?.1 == value,
            list("file")
        ])
    });
    suite.check("by-descriptor", || {
        file("file")?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let reference = sys::open("file", libc::O_PATH, 0)?;
        Ok(all![
            sys::fsetxattr(read.raw(), "user.x", "1", 0),
            get("file", "user.x"),
            sys::fsetxattr(reference.raw(), "user.x", "1", 0),
            sys::fsetxattr(9999, "user.x", "1", 0),
        ])
    });
    suite.check("kept-by-rename-and-link-not-by-a-new-file", || {
        file("file")?;
        sys::setxattr("file", "user.x", "1", 0)?;
        sys::link("file", "twin")?;
        sys::rename("file", "moved", 0)?;
        file("file")?;
        Ok(all![
            get("twin", "user.x"),
            get("moved", "user.x"),
            get("file", "user.x")
        ])
    });
    privileges(suite);
}

fn privileges(suite: &mut Suite) {
    suite.check("user-attribute-by-users", || {
        file("file")?;
        sys::setxattr("file", "user.x", "1", 0)?;
        let act = || {
            all![
                get("file", "user.x"),
                sys::setxattr("file", "user.x", "2", 0),
                sys::removexattr("file", "user.x"),
                list("file"),
            ]
        };
        let stranger = run_as(user(1000), act);
        sys::chmod("file", 0o602)?;
        let writer = run_as(user(1000), act);
        Ok(all![stranger, writer])
    });
    suite.check("user-attribute-of-a-sticky-directory", || {
        sys::mkdir("d", 0o777)?;
        sys::chmod("d", 0o1777)?;
        Ok(run_as(user(1000), || {
            all![sys::setxattr("d", "user.x", "1", 0)]
        }))
    });
    suite.check("trusted-by-root", || {
        file("file")?;
        Ok(all![
            sys::setxattr("file", "trusted.x", "1", 0),
            get("file", "trusted.x"),
            sys::removexattr("file", "trusted.x"),
            list("file"),
        ])
    });
    suite.check("trusted-by-a-user", || {
        file("file")?;
        sys::chmod("file", 0o666)?;
        Ok(run_as(user(1000), || {
            all![
                sys::setxattr("file", "trusted.x", "1", 0),
                get("file", "trusted.x")
            ]
        }))
    });
    suite.check("security-by-root-and-a-user", || {
        file("file")?;
        sys::chown("file", 1000, 1000)?;
        Ok(all![
            run_as(user(1000), || all![sys::setxattr(
                "file",
                "security.x",
                "1",
                0
            )]),
            get("file", "security.x"),
            sys::setxattr("file", "security.capability", "short", 0),
        ])
    });
    suite.check("capability-comes-back", || {
        file("file")?;
        Ok(all![
            sys::setxattr("file", "security.capability", CAPABILITY, 0),
            get("file", "security.capability"),
            list("file"),
            run_as(user(1000), || all![sys::setxattr(
                "file",
                "security.capability",
                CAPABILITY,
                0
            )]),
            sys::removexattr("file", "security.capability"),
            get("file", "security.capability"),
        ])
    });
    let acts: [(&str, Act); 5] = [
        ("write", || {
            sys::write(sys::open("file", O_WRONLY, 0)?.raw(), "x").map(|_| ())
        }),
        ("truncate", || sys::truncate("file", 1)),
        ("chown", || sys::chown("file", 5, 5)),
        ("chmod", || sys::chmod("file", 0o755)),
        ("rename", || {
            sys::rename("file", "moved", 0).and_then(|()| sys::rename("moved", "file", 0))
        }),
    ];
    for (name, act) in acts {
        suite.check(format!("capability-after-{name}"), || {
            file("file")?;
            sys::setxattr("file", "security.capability", CAPABILITY, 0)?;
            Ok(all![
                act(),
                get("file", "security.capability").map(|value| value.len())
            ])
        });
    }
}
