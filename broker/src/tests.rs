//! A hostile guest's requests, as they come over a channel.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use protocol::broker::{Changed, DATA, DataIn, Policy};
use protocol::fuse::{
    ATTR_SUBMOUNT, EntryOut, ForgetIn, InHeader, LinkIn, MkdirIn, MknodIn, Opcode, OutHeader, ROOT,
    ReadIn, RenameIn, SetattrIn, fattr,
};
use rustix::fs::{Mode, OFlags, open};
use zerocopy::{FromBytes, IntoBytes};

use crate::answer::Answer;
use crate::device::Device;
use crate::serve::handle;

/// A device with one share, and its guest.
struct Guest {
    device: Device,
    directory: tempfile::TempDir,
    share: u64,
}

impl Guest {
    fn new(policy: Policy, most_nodes: usize) -> Self {
        // Where the broker's process is: descriptors have names there.
        std::env::set_current_dir("/proc/self/fd").unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("share")).unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let share = open(directory.path().join("share"), flags, Mode::empty()).unwrap();
        let device = Device::new(policy, vec![share], most_nodes, 16).unwrap();
        let mut guest = Self {
            device,
            directory,
            share: 0,
        };
        guest.share = guest.look_up(ROOT, b"0").unwrap();
        guest
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("share").join(name)
    }

    /// Sends a request as it is; answers error and body, and what came beside.
    fn raw(&self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>, Option<OwnedFd>) {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode,
            unique: 7,
            nodeid: node,
            ..InHeader::default()
        };
        let message = [header.as_bytes(), body].concat();
        let mut answer = Answer::new();
        let Some((unique, result)) = handle(&self.device, &message, &mut answer) else {
            return (0, Vec::new(), None);
        };
        assert_eq!(unique, 7);
        let (result, beside) = match result {
            Ok(beside) => (Ok(()), beside),
            Err(errno) => (Err(errno), None),
        };
        let bytes = answer.finish(unique, result);
        let (header, body) = OutHeader::read_from_prefix(bytes).unwrap();
        (-header.error, body.into(), beside)
    }

    fn ask(&self, opcode: Opcode, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let (error, body, _) = self.raw(opcode as u32, node, body);
        (error, body)
    }

    fn look_up(&self, node: u64, name: &[u8]) -> Result<u64, i32> {
        let (error, body) = self.ask(Opcode::Lookup, node, &with_end(name));
        match EntryOut::read_from_prefix(&body) {
            Ok((entry, _)) if error == 0 && entry.nodeid != 0 => Ok(entry.nodeid),
            Ok(_) if error == 0 => Err(libc::ENOENT),
            _ => Err(error),
        }
    }

    fn data(&self, node: u64, write: bool) -> Result<OwnedFd, i32> {
        let wanted = DataIn {
            write: u32::from(write),
            padding: 0,
        };
        let (error, _, file) = self.raw(DATA, node, wanted.as_bytes());
        file.ok_or(error)
    }
}

fn with_end(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

#[test]
fn only_shares_on_another_file_system_are_announced() {
    let mut guest = Guest::new(Policy::Shared, 1000);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let here = guest.directory.path();
    // A file first: the device's own file system is that of a directory.
    let file = here.join("file");
    fs::write(&file, "").unwrap();
    let shares = [&file, here, elsewhere.path(), elsewhere.path()]
        .map(|path| open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap());
    guest.device = Device::new(Policy::Shared, shares.into(), 1000, 16).unwrap();
    let announced = [b"0", b"1", b"2", b"3"].map(|number| {
        let (error, body) = guest.ask(Opcode::Lookup, ROOT, &with_end(number));
        let (entry, _) = EntryOut::read_from_prefix(&body).unwrap();
        assert_eq!(error, 0);
        entry.attr.flags & ATTR_SUBMOUNT != 0
    });
    assert_eq!(announced, [false, false, true, true]);
    assert_eq!(guest.look_up(ROOT, b"4"), Err(libc::ENOENT));
    // The device's own file system is that of a share, and is synchronized.
    assert_eq!(guest.ask(Opcode::Syncfs, ROOT, &[0; 8]).0, 0);
}

#[test]
fn names_that_lead_out_of_a_directory_are_refused() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    for name in [
        &b".."[..],
        b".",
        b"",
        b"/",
        b"../secret",
        b"/etc/passwd",
        b"a/../../secret",
    ] {
        assert_eq!(
            guest.look_up(guest.share, name),
            Err(libc::EINVAL),
            "{name:?}"
        );
        let make = MknodIn {
            mode: libc::S_IFREG | 0o644,
            ..MknodIn::default()
        };
        let body = [make.as_bytes(), &with_end(name)].concat();
        assert_eq!(guest.ask(Opcode::Mknod, guest.share, &body).0, libc::EINVAL);
        let body = [MkdirIn::default().as_bytes(), &with_end(name)].concat();
        assert_eq!(guest.ask(Opcode::Mkdir, guest.share, &body).0, libc::EINVAL);
        assert_eq!(
            guest.ask(Opcode::Unlink, guest.share, &with_end(name)).0,
            libc::EINVAL
        );
        let rename = RenameIn {
            newdir: guest.share,
        };
        let body = [rename.as_bytes(), b"x\0", &with_end(name)].concat();
        assert_eq!(
            guest.ask(Opcode::Rename, guest.share, &body).0,
            libc::EINVAL
        );
        let body = [&with_end(name)[..], b"target\0"].concat();
        assert_eq!(
            guest.ask(Opcode::Symlink, guest.share, &body).0,
            libc::EINVAL
        );
    }
    assert_eq!(fs::read_dir(guest.path("")).unwrap().count(), 0);
}

