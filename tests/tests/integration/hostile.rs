//! A hostile guest at the directory device: no escape, no crash, bounded
//! memory, and after each attack an honest request still works.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use protocol::broker::{DATA, DataIn, Policy};
use protocol::fuse::{
    BatchForgetIn, CopyFileRangeIn, CreateIn, Dirent, EntryOut, FallocateIn, ForgetIn, ForgetOne,
    GetxattrIn, InHeader, LinkIn, LseekIn, MAX_DATA, MAX_REQUEST, MkdirIn, MknodIn, Opcode, OpenIn,
    ROOT, ReadIn, RemovemappingIn, RemovemappingOne, Rename2In, RenameIn, SetattrIn,
    SetupmappingIn, SetxattrIn, WriteIn, fattr,
};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use shim::broker::SharedTree;
use tests::raw::{IN_HEADER, RawGuest, Shared, WINDOW};
use zerocopy::{FromBytes, IntoBytes};

const SECRET: &str = "not for guests\n";
const CONTENT: &[u8] = b"what the guest may read\n";
/// Guest RAM, of which the broker takes its limits.
const MEMORY: u64 = 64 << 20;

/// A share with a file in it, and a secret beside it.
struct World {
    directory: tempfile::TempDir,
    secret: (u64, u64, i64, i64),
    shared: Shared,
    guest: RawGuest,
    share: u64,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self::with(policy, MEMORY, |_| {})
    }

    fn with(policy: Policy, memory: u64, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        let secret = directory.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::create_dir(&share).unwrap();
        fs::write(share.join("file"), CONTENT).unwrap();
        prepare(&share);
        let trees = [shared(policy, &share)];
        let (shared, mut guests) = Shared::start(&trees, memory);
        let mut guest = guests.remove(0);
        let share = guest.share(0);
        Self {
            secret: stamp(&secret),
            directory,
            shared,
            guest,
            share,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("share").join(name)
    }

    /// Nothing outside was touched, and an honest request works.
    fn check(&mut self) {
        let secret = self.directory.path().join("secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET);
        assert_eq!(stamp(&secret), self.secret, "the secret was touched");
        let mut names: Vec<_> = fs::read_dir(&self.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "secret", "share"]);
        let outside = fs::read_dir(self.directory.path().join("outside"));
        assert_eq!(outside.unwrap().count(), 0);
        let file = self.guest.look_up(self.share, b"file").unwrap().unwrap();
        let content = self.guest.read(file, 0, 4096).unwrap();
        assert_eq!(content, CONTENT);
    }
}

/// A clone of the mount at `path`, as an engine prepares it.
fn shared(policy: Policy, path: &Path) -> SharedTree {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree: OwnedFd = open_tree(CWD, path, flags).unwrap();
    SharedTree {
        follows: true,
        policy,
        tree,
        read_only: false,
    }
}

fn stamp(path: &Path) -> (u64, u64, i64, i64) {
    let data = fs::symlink_metadata(path).unwrap();
    (data.nlink(), data.size(), data.ctime(), data.ctime_nsec())
}

fn with_names(head: &[u8], names: &[&[u8]]) -> Vec<u8> {
    let mut body = head.to_vec();
    for name in names {
        body.extend_from_slice(name);
        body.push(0);
    }
    body
}

fn regular() -> MknodIn {
    MknodIn {
        mode: libc::S_IFREG | 0o644,
        ..MknodIn::default()
    }
}

