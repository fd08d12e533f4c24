//! The terminal that a person sits at.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use protocol::oci::ConsoleSize;

/// The terminal in raw mode; dropping this puts it back.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts the terminal at standard input into raw mode, so that keys such
    /// as Ctrl-C reach the program as bytes.
    pub(crate) fn enter() -> io::Result<Self> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; there is nothing else to do about it.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal at any standard stream.
pub(crate) fn size() -> Option<ConsoleSize> {
    let stdin = io::stdin();
    let stdout = io::stdout();
    let stderr = io::stderr();
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(|stream| sys::window_size(stream).ok())
        .map(|size| ConsoleSize {
            height: size.ws_row,
            width: size.ws_col,
        })
}

mod sys {
    //! The terminal's window size, an ioctl without a safe wrapper.

    use std::os::fd::{AsRawFd, BorrowedFd};

    nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, libc::winsize);

    pub(super) fn window_size(terminal: BorrowedFd<'_>) -> nix::Result<libc::winsize> {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCGWINSZ writes one winsize, and `size` is one, live and
        // writable; the descriptor is borrowed for the call.
        unsafe { tiocgwinsz(terminal.as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }
}
