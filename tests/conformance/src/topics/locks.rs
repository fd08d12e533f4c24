//! fcntl(2) locks of processes and of open files, flock(2).

use libc::{
    F_GETLK, F_OFD_GETLK, F_OFD_SETLK, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK, LOCK_EX,
    LOCK_NB, LOCK_SH, LOCK_UN, O_RDONLY, O_RDWR, O_WRONLY, SEEK_CUR, SEEK_END, SEEK_SET,
};

use crate::suite::{Suite, all, file};
use crate::sys::process::{alarm, apart, catch, start, until_asleep};
use crate::sys::{self, Fd, Plain, Res};

fn lock(kind: i32, whence: i32, begin: i64, length: i64) -> libc::flock64 {
    let short = |number| libc::c_short::try_from(number).unwrap_or(0);
    libc::flock64 {
        l_type: short(kind),
        l_whence: short(whence),
        l_start: begin,
        l_len: length,
        ..libc::flock64::zeroed()
    }
}

fn set(file: &Fd, command: i32, kind: i32, begin: i64, length: i64) -> Res<()> {
    sys::fcntl_lock(
        file.raw(),
        command,
        &mut lock(kind, SEEK_SET, begin, length),
    )
}

/// What stands in a lock's way.
fn test(file: &Fd, command: i32, kind: i32, begin: i64, length: i64) -> Res<String> {
    let mut asked = lock(kind, SEEK_SET, begin, length);
    sys::fcntl_lock(file.raw(), command, &mut asked)?;
    Ok(match i32::from(asked.l_type) {
        F_UNLCK => "free".into(),
        kind => {
            let name = if kind == F_RDLCK { "read" } else { "write" };
            let owner = match asked.l_pid {
                -1 => "file",
                0 => "unknown",
                _ => "process",
            };
            format!("{name}:{}+{}:{owner}", asked.l_start, asked.l_len)
        }
    })
}

fn open() -> Res<Fd> {
    sys::open("file", O_RDWR, 0)
}

pub(super) fn run(suite: &mut Suite) {
    of_processes(suite);
    waiting(suite);
    of_files(suite);
    whole(suite);
}

fn of_processes(suite: &mut Suite) {
    for (held_name, held) in [("read", F_RDLCK), ("write", F_WRLCK)] {
        for (name, wanted) in [("read", F_RDLCK), ("write", F_WRLCK)] {
            suite.check(
                format!("{name}-against-{held_name}-of-another-process"),
                || {
                    file("file")?;
                    let own = open()?;
                    set(&own, F_SETLK, held, 10, 20)?;
                    Ok(apart(|| match open() {
                        Ok(other) => all![
                            set(&other, F_SETLK, wanted, 15, 1),
                            set(&other, F_SETLK, wanted, 0, 10),
                            set(&other, F_SETLK, wanted, 30, 0),
                            set(&other, F_SETLK, wanted, 0, 0),
                            test(&other, F_GETLK, wanted, 0, 0),
                            test(&other, F_GETLK, wanted, 100, 1),
                        ],
                        Err(errno) => errno.to_string(),
                    }))
                },
            );
        }
    }
    suite.check("own-locks-do-not-stand-in-the-way", || {
        file("file")?;
        let (one, two) = (open()?, open()?);
        Ok(all![
            set(&one, F_SETLK, F_WRLCK, 0, 0),
            set(&two, F_SETLK, F_WRLCK, 0, 0),
            test(&two, F_GETLK, F_WRLCK, 0, 0),
        ])
    });
    suite.check("split-and-merged", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 100)?;
        set(&own, F_SETLK, F_UNLCK, 40, 20)?;
        set(&own, F_SETLK, F_RDLCK, 80, 20)?;
        Ok(apart(|| match open() {
            Ok(other) => [0, 40, 50, 60, 80, 100]
                .map(|at| all![test(&other, F_GETLK, F_WRLCK, at, 1)])
                .join(" "),
            Err(errno) => errno.to_string(),
        }))
    });
    suite.check("released-when-any-descriptor-is-closed", || {
        file("file")?;
        let (one, two) = (open()?, open()?);
        set(&one, F_SETLK, F_WRLCK, 0, 0)?;
        drop(two);
        Ok(apart(|| {
            all![open().and_then(|other| set(&other, F_SETLK, F_WRLCK, 0, 0))]
        }))
    });
    suite.check("released-at-the-end-of-the-process", || {
        file("file")?;
        let child = apart(|| all![open().and_then(|own| set(&own, F_SETLK, F_WRLCK, 0, 0))]);
        Ok(all![child, set(&open()?, F_SETLK, F_WRLCK, 0, 0)])
    });
    suite.check("not-inherited", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 0)?;
        Ok(apart(|| {
            all![
                set(&own, F_SETLK, F_WRLCK, 0, 0),
                test(&own, F_GETLK, F_WRLCK, 0, 0)
            ]
        }))
    });
    suite.check("errors", || {
        file("file")?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let write = sys::open("file", O_WRONLY, 0)?;
        let reference = sys::open("file", libc::O_PATH, 0)?;
        Ok(all![
            set(&read, F_SETLK, F_WRLCK, 0, 1),
            set(&write, F_SETLK, F_RDLCK, 0, 1),
            set(&read, F_SETLK, 9, 0, 1),
            set(&read, F_SETLK, F_RDLCK, -1, 1),
            set(&read, F_SETLK, F_RDLCK, 10, -5),
            set(&read, F_SETLK, F_RDLCK, 1, -5),
            set(&read, F_SETLK, F_RDLCK, i64::MAX, 10),
            set(&reference, F_SETLK, F_RDLCK, 0, 1),
            sys::fcntl_lock(read.raw(), F_GETLK, &mut lock(F_UNLCK, SEEK_SET, 0, 0)),
            sys::fcntl_lock(read.raw(), F_SETLK, &mut lock(F_RDLCK, 9, 0, 0)),
        ])
    });
    suite.check("relative-to-position-and-end", || {
        file("file")?;
        let own = open()?;
        sys::lseek(own.raw(), 3, SEEK_SET)?;
        sys::fcntl_lock(own.raw(), F_SETLK, &mut lock(F_WRLCK, SEEK_CUR, 1, 1))?;
        sys::fcntl_lock(own.raw(), F_SETLK, &mut lock(F_WRLCK, SEEK_END, -1, 1))?;
        Ok(apart(|| match open() {
            Ok(other) => all![
                test(&other, F_GETLK, F_WRLCK, 0, 6),
                test(&other, F_GETLK, F_WRLCK, 5, 0)
            ],
            Err(errno) => errno.to_string(),
        }))
    });
}