#[test]
fn names_that_are_paths_are_refused_in_every_request() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::new(policy);
        let share = world.share;
        let long = [b'x'; 256];
        for name in [
            &b".."[..],
            b".",
            b"",
            b"/",
            b"../secret",
            b"../outside/new",
            b"/etc/passwd",
            b"file/..",
            b"x/../../secret",
            &long,
        ] {
            let guest = &mut world.guest;
            let wanted = if name.len() > 255 {
                libc::ENAMETOOLONG
            } else {
                libc::EINVAL
            };
            let mut refuse = |opcode, head: &[u8], names: &[&[u8]]| {
                let result = guest.ask(opcode, share, &with_names(head, names));
                let lacks = policy == Policy::Exclusive && opcode == Opcode::Create;
                let wanted = if lacks { libc::ENOSYS } else { wanted };
                assert_eq!(result, Err(wanted), "{opcode:?} {names:?}");
            };
            refuse(Opcode::Lookup, &[], &[name]);
            refuse(Opcode::Mknod, regular().as_bytes(), &[name]);
            refuse(Opcode::Mkdir, MkdirIn::default().as_bytes(), &[name]);
            refuse(Opcode::Create, CreateIn::default().as_bytes(), &[name]);
            refuse(Opcode::Symlink, &[], &[name, b"target"]);
            refuse(Opcode::Unlink, &[], &[name]);
            refuse(Opcode::Rmdir, &[], &[name]);
            let rename = RenameIn { newdir: share };
            refuse(Opcode::Rename, rename.as_bytes(), &[b"file", name]);
            refuse(Opcode::Rename, rename.as_bytes(), &[name, b"new"]);
            for flags in [0, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT] {
                let rename = Rename2In {
                    newdir: share,
                    flags,
                    padding: 0,
                };
                refuse(Opcode::Rename2, rename.as_bytes(), &[b"file", name]);
            }
            let link = LinkIn { oldnodeid: share };
            refuse(Opcode::Link, link.as_bytes(), &[name]);
        }
        // The root of the device shows shares and nothing else.
        assert_eq!(world.guest.look_up(ROOT, b".."), Err(libc::EINVAL));
        assert_eq!(world.guest.look_up(ROOT, b"1"), Ok(None));
        assert_eq!(world.guest.look_up(ROOT, b"-1"), Ok(None));
        let body = with_names(regular().as_bytes(), &[b"0"]);
        let made = world.guest.ask(Opcode::Mknod, ROOT, &body);
        assert_eq!(made, Err(libc::EROFS));
        world.check();
    }
}

/// Tries all that could follow a link.
fn follow(guest: &mut RawGuest, link: u64, what: &str) {
    for name in [&b"passwd"[..], b"secret", b"etc", b"x"] {
        assert_eq!(guest.look_up(link, name), Err(libc::ENOTDIR), "{what}");
        let body = with_names(regular().as_bytes(), &[name]);
        let made = guest.ask(Opcode::Mknod, link, &body);
        assert!(made.is_err(), "{what}: {made:?}");
    }
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH] {
        let open = OpenIn {
            flags: flags.cast_unsigned(),
            open_flags: 0,
        };
        let opened = guest.ask(Opcode::Open, link, open.as_bytes());
        assert!(opened.is_err(), "{what}: {opened:?}");
    }
    assert!(guest.read(link, 0, 10).is_err(), "{what}");
    let write = WriteIn {
        size: 1,
        ..WriteIn::default()
    };
    let body = [write.as_bytes(), b"x"].concat();
    assert!(guest.ask(Opcode::Write, link, &body).is_err(), "{what}");
    let read = ReadIn {
        size: 4096,
        ..ReadIn::default()
    };
    let listed = guest.ask(Opcode::Readdir, link, read.as_bytes());
    assert_eq!(listed, Err(libc::ENOTDIR), "{what}");
    for valid in [fattr::SIZE, fattr::MODE] {
        let change = SetattrIn {
            valid,
            mode: 0o666,
            ..SetattrIn::default()
        };
        // A link has no mode of its own; where the file system lets it have
        // one, it is the link's.
        let _ = guest.ask(Opcode::Setattr, link, change.as_bytes());
    }
    let body = with_names(
        GetxattrIn {
            size: 64,
            padding: 0,
        }
        .as_bytes(),
        &[b"user.a"],
    );
    assert!(guest.ask(Opcode::Getxattr, link, &body).is_err(), "{what}");
    let target = guest.ask(Opcode::Readlink, link, &[]).unwrap();
    assert!(!target.is_empty(), "{what}");
}

