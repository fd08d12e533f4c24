//! A terminal with a person at it: a pseudo-terminal whose other side the
//! test reads and types on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};

/// The person's side of a terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    seen: Vec<u8>,
}

impl Terminal {
    /// A terminal of so many rows and columns.
    ///
    /// # Panics
    ///
    /// When the system has no terminal left.
    #[must_use]
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("open a terminal");
        Self {
            master: File::from(master),
            slave,
            seen: Vec::new(),
        }
    }

    /// Starts a command on it.
    ///
    /// # Panics
    ///
    /// When the command cannot be started.
    #[must_use]
    pub fn start(&self, command: &mut Command) -> Child {
        let side = || Stdio::from(self.slave.try_clone().expect("clone the terminal"));
        command
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("start the command")
    }

    /// Types.
    ///
    /// # Panics
    ///
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Changes the size, as a window manager would.
    ///
    /// # Panics
    ///
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        sys::set_window_size(self.master.as_raw_fd(), &size).expect("set the size");
    }

    /// The settings that programs see.
    ///
    /// # Panics
    ///
    /// When the terminal is gone.
    #[must_use]
    pub fn settings(&self) -> nix::sys::termios::Termios {
        nix::sys::termios::tcgetattr(&self.slave).expect("read the settings")
    }

    /// Reads until a text appears; returns all that was seen.
    ///
    /// # Panics
    ///
    /// When it does not appear within a minute.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if seen.contains(text) {
                self.seen.clear();
                return seen;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{text:?} did not appear in {seen:?}"
            );
            if !sys::readable(self.master.as_raw_fd(), Duration::from_secs(1)) {
                continue;
            }
            let mut buffer = [0; 4096];
            let count = self.master.read(&mut buffer).expect("read the terminal");
            self.seen.extend(&buffer[..count]);
        }
    }
}

mod sys {
    //! Two calls without a safe wrapper for a plain descriptor.

    use std::os::fd::RawFd;
    use std::time::Duration;

    use nix::pty::Winsize;

    nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, Winsize);

    pub(super) fn set_window_size(terminal: RawFd, size: &Winsize) -> nix::Result<()> {
        // SAFETY: TIOCSWINSZ reads one winsize, which `size` is.
        unsafe { tiocswinsz(terminal, size) }.map(drop)
    }

    pub(super) fn readable(terminal: RawFd, limit: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: terminal,
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd is passed, live and writable.
        unsafe { libc::poll(&raw mut poll, 1, limit) == 1 }
    }
}
