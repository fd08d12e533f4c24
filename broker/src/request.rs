//! One request of the guest, its outer form checked.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use protocol::fuse::{EXT_GROUPS, ExtHeader, InHeader, Name, Reader};
use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::caller::Caller;
use crate::nodes::NodeId;

/// A request: header, body, extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: InHeader,
    body: Reader<'a>,
    extensions: &'a [u8],
}

impl<'a> Request<'a> {
    /// Splits a message; `None` if it is not as long as it says, which is no
    /// request that could be answered.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = InHeader::read_from_prefix(bytes).ok()?;
        if usize::try_from(header.len).ok()? != bytes.len() {
            return None;
        }
        let extensions = usize::from(header.total_extlen).checked_mul(8)?;
        let body = rest.len().checked_sub(extensions)?;
        let (body, extensions) = rest.split_at_checked(body)?;
        Some(Self {
            header,
            body: Reader::new(body),
            extensions,
        })
    }

    /// The node that it concerns.
    pub(crate) fn node(&self) -> NodeId {
        NodeId(self.header.nodeid)
    }

    /// The body's next structure.
    pub(crate) fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        self.body.take().ok_or(Errno::INVAL)
    }

    /// The body's next name.
    pub(crate) fn name(&mut self) -> Result<Name<'a>, Errno> {
        let name = self.body.string().ok_or(Errno::INVAL)?;
        Name::new(name).map_err(Errno::from_raw_os_error)
    }

    /// The body's next string, of any content.
    pub(crate) fn string(&mut self) -> Result<&'a std::ffi::CStr, Errno> {
        self.body.string().ok_or(Errno::INVAL)
    }

    /// The body's next `length` bytes.
    pub(crate) fn bytes(&mut self, length: u32) -> Result<&'a [u8], Errno> {
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        self.body.bytes(length).ok_or(Errno::INVAL)
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            uid: self.header.uid,
            gid: self.header.gid,
            group: self.group(),
        }
    }

    /// The supplementary group that the guest's kernel sends with requests
    /// that create: the parent directory's, if the caller is in it.
    fn group(&self) -> Option<u32> {
        let mut reader = Reader::new(self.extensions);
        while let Some(header) = reader.take::<ExtHeader>() {
            let length = usize::try_from(header.size).ok()?;
            let content = length.checked_sub(size_of::<ExtHeader>())?;
            let mut content = Reader::new(reader.bytes(content)?);
            if header.kind == EXT_GROUPS {
                let count: u32 = content.take()?;
                return (count > 0).then(|| content.take()).flatten();
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn request(body: &[u8], extensions: &[u8], lie: i32) -> Vec<u8> {
        let length = i32::try_from(40 + body.len() + extensions.len()).unwrap();
        let header = InHeader {
            len: u32::try_from(length + lie).unwrap(),
            total_extlen: u16::try_from(extensions.len() / 8).unwrap(),
            ..InHeader::default()
        };
        [header.as_bytes(), body, extensions].concat()
    }

    #[test]
    fn request_must_be_as_long_as_it_says() {
        assert!(Request::parse(&request(b"x\0", &[], 0)).is_some());
        assert!(Request::parse(&request(b"x\0", &[], 1)).is_none());
        assert!(Request::parse(&request(b"x\0", &[], -1)).is_none());
        assert!(Request::parse(&[0; 39]).is_none());
    }

    #[test]
    fn supplementary_group_is_found_at_the_end() {
        let groups = [16u32, EXT_GROUPS, 1, 77];
        let bytes = request(b"name\0", groups.as_bytes(), 0);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.caller().group, Some(77));
        for broken in [
            [7, EXT_GROUPS, 1, 77],
            [99, EXT_GROUPS, 1, 77],
            [16, 1, 1, 77],
        ] {
            let bytes = self::request(b"name\0", broken.as_bytes(), 0);
            assert_eq!(Request::parse(&bytes).unwrap().caller().group, None);
        }
    }

    #[test]
    fn extensions_longer_than_the_request_are_no_request() {
        let mut bytes = request(b"name\0", &[], 0);
        bytes[36..38].copy_from_slice(&100u16.to_le_bytes());
        assert!(Request::parse(&bytes).is_none());
    }
}