#[test]
fn links_are_never_followed() {
    let guest = Guest::new(Policy::Shared, 1000);
    symlink("../secret", guest.path("upwards")).unwrap();
    symlink("/etc", guest.path("absolute")).unwrap();
    symlink("/proc/self/root", guest.path("magic")).unwrap();
    for name in [&b"upwards"[..], b"absolute", b"magic"] {
        let link = guest.look_up(guest.share, name).unwrap();
        assert_eq!(
            guest.look_up(link, b"passwd"),
            Err(libc::ENOTDIR),
            "{name:?}"
        );
        assert!(guest.data(link, false).is_err(), "{name:?}");
        assert!(guest.data(link, true).is_err(), "{name:?}");
        let (error, target) = guest.ask(Opcode::Readlink, link, &[]);
        assert_eq!(error, 0);
        assert!(!target.is_empty());
    }
}

#[test]
fn only_regular_files_are_opened() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    let pipe = [
        MknodIn {
            mode: libc::S_IFIFO | 0o666,
            ..MknodIn::default()
        }
        .as_bytes(),
        b"pipe\0",
    ]
    .concat();
    assert_eq!(guest.ask(Opcode::Mknod, guest.share, &pipe).0, 0);
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("socket")).unwrap();
    for name in [&b"pipe"[..], b"socket"] {
        let node = guest.look_up(guest.share, name).unwrap();
        assert_eq!(guest.data(node, false).unwrap_err(), libc::EINVAL);
        assert_eq!(guest.data(node, true).unwrap_err(), libc::EINVAL);
    }
    assert_eq!(guest.data(guest.share, false).unwrap_err(), libc::EISDIR);
    assert_eq!(guest.data(ROOT, false).unwrap_err(), libc::ESTALE);
}

#[test]
fn forged_nodes_are_stale() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    for node in [0, 3, 1000, u64::MAX] {
        assert_eq!(guest.look_up(node, b"x"), Err(libc::ESTALE), "{node}");
        assert_eq!(guest.data(node, false).unwrap_err(), libc::ESTALE);
        assert_eq!(guest.ask(Opcode::Getattr, node, &[0; 16]).0, libc::ESTALE);
        let link = LinkIn { oldnodeid: node };
        let body = [link.as_bytes(), b"x\0"].concat();
        assert_eq!(guest.ask(Opcode::Link, guest.share, &body).0, libc::ESTALE);
    }
    // A share cannot be forgotten.
    let forget = ForgetIn { nlookup: u64::MAX };
    guest.ask(Opcode::Forget, guest.share, forget.as_bytes());
    assert_eq!(guest.look_up(guest.share, b"x"), Err(libc::ENOENT));
}

#[test]
fn owner_that_cannot_be_is_refused() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    for valid in [fattr::UID, fattr::GID, fattr::UID | fattr::GID] {
        let change = SetattrIn {
            valid,
            uid: u32::MAX,
            gid: u32::MAX,
            ..SetattrIn::default()
        };
        let answer = guest.ask(Opcode::Setattr, guest.share, change.as_bytes());
        assert_eq!(answer.0, libc::EINVAL);
    }
}

#[test]
fn requests_of_any_length_are_answered() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    fs::write(guest.path("file"), "x").unwrap();
    let file = guest.look_up(guest.share, b"file").unwrap();
    for opcode in 0..64 {
        for length in 0..140 {
            for node in [ROOT, guest.share, file] {
                for filling in [0, 0xff] {
                    let _ = guest.raw(opcode, node, &vec![filling; length]);
                }
            }
        }
    }
    assert!(Path::new(&guest.directory.path().join("secret")).exists());
}