#[test]
fn links_are_read_and_never_followed() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::with(policy, MEMORY, |share| {
            symlink("../secret", share.join("upwards")).unwrap();
            symlink("..", share.join("parent")).unwrap();
            symlink("/etc", share.join("absolute")).unwrap();
            symlink("/proc/self/root", share.join("magic")).unwrap();
            symlink("/proc/self/fd", share.join("descriptors")).unwrap();
            symlink("loop", share.join("loop")).unwrap();
        });
        let share = world.share;
        for name in [
            "upwards",
            "parent",
            "absolute",
            "magic",
            "descriptors",
            "loop",
        ] {
            let link = world.guest.look_up(share, name.as_bytes());
            follow(&mut world.guest, link.unwrap().unwrap(), name);
        }
        // Links that the guest makes are no better.
        for target in [&b"/"[..], b"../secret", b"/proc/self/cwd"] {
            let body = with_names(&[], &[b"made", target]);
            world.guest.ask(Opcode::Symlink, share, &body).unwrap();
            let link = world.guest.look_up(share, b"made").unwrap().unwrap();
            follow(&mut world.guest, link, "made");
            let body = with_names(&[], &[b"made"]);
            world.guest.ask(Opcode::Unlink, share, &body).unwrap();
        }
        // Nor is a hard link to one, or one that takes a directory's place.
        let upwards = world.guest.look_up(share, b"upwards").unwrap().unwrap();
        let link = LinkIn { oldnodeid: upwards };
        let body = with_names(link.as_bytes(), &[b"twin"]);
        world.guest.ask(Opcode::Link, share, &body).unwrap();
        let twin = fs::symlink_metadata(world.path("twin")).unwrap();
        assert!(twin.is_symlink(), "{twin:?}");
        let body = with_names(MkdirIn::default().as_bytes(), &[b"directory"]);
        world.guest.ask(Opcode::Mkdir, share, &body).unwrap();
        let directory = world.guest.look_up(share, b"directory").unwrap().unwrap();
        fs::remove_dir(world.path("directory")).unwrap();
        symlink("../outside", world.path("directory")).unwrap();
        let body = with_names(regular().as_bytes(), &[b"escaped"]);
        let made = world.guest.ask(Opcode::Mknod, directory, &body);
        assert!(made.is_err(), "{made:?}");
        world.check();
    }
}

#[test]
fn magic_links_of_a_shared_proc_are_no_doors() {
    let trees = [shared(Policy::Shared, Path::new("/proc"))];
    let (_shared, mut guests) = Shared::start(&trees, MEMORY);
    let guest = &mut guests[0];
    let proc = guest.share(0);
    for process in ["1", &std::process::id().to_string()] {
        let process = guest.look_up(proc, process.as_bytes()).unwrap().unwrap();
        // Their targets are not even told without the right to look.
        for name in [&b"root"[..], b"cwd", b"exe"] {
            let Ok(Some(link)) = guest.look_up(process, name) else {
                continue;
            };
            assert_eq!(guest.look_up(link, b"etc"), Err(libc::ENOTDIR));
            assert!(guest.read(link, 0, 100).is_err());
            let open = OpenIn::default();
            assert!(guest.ask(Opcode::Open, link, open.as_bytes()).is_err());
        }
        let memory = guest.look_up(process, b"mem").unwrap().unwrap();
        assert!(guest.read(memory, 0, 100).is_err());
    }
    let version = guest.look_up(proc, b"version").unwrap().unwrap();
    assert!(guest.read(version, 0, 4096).unwrap().starts_with(b"Linux"));
}

