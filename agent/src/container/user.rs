//! Users and groups by name, from the container's own files.
//!
//! The forms and the rules are Docker's: `NAME|UID[:GROUP|GID]`. The files
//! are the container's work: they are opened inside its root only, must be
//! regular files, and are read up to a limit. No name service: its libraries
//! could not be linked statically, and would be the guest's, not the
//! container's.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

use protocol::oci;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::identity::Identity;
use crate::error::{Failure, Result};

/// Most bytes of a file that are looked at.
const MOST_BYTES: u64 = 1 << 20;

/// Resolves who a process is to be. `root` is the container's root.
pub(crate) fn resolve(root: BorrowedFd<'_>, process: &oci::Process) -> Result<Identity> {
    let user = &process.user;
    let named = user.username.as_deref().filter(|name| !name.is_empty());
    let needs_home = !process
        .env
        .iter()
        .any(|variable| variable.starts_with("HOME="));
    let passwd = if named.is_some() || needs_home {
        read(root, c"etc/passwd")
    } else {
        String::new()
    };
    let group = if named.is_some() {
        read(root, c"etc/group")
    } else {
        String::new()
    };
    let mut identity = match named {
        Some(name) => by_name(name, &passwd, &group)?,
        None => Identity {
            uid: user.uid,
            gid: user.gid,
            groups: user.additional_gids.clone(),
            home: None,
        },
    };
    if named.is_some() {
        identity.groups.extend(&user.additional_gids);
    }
    identity.home = needs_home.then(|| {
        entries(&passwd)
            .find(|entry| entry.uid == identity.uid)
            .map_or("/", |entry| entry.home)
            .to_owned()
    });
    Ok(identity)
}

/// A line of `/etc/passwd`.
struct Entry<'t> {
    name: &'t str,
    uid: u32,
    gid: u32,
    home: &'t str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Entry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Name, id and members of the groups in `/etc/group`.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn by_name(text: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let number = id(user);
    let entry = entries(passwd)
        .find(|entry| entry.name == user || number.is_some_and(|uid| entry.uid == uid));
    let mut identity = match (&entry, number) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            ..Identity::default()
        },
        (None, Some(uid)) => Identity {
            uid,
            ..Identity::default()
        },
        (None, None) => {
            return Err(Failure::argument(format!(
                "user {user:?} is not in the container's /etc/passwd"
            )));
        }
    };
    match wanted_group {
        Some(wanted) => {
            let named = groups(group)
                .find(|(name, ..)| *name == wanted)
                .map(|(_, gid, _)| gid);
            identity.gid = named.or_else(|| id(wanted)).ok_or_else(|| {
                Failure::argument(format!(
                    "group {wanted:?} is not in the container's /etc/group"
                ))
            })?;
        }
        // Without a group of its own choice, a user is in all of its groups.
        None => {
            if let Some(entry) = entry {
                identity.groups = groups(group)
                    .filter(|(.., members)| members.split(',').any(|name| name == entry.name))
                    .map(|(_, gid, _)| gid)
                    .collect();
            }
        }
    }
    Ok(identity)
}

/// A number that the kernel takes as an id; the highest means none.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

/// A file's text; empty if there is no such file, as in an image from scratch.
fn read(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> String {
    let mut bytes = Vec::new();
    if let Some(file) = open(root, path) {
        // Half a file is still better than none: it is the container's own.
        let _ = File::from(file).take(MOST_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn open(root: BorrowedFd<'_>, path: &std::ffi::CStr) -> Option<OwnedFd> {
    // Non-blocking, so that a FIFO in its place cannot stop the agent.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
    (kind == FileType::RegularFile).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbad line\n:x:9:9::/:\n\
        app:x:1000:100:App:/home/app:/bin/sh\n7:x:70:71::/seven:\nbroken:x:-1:2::/:\n";
    const GROUP: &str =
        "root:x:0:\nusers:x:100:\naudio:x:29:root,app\ndocker:x:999:app\nbad:x::app\n";

    fn name(text: &str) -> Result<Identity> {
        by_name(text, PASSWD, GROUP)
    }

    fn ids(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.into(),
            home: None,
        }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(name("app").unwrap(), ids(1000, 100, &[29, 999]));
        assert_eq!(name("1000").unwrap(), ids(1000, 100, &[29, 999]));
        assert_eq!(name("app:root").unwrap(), ids(1000, 0, &[]));
        assert_eq!(name("app:5").unwrap(), ids(1000, 5, &[]));
        assert_eq!(name("1234").unwrap(), ids(1234, 0, &[]));
        assert_eq!(name("1234:users").unwrap(), ids(1234, 100, &[]));
        assert_eq!(name("app:").unwrap(), ids(1000, 100, &[29, 999]));
        // A user called 7 comes before user number 7.
        assert_eq!(name("7").unwrap(), ids(70, 71, &[]));
    }

    #[test]
    fn unknown_names_are_told() {
        for (text, unknown) in [
            ("nobody", "\"nobody\""),
            ("app:nogroup", "\"nogroup\""),
            ("", "\"\""),
            ("-1", "\"-1\""),
        ] {
            let error = name(text).unwrap_err().to_string();
            assert!(error.contains(unknown), "{error}");
        }
    }

    #[test]
    fn files_are_read_inside_the_root_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "evil:x:0:0::/evil:\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(
            outside.path().join("passwd"),
            root.path().join("etc/passwd"),
        )
        .unwrap();
        let directory = File::open(root.path()).unwrap();
        let process = oci::Process::default();
        let identity = resolve(directory.as_fd(), &process).unwrap();
        assert_eq!(identity.home.as_deref(), Some("/"));
    }

    #[test]
    fn home_comes_from_passwd_unless_the_environment_has_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        let directory = File::open(root.path()).unwrap();
        let mut process = oci::Process::default();
        process.user.uid = 1000;
        let identity = resolve(directory.as_fd(), &process).unwrap();
        assert_eq!(identity.home.as_deref(), Some("/home/app"));
        process.env.push("HOME=/x".into());
        assert_eq!(resolve(directory.as_fd(), &process).unwrap().home, None);
    }
}