#[test]
fn a_guest_that_forgets_nothing_reaches_its_limit() {
    let guest = Guest::new(Policy::Exclusive, 50);
    for number in 0..100 {
        fs::write(guest.path(&number.to_string()), "x").unwrap();
    }
    let known: Vec<_> = (0..100)
        .map(|number: u32| guest.look_up(guest.share, number.to_string().as_bytes()))
        .collect();
    assert_eq!(known.iter().filter(|known| known.is_ok()).count(), 49);
    assert_eq!(known[99], Err(libc::ENFILE));
    for node in known.into_iter().flatten() {
        let forget = ForgetIn { nlookup: 1 };
        guest.ask(Opcode::Forget, node, forget.as_bytes());
    }
    assert!(guest.look_up(guest.share, b"99").is_ok());
}

#[test]
fn nodes_are_found_again_when_their_descriptors_were_closed() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    let mut nodes = Vec::new();
    for number in 0..100 {
        let name = number.to_string();
        fs::create_dir(guest.path(&name)).unwrap();
        fs::write(guest.path(&name).join("file"), &name).unwrap();
        let directory = guest.look_up(guest.share, name.as_bytes()).unwrap();
        nodes.push((name, guest.look_up(directory, b"file").unwrap()));
    }
    for (name, node) in nodes {
        let file = fs::File::from(guest.data(node, false).unwrap());
        assert_eq!(std::io::read_to_string(file).unwrap(), name);
    }
}

#[test]
fn removed_file_stays_until_it_is_forgotten() {
    let guest = Guest::new(Policy::Exclusive, 1000);
    fs::write(guest.path("file"), "still here").unwrap();
    let node = guest.look_up(guest.share, b"file").unwrap();
    assert_eq!(guest.ask(Opcode::Unlink, guest.share, b"file\0").0, 0);
    let file = fs::File::from(guest.data(node, false).unwrap());
    assert_eq!(std::io::read_to_string(file).unwrap(), "still here");
    let forget = ForgetIn { nlookup: 1 };
    guest.ask(Opcode::Forget, node, forget.as_bytes());
    assert_eq!(guest.data(node, false).unwrap_err(), libc::ESTALE);
}

#[test]
fn listing_gives_each_entry_once_whatever_the_room() {
    let guest = Guest::new(Policy::Exclusive, 10_000);
    for number in 0..500 {
        fs::write(guest.path(&format!("file-{number:03}")), "").unwrap();
    }
    for (opcode, room) in [(Opcode::Readdir, 100), (Opcode::Readdirplus, 4096)] {
        let mut offset = 0;
        let mut names = Vec::new();
        loop {
            let read = ReadIn {
                offset,
                size: room,
                ..ReadIn::default()
            };
            let (error, mut body) = guest.ask(opcode, guest.share, read.as_bytes());
            assert_eq!(error, 0);
            assert!(body.len() <= usize::try_from(room).unwrap());
            if body.is_empty() {
                break;
            }
            while !body.is_empty() {
                if opcode == Opcode::Readdirplus {
                    body.drain(..size_of::<EntryOut>());
                }
                let (entry, rest) = protocol::fuse::Dirent::read_from_prefix(&body).unwrap();
                let length = usize::try_from(entry.namelen).unwrap();
                names.push(rest[..length].to_vec());
                offset = entry.off;
                let whole = (24 + length).next_multiple_of(8);
                body.drain(..whole);
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 502, "{opcode:?}");
    }
}

#[test]
fn change_of_a_directory_tells_what_has_become_of_it() {
    let body = [MkdirIn::default().as_bytes(), b"new\0"].concat();
    for policy in [Policy::Exclusive, Policy::Shared] {
        let guest = Guest::new(policy, 1000);
        let entry = size_of::<EntryOut>();
        let (error, answer) = guest.ask(Opcode::Mkdir, guest.share, &body);
        assert_eq!(error, 0);
        let Ok((changed, _)) = Changed::read_from_prefix(&answer[entry..]) else {
            assert_eq!((policy, answer.len()), (Policy::Shared, entry));
            continue;
        };
        assert_eq!(policy, Policy::Exclusive);
        assert_eq!(answer.len(), entry + size_of::<Changed>());
        let (_, told) = guest.ask(Opcode::Getattr, guest.share, &[]);
        assert_eq!(changed.node, guest.share);
        assert_eq!(changed.attributes.as_bytes(), told);
        // A failure changes nothing and tells nothing.
        let (error, answer) = guest.ask(Opcode::Mkdir, guest.share, &body);
        assert_eq!((error, answer.len()), (libc::EEXIST, 0));
    }
}
