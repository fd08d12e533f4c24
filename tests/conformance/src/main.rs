//! What a file system answers to each call, one line per check.
//!
//! ```text
//!  conformance DIRECTORY [NAME]
//!
//!  open/missing+O_RDONLY: ENOENT
//!  open/missing+O_CREAT: ok -0644,links=1,size=0
//! ```
//!
//! Nothing here says what is right: the integration test runs it twice, on a
//! host's directory and on the same through nerite, and the answers have to be
//! the same. So a result is what can be the same: names of errors, modes,
//! lengths and orders, never inode numbers or times. Linux itself is the
//! oracle, in the version and on the file system that one has.
//!
//! The program needs root with the capabilities that engines give, and becomes
//! other users for some checks. It is linked statically and uses no library:
//! it has to run in any root.

#![deny(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test says what failed by panicking"
)]

mod errno;
mod suite;
mod sys;
mod topics;

use std::io::Write;
use std::process::ExitCode;

use suite::Suite;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(directory) = arguments.next() else {
        let _ = writeln!(std::io::stderr(), "usage: conformance DIRECTORY [NAME]…");
        return ExitCode::FAILURE;
    };
    let only = arguments
        .map(|name| name.to_string_lossy().into())
        .collect();
    sys::umask(0o022);
    let begun = sys::chdir(directory.as_encoded_bytes()).and_then(|()| Suite::new(only));
    match begun {
        Ok(mut suite) => {
            topics::run(&mut suite);
            ExitCode::SUCCESS
        }
        Err(errno) => {
            let place = directory.display();
            let _ = writeln!(std::io::stderr(), "conformance: enter {place}: {errno}");
            ExitCode::FAILURE
        }
    }
}
