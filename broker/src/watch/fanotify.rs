//! Events as fanotify(7) reports them with directories and names.

use std::ffi::CStr;

use protocol::news::LONGEST_NAME;

/// A directory and a name in it.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// File system and handle of the directory.
    pub(super) handle: &'a [u8],
    pub(super) name: &'a CStr,
}

/// One event of fanotify(7).
#[derive(Debug, Default)]
pub(super) struct Event<'a> {
    pub(super) mask: u64,
    pub(super) process: i32,
    pub(super) place: Option<Place<'a>>,
    pub(super) old: Option<Place<'a>>,
    pub(super) new: Option<Place<'a>>,
    pub(super) file: Option<&'a [u8]>,
}

impl<'a> Event<'a> {
    /// `struct fanotify_event_metadata`.
    const METADATA: usize = 24;
    /// `struct fanotify_event_info_header`.
    const HEADER: usize = 4;
    /// File system, length and type before a handle's content.
    const HANDLE: usize = 16;

    /// The first event and what follows it.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = usize::try_from(number(bytes, 0)?).ok()?;
        let (mut rest, after) = bytes.split_at_checked(length)?;
        let mut event = Self {
            mask: u64::from_ne_bytes(*rest.get(8..)?.first_chunk()?),
            process: i32::from_ne_bytes(*rest.get(20..)?.first_chunk()?),
            ..Self::default()
        };
        rest = rest.get(Self::METADATA..)?;
        while let Some((kind, record, others)) = Self::record(rest) {
            rest = others;
            let Some((handle, name)) = Self::handle(record) else {
                continue;
            };
            let place = CStr::from_bytes_until_nul(name)
                .ok()
                .filter(|name| name.to_bytes().len() <= LONGEST_NAME)
                .map(|name| Place { handle, name });
            match kind {
                libc::FAN_EVENT_INFO_TYPE_FID => event.file = Some(handle),
                libc::FAN_EVENT_INFO_TYPE_DFID_NAME => event.place = place,
                libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => event.old = place,
                libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => event.new = place,
                _ => {}
            }
        }
        Some((event, after))
    }

    fn record(bytes: &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
        let kind = *bytes.first()?;
        let length = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let (record, others) = bytes.split_at_checked(usize::from(length))?;
        Some((kind, record.get(Self::HEADER..)?, others))
    }

    /// The handle in a record and what follows it.
    fn handle(record: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let content = usize::try_from(number(record, 8)?).ok()?;
        record.split_at_checked(Self::HANDLE.checked_add(content)?)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