#[test]
fn nothing_but_regular_files_is_opened() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::with(policy, MEMORY, |share| {
            let mode = Mode::from_bits_truncate(0o666);
            let make = |name: &str, kind, number| {
                mknod(&share.join(name), kind, mode, number).unwrap();
            };
            make("null", SFlag::S_IFCHR, makedev(1, 3));
            make("zero", SFlag::S_IFCHR, makedev(1, 5));
            make("disk", SFlag::S_IFBLK, makedev(254, 0));
            make("pipe", SFlag::S_IFIFO, 0);
            drop(UnixListener::bind(share.join("socket")).unwrap());
        });
        let share = world.share;
        let made = MknodIn {
            mode: libc::S_IFCHR | 0o666,
            rdev: 1 << 8 | 5,
            ..MknodIn::default()
        };
        let body = with_names(made.as_bytes(), &[b"made"]);
        world.guest.ask(Opcode::Mknod, share, &body).unwrap();
        for name in ["null", "zero", "disk", "pipe", "socket", "made"] {
            let guest = &mut world.guest;
            let node = guest.look_up(share, name.as_bytes()).unwrap().unwrap();
            for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
                let open = OpenIn {
                    flags: flags.cast_unsigned(),
                    open_flags: 0,
                };
                let wanted = match policy {
                    Policy::Exclusive => libc::ENOSYS,
                    Policy::Shared => libc::EINVAL,
                };
                let opened = guest.ask(Opcode::Open, node, open.as_bytes());
                assert_eq!(opened, Err(wanted), "{name}");
            }
            assert_eq!(guest.read(node, 0, 10), Err(libc::EINVAL), "{name}");
            let write = WriteIn {
                size: 1,
                ..WriteIn::default()
            };
            let body = [write.as_bytes(), b"x"].concat();
            let written = guest.ask(Opcode::Write, node, &body);
            assert_eq!(written, Err(libc::EINVAL), "{name}");
            let change = SetattrIn {
                valid: fattr::SIZE,
                ..SetattrIn::default()
            };
            let changed = guest.ask(Opcode::Setattr, node, change.as_bytes());
            assert_eq!(changed, Err(libc::EINVAL), "{name}");
            // The VMM's own request is the VMM's.
            let data = DataIn::default();
            let asked = guest.ask_number(DATA, node, data.as_bytes(), 4096);
            assert_eq!(asked, Err(libc::ENOSYS), "{name}");
        }
        world.check();
    }
}

#[test]
fn forged_nodes_are_stale() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::new(policy);
        let share = world.share;
        let guest = &mut world.guest;
        let file = guest.look_up(share, b"file").unwrap().unwrap();
        guest.read(file, 0, 10).unwrap();
        guest.tell(
            Opcode::Forget,
            file,
            ForgetIn { nlookup: u64::MAX }.as_bytes(),
        );
        // The share itself cannot be forgotten.
        guest.tell(
            Opcode::Forget,
            share,
            ForgetIn { nlookup: u64::MAX }.as_bytes(),
        );
        // Another queue: make sure that it has been heard.
        guest.restart();
        for node in [0, file, file + 1, 1 << 32, u64::MAX - 1, u64::MAX] {
            assert_eq!(guest.look_up(node, b"x"), Err(libc::ESTALE), "{node}");
            assert_eq!(guest.read(node, 0, 1), Err(libc::ESTALE), "{node}");
            for (opcode, body) in [
                (Opcode::Getattr, vec![0; 16]),
                (Opcode::Setattr, vec![0xff; 88]),
                (Opcode::Readlink, vec![]),
                (Opcode::Readdir, vec![0; 40]),
                (Opcode::Fsync, vec![0; 16]),
                (Opcode::Fallocate, vec![0; 32]),
                (Opcode::Lseek, vec![0; 24]),
                (Opcode::Getxattr, with_names(&[0; 8], &[b"user.a"])),
                (Opcode::Unlink, with_names(&[], &[b"file"])),
                (
                    Opcode::Mknod,
                    with_names(regular().as_bytes(), &[b"escaped"]),
                ),
            ] {
                let answer = guest.ask(opcode, node, &body);
                let expected = match (opcode, policy) {
                    // Where the guest collects writes nobody looks for holes.
                    (Opcode::Lseek, Policy::Exclusive) => libc::ENOSYS,
                    _ => libc::ESTALE,
                };
                assert_eq!(answer, Err(expected), "{opcode:?} of {node}");
            }
            let link = LinkIn { oldnodeid: node };
            let body = with_names(link.as_bytes(), &[b"linked"]);
            assert_eq!(guest.ask(Opcode::Link, share, &body), Err(libc::ESTALE));
            let rename = RenameIn { newdir: node };
            let body = with_names(rename.as_bytes(), &[b"file", b"moved"]);
            assert_eq!(guest.ask(Opcode::Rename, share, &body), Err(libc::ESTALE));
            let copy = CopyFileRangeIn {
                nodeid_out: node,
                len: 10,
                ..CopyFileRangeIn::default()
            };
            let copied = guest.ask(Opcode::CopyFileRange, share, copy.as_bytes());
            assert!(copied.is_err());
        }
        world.check();
    }
}

