//! Pipes, sockets, devices and programs in the tree.

use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;

use libc::{
    O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG,
    S_IFSOCK,
};

use crate::errno::Errno;
use crate::suite::{Suite, all, file, file_with, look};
use crate::sys::process::{self, apart, run_as, user};
use crate::sys::{self, Res};

/// An error of the standard library's as the kernel's.
fn plain<T>(result: std::io::Result<T>) -> Res<T> {
    result.map_err(|error| Errno(error.raw_os_error().unwrap_or(0)))
}

pub(super) fn run(suite: &mut Suite) {
    nodes(suite);
    pipes(suite);
    sockets(suite);
    programs(suite);
}

fn nodes(suite: &mut Suite) {
    for (name, kind) in [
        ("pipe", S_IFIFO),
        ("socket", S_IFSOCK),
        ("regular", S_IFREG),
        ("nothing", 0),
        ("directory", S_IFDIR),
        ("link", S_IFLNK),
        ("unknown", 0o150_000),
    ] {
        suite.check(format!("mknod-{name}"), || {
            Ok(all![
                sys::mknod("node", kind | 0o4755, 0),
                look("node"),
                sys::mknod("node", kind | 0o644, 0),
            ])
        });
    }
    for (name, kind, device) in [
        ("null", S_IFCHR, 0x103),
        ("whiteout", S_IFCHR, 0),
        ("large", S_IFCHR, 0x7ff0_03ff),
        ("block", S_IFBLK, 0x700),
    ] {
        suite.check(format!("mknod-{name}-device"), || {
            let made = sys::mknod("node", kind | 0o600, device);
            let number = sys::lstat("node").map(|status| status.st_rdev);
            Ok(all![made, look("node"), number])
        });
    }
    suite.check("null-device-is-used", || {
        sys::mknod("null", S_IFCHR | 0o666, 0x103)?;
        let open = sys::open("null", O_RDWR, 0)?;
        Ok(all![
            sys::write(open.raw(), "text"),
            sys::read(open.raw(), 9)
        ])
    });
    suite.check("device-without-a-driver", || {
        sys::mknod("node", S_IFCHR | 0o666, 0xee00)?;
        Ok(all![sys::open("node", O_RDONLY, 0)])
    });
}

fn pipes(suite: &mut Suite) {
    suite.check("pipe-carries-bytes", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        let read = sys::open("pipe", O_RDONLY | O_NONBLOCK, 0)?;
        let write = sys::open("pipe", O_WRONLY | O_NONBLOCK, 0)?;
        let empty = sys::read(read.raw(), 9);
        Ok(all![
            empty,
            sys::write(write.raw(), "text"),
            sys::read(read.raw(), 9),
            look("pipe")
        ])
    });
    suite.check("pipe-between-processes", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        let child = process::start(|| {
            process::alarm(60);
            all![sys::open("pipe", O_WRONLY, 0).and_then(|pipe| sys::write(pipe.raw(), "hello"))]
        })?;
        let read = sys::open("pipe", O_RDONLY, 0)?;
        let first = sys::read(read.raw(), 9);
        let wrote = child.result();
        Ok(all![first, wrote, sys::read(read.raw(), 9)])
    });
    suite.check("pipe-without-readers", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        Ok(all![
            sys::open("pipe", O_WRONLY | O_NONBLOCK, 0),
            sys::open("pipe", O_RDWR, 0)
        ])
    });
    suite.check("pipe-by-two-names", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        sys::link("pipe", "twin")?;
        let read = sys::open("pipe", O_RDONLY | O_NONBLOCK, 0)?;
        let write = sys::open("twin", O_WRONLY | O_NONBLOCK, 0)?;
        Ok(all![sys::write(write.raw(), "x"), sys::read(read.raw(), 1)])
    });
    suite.check("pipe-has-no-position", || {
        sys::mknod("pipe", S_IFIFO | 0o644, 0)?;
        let open = sys::open("pipe", O_RDWR, 0)?;
        Ok(all![
            sys::lseek(open.raw(), 0, libc::SEEK_SET),
            sys::pread(open.raw(), 1, 0),
            sys::ftruncate(open.raw(), 0),
            sys::fsync(open.raw()),
        ])
    });
}

