//! Extended attributes.
//!
//! Namespaces: `user.`, `security.` and the access lists are the host's own.
//! `trusted.` belongs to the host's administrators, which the broker is not;
//! what the guest's root keeps there (overlayfs inside a guest does) is kept
//! under [`MAPPED`], where only a guest looks for it.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use protocol::fuse::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrIn};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use rustix::io::Errno;

use super::attributes::kill_privileges;
use crate::answer::Answer;
use crate::device::Device;
use crate::request::Request;
use crate::sys::{self, ProcName};

const TRUSTED: &[u8] = b"trusted.";
/// Where the guest's `trusted.` attributes are on the host.
const MAPPED: &[u8] = b"user.nerite.trusted.";
/// Longest value and longest list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST: usize = 65_536;
/// Longest name (`XATTR_NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// The host's name for the guest's.
fn host_name(name: &CStr) -> Result<CString, Errno> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes.len() > LONGEST_NAME {
        return Err(Errno::RANGE);
    }
    if bytes.starts_with(MAPPED) {
        return Err(Errno::PERM);
    }
    match bytes.strip_prefix(TRUSTED) {
        Some(rest) => CString::new([MAPPED, rest].concat()).map_err(|_| Errno::INVAL),
        None => Ok(name.into()),
    }
}

/// The guest's name for the host's, `None` if the guest must not see it.
fn guest_name(name: &[u8]) -> Option<Vec<u8>> {
    match name.strip_prefix(MAPPED) {
        Some(rest) => Some([TRUSTED, rest].concat()),
        None => (!name.starts_with(TRUSTED)).then(|| name.into()),
    }
}

/// GETXATTR.
pub(crate) fn get(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let wanted: GetxattrIn = request.take()?;
    let name = host_name(request.string()?)?;
    let node = device.nodes.descriptor(request.node())?;
    let path = ProcName::new(node.as_fd());
    if wanted.size == 0 {
        let size = sys::get_attribute(path.as_c_str(), &name, &mut [])?;
        push_size(answer, size);
        return Ok(());
    }
    let room = usize::try_from(wanted.size).unwrap_or(LONGEST).min(LONGEST);
    let mut value = vec![0; room];
    let size = sys::get_attribute(path.as_c_str(), &name, &mut value)?;
    answer.push_bytes(value.get(..size).unwrap_or_default());
    Ok(())
}

/// LISTXATTR.
pub(crate) fn list(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    let wanted: GetxattrIn = request.take()?;
    let node = device.nodes.descriptor(request.node())?;
    let path = ProcName::new(node.as_fd());
    let mut names = vec![0; LONGEST];
    let size = sys::list_attributes(path.as_c_str(), &mut names)?;
    for name in names
        .get(..size)
        .unwrap_or_default()
        .split_inclusive(|&byte| byte == 0)
    {
        if let Some(name) = guest_name(name) {
            answer.push_bytes(&name);
        }
    }
    let size = answer.len();
    if wanted.size == 0 {
        answer.truncate(0);
        push_size(answer, size);
    } else if size > usize::try_from(wanted.size).unwrap_or(usize::MAX) {
        return Err(Errno::RANGE);
    }
    Ok(())
}

fn push_size(answer: &mut Answer, size: usize) {
    answer.push(&GetxattrOut {
        size: u32::try_from(size).unwrap_or(u32::MAX),
        padding: 0,
    });
}

/// SETXATTR.
pub(crate) fn set(device: &Device, request: &mut Request<'_>) -> Result<(), Errno> {
    let wanted: SetxattrIn = request.take()?;
    let name = host_name(request.string()?)?;
    let value = request.bytes(wanted.size)?;
    let flags = XattrFlags::from_bits(wanted.flags).ok_or(Errno::INVAL)?;
    let node = device.nodes.descriptor(request.node())?;
    setxattr(ProcName::new(node.as_fd()).as_c_str(), &*name, value, flags)?;
    if wanted.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0 {
        kill_privileges(node.as_fd())?;
    }
    Ok(())
}

/// REMOVEXATTR.
pub(crate) fn remove(device: &Device, request: &mut Request<'_>) -> Result<(), Errno> {
    let name = host_name(request.string()?)?;
    let node = device.nodes.descriptor(request.node())?;
    removexattr(ProcName::new(node.as_fd()).as_c_str(), &*name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_attributes_are_kept_where_a_guest_finds_them() {
        let host = host_name(c"trusted.overlay.opaque").unwrap();
        assert_eq!(host.to_bytes(), b"user.nerite.trusted.overlay.opaque");
        assert_eq!(
            guest_name(host.to_bytes()).unwrap(),
            b"trusted.overlay.opaque"
        );
    }

    #[test]
    fn the_hosts_own_trusted_attributes_are_hidden() {
        assert_eq!(guest_name(b"trusted.host"), None);
        assert_eq!(guest_name(b"user.mime\0").unwrap(), b"user.mime\0");
        assert_eq!(host_name(c"user.nerite.trusted.x"), Err(Errno::PERM));
    }
}