#[test]
fn every_length_is_answered() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::new(policy);
        let share = world.share;
        let file = world.guest.look_up(share, b"file").unwrap().unwrap();
        let guest = &mut world.guest;
        // Bodies shorter and longer than any structure, rooms around headers.
        for opcode in 0..64 {
            for length in (0..=100).chain([255, 256, 4096]) {
                for (node, filling, room) in [(ROOT, 0, 16), (share, 0xff, 24), (file, 0, 4096)] {
                    let body = vec![filling; length];
                    // A write of zeros to `file` is as right as any.
                    if node == file && opcode == Opcode::Write as u32 {
                        continue;
                    }
                    let _ = guest.ask_number(opcode, node, &body, room);
                }
            }
        }
        for room in 0..200 {
            let _ = guest.ask_number(Opcode::Getattr as u32, share, &[0; 16], room);
            let body = with_names(&[], &[b"file"]);
            let _ = guest.ask_number(Opcode::Lookup as u32, share, &body, room);
        }
        world.check();
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let mut world = World::new(Policy::Exclusive);
    let share = world.share;
    let guest = &mut world.guest;
    for told in [
        0,
        1,
        39,
        40,
        41,
        4096,
        MAX_REQUEST + 1,
        usize::try_from(u32::MAX).unwrap(),
    ] {
        let header = InHeader {
            len: u32::try_from(told).unwrap(),
            opcode: Opcode::Lookup as u32,
            nodeid: share,
            ..InHeader::default()
        };
        let answer = guest.send(1, &[header.as_bytes(), b"file\0"].concat(), 4096);
        assert_eq!(answer.len(), 16, "{told}");
    }
    for extensions in [1, 2, 100, u16::MAX] {
        let header = InHeader {
            len: u32::try_from(IN_HEADER + 5).unwrap(),
            opcode: Opcode::Lookup as u32,
            nodeid: share,
            total_extlen: extensions,
            ..InHeader::default()
        };
        let answer = guest.send(1, &[header.as_bytes(), b"file\0"].concat(), 4096);
        assert_eq!(answer.len(), 16, "{extensions}");
    }
    for length in 0..IN_HEADER {
        assert!(guest.send(1, &vec![0xff; length.max(1)], 4096).is_empty());
        assert!(guest.send(0, &vec![0xff; length.max(1)], 0).is_empty());
    }
    // As long as a request may be, and longer.
    for length in [
        MAX_REQUEST - IN_HEADER,
        MAX_REQUEST - IN_HEADER + 1,
        1 << 20,
    ] {
        let body = vec![b'x'; length];
        let answer = guest.ask(Opcode::Lookup, share, &body);
        assert_eq!(answer, Err(libc::EINVAL), "{length}");
    }
    let everything = BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    let ones = vec![ForgetOne::default(); 1 << 16];
    let body = [everything.as_bytes(), ones.as_bytes()].concat();
    guest.tell(Opcode::BatchForget, 0, &body);
    world.check();
}