fn waiting(suite: &mut Suite) {
    suite.check("waits-until-released", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 0)?;
        let child = start(|| {
            alarm(60);
            all![open().and_then(|other| set(&other, F_SETLKW, F_WRLCK, 0, 0))]
        })?;
        until_asleep(&child);
        set(&own, F_SETLK, F_UNLCK, 0, 0)?;
        Ok(child.result())
    });
    suite.check("waiting-is-interrupted", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 0)?;
        let child = start(|| {
            catch(libc::SIGALRM);
            alarm(2);
            all![open().and_then(|other| set(&other, F_SETLKW, F_WRLCK, 0, 0))]
        })?;
        Ok(child.result())
    });
    suite.check("flock-waits-until-released", || {
        file("file")?;
        let own = open()?;
        sys::flock(own.raw(), LOCK_EX)?;
        let child = start(|| {
            alarm(60);
            all![open().and_then(|other| sys::flock(other.raw(), LOCK_EX))]
        })?;
        until_asleep(&child);
        sys::flock(own.raw(), LOCK_UN)?;
        Ok(child.result())
    });
    suite.check("killed-while-waiting", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 0)?;
        let child = start(|| all![open().and_then(|other| set(&other, F_SETLKW, F_WRLCK, 0, 0))])?;
        until_asleep(&child);
        child.signal(libc::SIGKILL)?;
        let ended = child.result();
        set(&own, F_SETLK, F_UNLCK, 0, 0)?;
        Ok(all![
            ended,
            apart(|| all![open().and_then(|other| set(&other, F_SETLK, F_WRLCK, 0, 0))])
        ])
    });
    suite.check("deadlock", || {
        file("file")?;
        let own = open()?;
        set(&own, F_SETLK, F_WRLCK, 0, 1)?;
        let child = start(|| {
            alarm(60);
            let Ok(other) = open() else {
                return "no file".into();
            };
            all![
                set(&other, F_SETLK, F_WRLCK, 1, 1),
                set(&other, F_SETLKW, F_WRLCK, 0, 1)
            ]
        })?;
        // Until it has the one and waits for the other.
        for _ in 0..500 {
            if test(&own, F_GETLK, F_WRLCK, 1, 1)? != "free" {
                break;
            }
            crate::sys::process::pause(10);
        }
        until_asleep(&child);
        let mine = set(&own, F_SETLKW, F_WRLCK, 1, 1);
        set(&own, F_SETLK, F_UNLCK, 0, 1)?;
        Ok(all![mine, child.result()])
    });
}

