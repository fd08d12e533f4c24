//! A bundle as `runc spec` makes it, with Debian's root: it runs unchanged,
//! and installs a package as it does under runc.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::bundle::{Bundle, succeed};
use tests::pty::Terminal;
use tests::{DEBIAN, Outcome};

/// Where bundles are: on the machine's disk.
const DISK: &str = "/srv";

#[test]
fn bundle_of_runc_spec_runs_unchanged() {
    let bundle = Bundle::unchanged(DEBIAN, Path::new(DISK));
    // A shell on a terminal, in a root that cannot be written.
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(&mut bundle.command("nerite"));
    terminal.wait_for("# ");
    terminal.type_in("touch /new; echo \"<$(cat /etc/debian_version)>\" $(hostname) $(id -u) $$\n");
    let seen = terminal.wait_for(" 0 1\r\n");
    assert!(seen.contains("Read-only file system"), "{seen:?}");
    assert!(seen.contains("<13."), "{seen:?}");
    assert!(seen.contains("> runc 0 1"), "{seen:?}");
    terminal.type_in("exit 7\n");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(!bundle.path("new").exists());
}

/// A package with everything that a package's files can be.
fn package(directory: &Path) -> PathBuf {
    let tree = directory.join("tree");
    let file = |path: &str, content: &str, mode: u32| {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file(
        "DEBIAN/control",
        "Package: sea-snail\nVersion: 1.2-3\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n\
         Description: a test\n",
        0o644,
    );
    file("DEBIAN/conffiles", "/etc/sea-snail.conf\n", 0o644);
    file(
        "DEBIAN/postinst",
        "#!/bin/sh\nset -e\nmkdir -p /var/lib/sea-snail\necho \"$1\" > /var/lib/sea-snail/state\n\
         chown 1:65534 /var/lib/sea-snail/state\nchmod 2640 /var/lib/sea-snail/state\n\
         ln -sfn state /var/lib/sea-snail/link\ntouch -d '2003-04-05 06:07:08.9 UTC' /var/lib/sea-snail/state\n",
        0o755,
    );
    file("etc/sea-snail.conf", "shell = hard\n", 0o600);
    file("usr/bin/sea-snail", "#!/bin/sh\necho shell\n", 0o4755);
    file("usr/bin/sea-group", "#!/bin/sh\necho group\n", 0o2751);
    file("usr/share/sea-snail/data", &"data ".repeat(100_000), 0o444);
    file("usr/share/sea-snail/others", "for others", 0o640);
    file("var/spool/sea-snail/.keep", "", 0o400);
    let set = |path: &str, owner: u32, mode: u32| {
        let path = tree.join(path);
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set("usr/share/sea-snail/others", 12345, 0o640);
    set("var/spool/sea-snail", 65534, 0o3777);
    symlink("data", tree.join("usr/share/sea-snail/link")).unwrap();
    symlink("/nowhere", tree.join("usr/share/sea-snail/dangling")).unwrap();
    fs::hard_link(
        tree.join("usr/share/sea-snail/data"),
        tree.join("usr/share/sea-snail/twin"),
    )
    .unwrap();
    let mkfifo = ["-m", "0620"];
    succeed(
        Command::new("mkfifo")
            .args(mkfifo)
            .arg(tree.join("var/spool/sea-snail/pipe")),
    );
    // Times that nobody would have by chance.
    succeed(Command::new("find").arg(&tree).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "2001-02-03 04:05:06 UTC",
        "{}",
        "+",
    ]));
    let deb = directory.join("sea-snail.deb");
    succeed(Command::new("dpkg-deb").arg("--build").arg(&tree).arg(&deb));
    deb
}

/// A file as the host sees it; without times where they are of the
/// installation.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    content: Option<Vec<u8>>,
    modified: Option<(i64, i64)>,
}

fn look(path: &Path, root: &Path) -> Seen {
    let status = fs::symlink_metadata(path).unwrap();
    let kind = status.file_type();
    let name = path.strip_prefix(root).unwrap().to_str().unwrap();
    // What says when it was made: logs, and apt's and ldconfig's caches.
    let dated = name.starts_with("var/log/") || name.starts_with("var/cache/");
    let content = if kind.is_symlink() {
        Some(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_file() && !dated {
        Some(fs::read(path).unwrap())
    } else {
        None
    };
    // The package's own, before any clock of today.
    let old = status.mtime() < 1_100_000_000;
    Seen {
        mode: status.mode(),
        owner: (status.uid(), status.gid()),
        links: if kind.is_dir() { 0 } else { status.nlink() },
        content,
        modified: old.then(|| (status.mtime(), status.mtime_nsec())),
    }
}

/// Everything in a root.
fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                directories.push(path.clone());
            }
            found.insert(
                path.strip_prefix(root).unwrap().to_path_buf(),
                look(&path, root),
            );
        }
    }
    found
}

/// Installs the package in a fresh root; answers the root as it is afterwards.
///
/// What differs from `runc spec`: the program, no terminal, a root that can be
/// written, and Docker's capabilities, for apt gives up root to fetch and dpkg
/// sets owners.
fn install(runtime: &str, deb: &Path) -> (Outcome, BTreeMap<PathBuf, Seen>) {
    let args = ["apt-get", "install", "--yes", "./root/sea-snail.deb"];
    let bundle = Bundle::copy(DEBIAN, &args);
    let target = bundle.path("root/sea-snail.deb");
    succeed(Command::new("cp").arg("-p").arg(deb).arg(target));
    let outcome = bundle.run_by(runtime);
    let tree = tree(&bundle.path(""));
    (outcome, tree)
}

#[test]
fn apt_installs_what_runc_installs() {
    let directory = tempfile::tempdir_in(DISK).unwrap();
    let deb = package(directory.path());
    let (outcome, by_runc) = install("runc", &deb);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let (outcome, by_nerite) = install("nerite", &deb);
    assert_eq!(outcome.status, 0, "{outcome:?}");

    let status = by_nerite[Path::new("var/lib/dpkg/status")].content.as_ref();
    let status = String::from_utf8_lossy(status.unwrap());
    assert!(
        status.contains("Package: sea-snail\nStatus: install ok installed\n"),
        "{status}"
    );
    let program = &by_nerite[Path::new("usr/bin/sea-snail")];
    assert_eq!(program.mode & 0o7777, 0o4755);
    assert_eq!(program.modified, Some((981_173_106, 0)));
    let others = &by_nerite[Path::new("usr/share/sea-snail/others")];
    assert_eq!(others.owner, (12345, 12345));
    let state = &by_nerite[Path::new("var/lib/sea-snail/state")];
    assert_eq!(state.modified, Some((1_049_522_828, 900_000_000)));
    assert_eq!(by_nerite[Path::new("usr/share/sea-snail/twin")].links, 2);

    let differing: Vec<_> = by_runc
        .keys()
        .chain(by_nerite.keys())
        .filter(|path| by_runc.get(*path) != by_nerite.get(*path))
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
}
