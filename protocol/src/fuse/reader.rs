//! The one way to look into a request's bytes.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::ffi::CStr;

use zerocopy::FromBytes;

use super::MAX_NAME;

/// What is left of a request.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

/// A name that can be one component of a path: no slash, neither `.` nor
/// `..`, 1 to 255 bytes of any other kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// The number that Linux would answer: `ENAMETOOLONG` or `EINVAL`.
    pub fn new(name: &'a CStr) -> Result<Self, i32> {
        let bytes = name.to_bytes();
        if bytes.len() > MAX_NAME {
            return Err(libc::ENAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(libc::EINVAL);
        }
        Ok(Self(name))
    }

    /// The name, ended by a zero.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name's bytes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

impl<'a> Reader<'a> {
    /// Over a whole request or what follows its header.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next structure, `None` if so much is not there.
    pub fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// The next string, up to its zero.
    pub fn string(&mut self) -> Option<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).ok()?;
        self.0 = self.0.get(string.to_bytes_with_nul().len()..)?;
        Some(string)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// All that is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_stops_at_the_end() {
        let mut reader = Reader::new(b"\x01\0\0\0name\0rest");
        assert_eq!(reader.take::<u32>(), Some(1));
        assert_eq!(reader.string(), Some(c"name"));
        assert_eq!(reader.take::<u64>(), None);
        assert_eq!(reader.string(), None);
        assert_eq!(reader.bytes(5), None);
        assert_eq!(reader.bytes(4), Some(&b"rest"[..]));
        assert!(reader.rest().is_empty());
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in [c"", c".", c"..", c"a/b", c"/", c"/etc/passwd"] {
            assert_eq!(Name::new(name), Err(libc::EINVAL), "{name:?}");
        }
        for name in [c"a", c"...", c"..a", c"\xff\n", c" "] {
            assert!(Name::new(name).is_ok(), "{name:?}");
        }
        let longest = std::ffi::CString::new(vec![b'x'; 255]).unwrap();
        assert!(Name::new(&longest).is_ok());
        let longer = std::ffi::CString::new(vec![b'x'; 256]).unwrap();
        assert_eq!(Name::new(&longer), Err(libc::ENAMETOOLONG));
    }
}