#[test]
fn positions_and_sizes_at_every_boundary() {
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::new(policy);
        let share = world.share;
        let body = with_names(regular().as_bytes(), &[b"big"]);
        world.guest.ask(Opcode::Mknod, share, &body).unwrap();
        let guest = &mut world.guest;
        let file = guest.look_up(share, b"big").unwrap().unwrap();
        let positions = [
            0,
            1,
            4095,
            i64::MAX.cast_unsigned() - 1,
            i64::MAX.cast_unsigned(),
            1 << 63,
            u64::MAX,
        ];
        for position in positions {
            for size in [0, 1, MAX_DATA - 1, MAX_DATA, MAX_DATA + 1, u32::MAX] {
                let read = guest.read(file, position, size);
                let short = |data: &Vec<u8>| data.len() <= 4096;
                assert!(read.as_ref().is_ok_and(short) || read == Err(libc::EINVAL));
                let write = WriteIn {
                    offset: position,
                    size,
                    ..WriteIn::default()
                };
                // It brings less than it says, or nothing.
                let body = [write.as_bytes(), b"x"].concat();
                let written = guest.ask(Opcode::Write, file, &body);
                // Some file systems have files that end with the last position.
                let right = size <= 1;
                assert!(written.is_err() || right, "{size} at {position}");
            }
            let change = SetattrIn {
                valid: fattr::SIZE,
                ..SetattrIn::default()
            };
            guest.ask(Opcode::Setattr, file, change.as_bytes()).unwrap();
            for length in positions {
                let space = FallocateIn {
                    offset: position,
                    length,
                    // Takes no space: KEEP_SIZE, PUNCH_HOLE.
                    mode: 3,
                    ..FallocateIn::default()
                };
                let _ = guest.ask(Opcode::Fallocate, file, space.as_bytes());
                let copy = CopyFileRangeIn {
                    off_in: position,
                    nodeid_out: file,
                    off_out: length,
                    len: u64::MAX,
                    ..CopyFileRangeIn::default()
                };
                let _ = guest.ask(Opcode::CopyFileRange, file, copy.as_bytes());
            }
            for whence in [0, 3, 4, 5, u32::MAX] {
                let seek = LseekIn {
                    offset: position,
                    whence,
                    ..LseekIn::default()
                };
                let _ = guest.ask(Opcode::Lseek, file, seek.as_bytes());
            }
            for size in [0, 1, 23, 24, 4096, u32::MAX] {
                let read = ReadIn {
                    offset: position,
                    size,
                    ..ReadIn::default()
                };
                for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
                    let _ = guest.ask(opcode, share, read.as_bytes());
                }
            }
        }
        for size in [0, 1, 65_535, 65_536, 65_537, u32::MAX] {
            let set = SetxattrIn {
                size,
                ..SetxattrIn::default()
            };
            let body = with_names(set.as_bytes(), &[b"user.a", b"value"]);
            let stored = guest.ask(Opcode::Setxattr, file, &body);
            assert!(stored.is_ok() == (size <= 6), "{size}: {stored:?}");
            let room = GetxattrIn { size, padding: 0 };
            let body = with_names(room.as_bytes(), &[b"user.a"]);
            let _ = guest.ask(Opcode::Getxattr, file, &body);
            let _ = guest.ask(Opcode::Listxattr, file, room.as_bytes());
        }
        for length in [1, 4094, 4095, 4096, 4097, 70_000] {
            let body = with_names(&[], &[b"link", &vec![b'x'; length]]);
            let made = guest.ask(Opcode::Symlink, share, &body);
            let body = with_names(&[], &[b"link"]);
            let removed = guest.ask(Opcode::Unlink, share, &body);
            assert_eq!(made.is_ok(), length < 4096, "{length}: {made:?}");
            assert_eq!(made.is_ok(), removed.is_ok(), "{length}");
        }
        world.check();
    }
}

/// Names of `count` files.
fn numbered(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("file-{number:06}"))
}

/// Lists a directory with a lookup of each entry; answers how many there were
/// and how many of those the guest knows now.
fn list(guest: &mut RawGuest, directory: u64) -> (usize, usize) {
    let mut offset = 0;
    let (mut entries, mut known) = (0, 0);
    loop {
        let read = ReadIn {
            offset,
            size: 64 << 10,
            ..ReadIn::default()
        };
        let answer = guest.ask(Opcode::Readdirplus, directory, read.as_bytes());
        let answer = answer.unwrap();
        let mut rest = &answer[..];
        if rest.is_empty() {
            return (entries, known);
        }
        while !rest.is_empty() {
            let (entry, after) = EntryOut::read_from_prefix(rest).unwrap();
            let (dirent, after) = Dirent::read_from_prefix(after).unwrap();
            let name = usize::try_from(dirent.namelen).unwrap();
            rest = &after[name.next_multiple_of(8)..];
            offset = dirent.off;
            entries += 1;
            known += usize::from(entry.nodeid != 0);
        }
    }
}