fn sockets(suite: &mut Suite) {
    suite.check("socket-carries-bytes", || {
        let listener = plain(UnixListener::bind("socket"))?;
        let client = apart(|| {
            use std::io::Write;
            let sent =
                UnixStream::connect("socket").and_then(|mut stream| stream.write_all(b"hello"));
            all![plain(sent)]
        });
        let (mut stream, _) = plain(listener.accept())?;
        let mut text = String::new();
        plain(std::io::Read::read_to_string(&mut stream, &mut text))?;
        Ok(all![client, text, look("socket")])
    });
    suite.check("socket-in-use-left-and-moved", || {
        let listener = plain(UnixListener::bind("socket"))?;
        let connect = |name| all![plain(UnixStream::connect(name)).map(|_| ())];
        let again = plain(UnixListener::bind("socket")).map(|_| ());
        sys::rename("socket", "moved", 0)?;
        let moved = connect("moved");
        let old = connect("socket");
        drop(listener);
        Ok(all![
            again,
            moved,
            old,
            connect("moved"),
            sys::open("moved", O_RDWR, 0)
        ])
    });
    suite.check("socket-by-users", || {
        let _listener = plain(UnixListener::bind("socket"))?;
        let connect = || all![plain(UnixStream::connect("socket")).map(|_| ())];
        sys::chmod("socket", 0o600)?;
        let closed = run_as(user(1000), connect);
        sys::chmod("socket", 0o666)?;
        Ok(all![closed, run_as(user(1000), connect)])
    });
    suite.check("connect-to-what-is-no-socket", || {
        file("file")?;
        let connect = |name| all![plain(UnixStream::connect(name)).map(|_| ())];
        Ok(all![connect("file"), connect("missing")])
    });
}

fn programs(suite: &mut Suite) {
    suite.check("program-runs", || {
        copy_self("program")?;
        // Without arguments it says how it is used and fails.
        Ok(all![apart(|| {
            quiet();
            all![process::exec("program")]
        })])
    });
    suite.check("program-runs-by-descriptor", || {
        copy_self("program")?;
        let open = sys::open("program", O_RDONLY, 0)?;
        Ok(apart(|| {
            quiet();
            all![process::exec_descriptor(open.raw())]
        }))
    });
    suite.check("program-that-is-written-to", || {
        copy_self("program")?;
        let _open = sys::open("program", O_WRONLY, 0)?;
        Ok(apart(|| {
            quiet();
            all![process::exec("program")]
        }))
    });
    suite.check("program-errors", || {
        file_with("text", b"no program", 0o755)?;
        file_with("closed", b"#!/bin/true\n", 0o644)?;
        file_with("empty", b"", 0o755)?;
        sys::mkdir("directory", 0o755)?;
        sys::symlink("loop", "loop")?;
        Ok(apart(|| {
            all![
                process::exec("text"),
                process::exec("closed"),
                process::exec("empty"),
                process::exec("directory"),
                process::exec("missing"),
                process::exec("text/x"),
                process::exec("loop"),
            ]
        }))
    });
    suite.check("running-program-refuses-writes", || {
        let path = sys::readlink("/proc/self/exe")?;
        Ok(all![sys::open(&path, O_WRONLY, 0), sys::truncate(&path, 0)])
    });
}

/// Copies this program.
fn copy_self(name: &str) -> Res<()> {
    let from = sys::open("/proc/self/exe", O_RDONLY, 0)?;
    let to = sys::open(name, libc::O_CREAT | libc::O_EXCL | O_WRONLY, 0o755)?;
    loop {
        let bytes = sys::read(from.raw(), 1 << 20)?;
        if bytes.is_empty() {
            return Ok(());
        }
        sys::write(to.raw(), bytes)?;
    }
}

/// Closes standard error: what the copy says there is not the test's.
fn quiet() {
    let _ = sys::close(2);
}