fn of_files(suite: &mut Suite) {
    suite.check("open-files-exclude-each-other", || {
        file("file")?;
        let (one, two) = (open()?, open()?);
        Ok(all![
            set(&one, F_OFD_SETLK, F_WRLCK, 0, 10),
            set(&two, F_OFD_SETLK, F_WRLCK, 5, 10),
            set(&two, F_OFD_SETLK, F_WRLCK, 10, 10),
            test(&two, F_OFD_GETLK, F_WRLCK, 0, 10),
            set(&one, F_SETLK, F_WRLCK, 0, 1),
        ])
    });
    suite.check("open-file-keeps-its-lock-over-other-closes", || {
        file("file")?;
        let (one, two) = (open()?, open()?);
        set(&one, F_OFD_SETLK, F_WRLCK, 0, 0)?;
        drop(two);
        let three = open()?;
        let held = set(&three, F_OFD_SETLK, F_WRLCK, 0, 0);
        let twin = sys::dup(one.raw())?;
        drop(one);
        let still = set(&three, F_OFD_SETLK, F_WRLCK, 0, 0);
        drop(twin);
        Ok(all![held, still, set(&three, F_OFD_SETLK, F_WRLCK, 0, 0)])
    });
    suite.check("open-file-lock-is-inherited", || {
        file("file")?;
        let own = open()?;
        set(&own, F_OFD_SETLK, F_WRLCK, 0, 0)?;
        Ok(apart(|| {
            all![
                set(&own, F_OFD_SETLK, F_UNLCK, 0, 0),
                open().and_then(|other| set(&other, F_OFD_SETLK, F_WRLCK, 0, 0))
            ]
        }))
    });
}

fn whole(suite: &mut Suite) {
    for (held_name, held) in [("shared", LOCK_SH), ("exclusive", LOCK_EX)] {
        for (name, wanted) in [("shared", LOCK_SH), ("exclusive", LOCK_EX)] {
            suite.check(format!("flock-{name}-against-{held_name}"), || {
                file("file")?;
                let (one, two) = (open()?, open()?);
                sys::flock(one.raw(), held)?;
                Ok(all![
                    sys::flock(two.raw(), wanted | LOCK_NB),
                    sys::flock(one.raw(), LOCK_UN),
                    sys::flock(two.raw(), wanted | LOCK_NB),
                ])
            });
        }
    }
    suite.check("flock-upgrade-and-duplicates", || {
        file("file")?;
        let (one, two) = (open()?, open()?);
        let twin = sys::dup(one.raw())?;
        Ok(all![
            sys::flock(one.raw(), LOCK_SH),
            sys::flock(two.raw(), LOCK_SH),
            sys::flock(one.raw(), LOCK_EX | LOCK_NB),
            sys::flock(two.raw(), LOCK_UN),
            sys::flock(twin.raw(), LOCK_EX | LOCK_NB),
            sys::flock(two.raw(), LOCK_SH | LOCK_NB),
        ])
    });
    suite.check("flock-is-released-at-last-close", || {
        file("file")?;
        let one = open()?;
        let twin = sys::dup(one.raw())?;
        sys::flock(one.raw(), LOCK_EX)?;
        drop(one);
        let two = open()?;
        let held = sys::flock(two.raw(), LOCK_EX | LOCK_NB);
        drop(twin);
        Ok(all![held, sys::flock(two.raw(), LOCK_EX | LOCK_NB)])
    });
    suite.check("flock-and-record-locks-ignore-each-other", || {
        file("file")?;
        let own = open()?;
        sys::flock(own.raw(), LOCK_EX)?;
        Ok(apart(|| {
            all![open().and_then(|other| set(&other, F_SETLK, F_WRLCK, 0, 0))]
        }))
    });
    suite.check("flock-of-others", || {
        sys::mkdir("d", 0o755)?;
        file("file")?;
        let directory = sys::open("d", O_RDONLY, 0)?;
        let read = sys::open("file", O_RDONLY, 0)?;
        let reference = sys::open("file", libc::O_PATH, 0)?;
        Ok(all![
            sys::flock(directory.raw(), LOCK_EX | LOCK_NB),
            sys::flock(read.raw(), LOCK_EX | LOCK_NB),
            sys::flock(reference.raw(), LOCK_EX | LOCK_NB),
            sys::flock(read.raw(), 99),
            sys::flock(9999, LOCK_EX),
        ])
    });
    suite.check("lease", || {
        file("file")?;
        let read = sys::open("file", O_RDONLY, 0)?;
        Ok(all![sys::fcntl(read.raw(), libc::F_GETLEASE, 0)])
    });
}