#[test]
fn million_lookups_that_are_never_forgotten_stay_within_bounds() {
    const FILES: usize = 100_000;
    const NODES: u64 = 65_536;
    let mut world = World::with(Policy::Exclusive, NODES << 10, |share| {
        for name in numbered(FILES) {
            fs::write(share.join(name), "").unwrap();
        }
    });
    let share = world.share;
    let before = (world.shared.resident(), world.shared.descriptors());
    let mut known = 0_u64;
    for name in numbered(FILES) {
        match world.guest.look_up(share, name.as_bytes()) {
            Ok(Some(_)) => known += 1,
            Err(libc::ENFILE) => {}
            result => panic!("{name}: {result:?}"),
        }
    }
    // All but the share itself.
    assert_eq!(known, NODES - 1);
    let full = world.shared.resident();
    // A lookup in a listing is one as well, without its own way there and back.
    for _ in 1..10 {
        let (entries, known) = list(&mut world.guest, share);
        // With `file`, `.` and `..`.
        assert_eq!(entries, FILES + 3);
        assert_eq!(u64::try_from(known).unwrap(), NODES - 1);
    }
    // Names that lead nowhere cost nothing.
    for name in numbered(10_000) {
        let nowhere = format!("not-{name}");
        assert_eq!(world.guest.look_up(share, nowhere.as_bytes()), Ok(None));
    }
    let after = (world.shared.resident(), world.shared.descriptors());
    println!(
        "a million lookups, {NODES} nodes: memory {} -> {} KiB, descriptors {} -> {}",
        before.0 >> 10,
        after.0 >> 10,
        before.1,
        after.1
    );
    assert!(after.0 <= full + (2 << 20), "{} after {full}", after.0);
    // Half of what the guest's kernel would need for them.
    assert!(after.0 - before.0 <= NODES * 512);
    assert!(after.1 <= before.1 + 32);
    world.guest.greet();
    world.check();
}

#[test]
fn descriptors_have_an_end_that_hurts_the_guest_only() {
    const FILES: usize = 20_000;
    let mut world = World::new(Policy::Shared);
    let share = world.share;
    let guest = &mut world.guest;
    let before = world.shared.descriptors();
    // Removed, but not forgotten: each keeps its descriptor.
    let mut refused = 0;
    let mut nodes = Vec::new();
    for name in numbered(FILES) {
        let body = with_names(regular().as_bytes(), &[name.as_bytes()]);
        match guest.ask(Opcode::Mknod, share, &body) {
            Ok(answer) => nodes.push(u64::from_le_bytes(answer[..8].try_into().unwrap())),
            Err(_) => refused += 1,
        }
        let _ = guest.ask(Opcode::Unlink, share, &with_names(&[], &[name.as_bytes()]));
    }
    let most = world.shared.descriptors();
    println!("{FILES} files removed: descriptors {before} -> {most}, {refused} refused");
    assert!(refused > 0 && most <= 16_384);
    // Opened again and again, and never released.
    for _ in 0..1000 {
        let _ = guest.ask(Opcode::Open, share, OpenIn::default().as_bytes());
        let _ = guest.ask(Opcode::Open, nodes[0], OpenIn::default().as_bytes());
    }
    for node in nodes {
        guest.tell(Opcode::Forget, node, ForgetIn { nlookup: 1 }.as_bytes());
    }
    let freed = tests::eventually(Duration::from_secs(60), || {
        world.shared.descriptors() <= before + 64
    });
    assert!(freed, "{} descriptors", world.shared.descriptors());
    world.check();
}

/// A piece of the node's file into the window.
fn set_up(guest: &mut RawGuest, node: u64, wanted: SetupmappingIn) -> Result<(), i32> {
    let answer = guest.ask(Opcode::Setupmapping, node, wanted.as_bytes());
    answer.map(|body| assert!(body.is_empty()))
}

/// Units out of the window, as many as `count` says.
fn remove(guest: &mut RawGuest, count: u32, ones: &[RemovemappingOne]) -> Result<(), i32> {
    let head = RemovemappingIn { count };
    let body = [head.as_bytes(), ones.as_bytes()].concat();
    let answer = guest.ask(Opcode::Removemapping, ROOT, &body);
    answer.map(|body| assert!(body.is_empty()))
}

