//! Errors by name, so that a difference can be read.

use std::fmt;

/// An error of the kernel's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// That of the last call.
    pub(crate) fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

macro_rules! names {
    ($($name:ident)*) => {
        fn name(number: i32) -> Option<&'static str> {
            match number {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

names! {
    E2BIG EACCES EAGAIN EBADF EBUSY ECONNREFUSED EDEADLK EDQUOT EEXIST EFAULT EFBIG EINTR EINVAL
    EIO EISDIR ELOOP EMFILE EMLINK ENAMETOOLONG ENFILE ENODATA ENODEV ENOENT ENOEXEC ENOLCK ENOMEM
    ENOSPC ENOSYS ENOTDIR ENOTEMPTY ENOTTY ENXIO EOPNOTSUPP EOVERFLOW EPERM EPIPE ERANGE EROFS
    ESPIPE ESTALE ETXTBSY EXDEV EADDRINUSE ECANCELED EBADE EPROTO ENOTCONN ETIMEDOUT
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "E{}", self.0),
        }
    }
}