#[test]
fn windows_end_where_they_end() {
    const UNIT: u64 = 2 << 20;
    for policy in [Policy::Exclusive, Policy::Shared] {
        let mut world = World::with(policy, MEMORY, |share| {
            symlink("../secret", share.join("link")).unwrap();
            mknod(
                &share.join("pipe"),
                SFlag::S_IFIFO,
                Mode::from_bits_truncate(0o666),
                0,
            )
            .unwrap();
        });
        let share = world.share;
        let guest = &mut world.guest;
        let file = guest.look_up(share, b"file").unwrap().unwrap();
        let right = SetupmappingIn {
            len: UNIT,
            flags: 1,
            ..SetupmappingIn::default()
        };
        let edges = [
            0,
            1,
            4096,
            UNIT - 1,
            WINDOW - UNIT,
            WINDOW,
            WINDOW + UNIT,
            i64::MAX.cast_unsigned(),
            1 << 63,
            0_u64.wrapping_sub(UNIT),
            u64::MAX,
        ];
        for moffset in edges {
            for len in edges {
                let inside = len > 0
                    && moffset % UNIT == 0
                    && len % UNIT == 0
                    && moffset.checked_add(len).is_some_and(|end| end <= WINDOW);
                let wanted = SetupmappingIn {
                    moffset,
                    len,
                    ..right
                };
                let result = set_up(guest, file, wanted);
                assert_eq!(result.is_ok(), inside, "{wanted:?}: {result:?}");
                let one = RemovemappingOne { moffset, len };
                let result = remove(guest, 1, &[one]);
                assert_eq!(result.is_ok(), inside, "{one:?}: {result:?}");
                assert_eq!(remove(guest, 1, &[one]), Err(libc::EINVAL), "twice");
            }
        }
        for foffset in edges.into_iter().skip(1) {
            let wanted = SetupmappingIn { foffset, ..right };
            let result = set_up(guest, file, wanted);
            let real = foffset % UNIT == 0 && foffset < 1 << 62;
            assert_eq!(result.is_ok(), real, "{foffset}: {result:?}");
        }
        // Over what is there already, as Linux does to write.
        set_up(guest, file, SetupmappingIn { flags: 0, ..right }).unwrap();
        set_up(guest, file, right).unwrap();
        // More, or less, than it says.
        let one = RemovemappingOne {
            moffset: 0,
            len: UNIT,
        };
        assert_eq!(remove(guest, u32::MAX, &[one]), Err(libc::EINVAL));
        assert_eq!(remove(guest, 0, &[one]), Ok(()));
        for (name, error) in [("link", libc::EINVAL), ("pipe", libc::EINVAL)] {
            let node = guest.look_up(share, name.as_bytes()).unwrap().unwrap();
            assert_eq!(set_up(guest, node, right), Err(error), "{name}");
        }
        assert_eq!(set_up(guest, share, right), Err(libc::EISDIR));
        for node in [0, ROOT, file + 100, u64::MAX] {
            assert_eq!(set_up(guest, node, right), Err(libc::ESTALE), "{node}");
        }
        // A whole window of one file, cut short behind the guest's back.
        let all = SetupmappingIn {
            len: WINDOW,
            ..right
        };
        set_up(guest, file, all).unwrap();
        fs::write(world.path("file"), "").unwrap();
        fs::write(world.path("file"), CONTENT).unwrap();
        world.guest.restart();
        world.share = world.guest.share(0);
        world.check();
    }
}

#[test]
fn shortened_file_of_a_lower_layer_is_not_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("lower/file"), [7; 100]).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        path("lower").display(),
        path("upper").display(),
        path("work").display()
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(path("merged"))
        .status();
    assert!(mounted.unwrap().success());
    let trees = [shared(Policy::Exclusive, &path("merged"))];
    let unmounted = Command::new("umount").arg(path("merged")).status();
    assert!(unmounted.unwrap().success());
    let (_shared, mut guests) = Shared::start(&trees, MEMORY);
    let guest = &mut guests[0];
    let share = guest.share(0);
    let file = guest.look_up(share, b"file").unwrap().unwrap();
    assert_eq!(guest.read(file, 0, 4096).unwrap(), [7; 100]);
    for size in [10, 100] {
        let change = SetattrIn {
            valid: fattr::SIZE,
            size,
            ..SetattrIn::default()
        };
        guest.ask(Opcode::Setattr, file, change.as_bytes()).unwrap();
    }
    let wanted = [[7; 10].as_slice(), &[0; 90]].concat();
    assert_eq!(guest.read(file, 0, 4096).unwrap(), wanted);
}

#[test]
fn reset_in_the_middle_is_a_new_beginning() {
    let mut world = World::new(Policy::Exclusive);
    for _ in 0..200 {
        let file = world.guest.look_up(world.share, b"file").unwrap().unwrap();
        world.guest.read(file, 0, 10).unwrap();
        world.guest.restart();
        assert_eq!(world.guest.read(file, 0, 10), Err(libc::ESTALE));
        world.guest.share(0);
    }
    assert!(world.shared.descriptors() < 64);
    world.check();
}
