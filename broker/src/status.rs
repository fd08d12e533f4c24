//! What statx(2) says, in the guest's forms.

use protocol::fuse::{ATTR_SUBMOUNT, Attr, Statx, SxTime};
use rustix::fs::{AtFlags, FileType, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

/// What every operation asks for.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);

/// A node's status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status(rustix::fs::Statx);

/// What tells nodes apart on the host.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
    /// Absent where only this guest removes files, and so no inode number can
    /// be used again behind its back; there a copy-up of overlayfs, which
    /// gives a file another birth, must not make it another node.
    birth: Option<(i64, u32)>,
}

impl Identity {
    /// Whether both are on the same mount.
    pub(crate) fn same_mount(&self, other: &Self) -> bool {
        self.mount == other.mount
    }

    /// Whether both are on the same file system, where the numbers of files
    /// tell them apart.
    pub(crate) fn same_file_system(&self, other: &Self) -> bool {
        self.device == other.device
    }
}

impl Status {
    /// Of what is behind `name` in a directory, never following it.
    pub(crate) fn at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(directory, name, flags, WANTED).map(Self)
    }

    /// Of what is open.
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> Result<Self, Errno> {
        rustix::fs::statx(descriptor, c"", AtFlags::EMPTY_PATH, WANTED).map(Self)
    }

    pub(crate) fn identity(&self, births: bool) -> Identity {
        let born = births && self.0.stx_mask & StatxFlags::BTIME.bits() != 0;
        Identity {
            mount: self.0.stx_mnt_id,
            device: (self.0.stx_dev_major, self.0.stx_dev_minor),
            inode: self.0.stx_ino,
            birth: born.then_some((self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec)),
        }
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    pub(crate) fn mode(&self) -> u32 {
        self.0.stx_mode.into()
    }

    /// As LOOKUP and GETATTR tell it. `submount`: it is the root of a file
    /// system of its own.
    pub(crate) fn attributes(&self, submount: bool) -> Attr {
        let status = &self.0;
        Attr {
            ino: status.stx_ino,
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: status.stx_atime.tv_sec.cast_unsigned(),
            mtime: status.stx_mtime.tv_sec.cast_unsigned(),
            ctime: status.stx_ctime.tv_sec.cast_unsigned(),
            atimensec: status.stx_atime.tv_nsec,
            mtimensec: status.stx_mtime.tv_nsec,
            ctimensec: status.stx_ctime.tv_nsec,
            mode: status.stx_mode.into(),
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            rdev: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
            blksize: status.stx_blksize,
            flags: if submount { ATTR_SUBMOUNT } else { 0 },
        }
    }

    /// As STATX tells it.
    pub(crate) fn extended(&self) -> Statx {
        let status = &self.0;
        Statx {
            mask: status.stx_mask & (StatxFlags::BASIC_STATS | StatxFlags::BTIME).bits(),
            blksize: status.stx_blksize,
            attributes: 0,
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            mode: status.stx_mode,
            ino: status.stx_ino,
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: time(status.stx_atime),
            btime: time(status.stx_btime),
            ctime: time(status.stx_ctime),
            mtime: time(status.stx_mtime),
            rdev_major: status.stx_rdev_major,
            rdev_minor: status.stx_rdev_minor,
            ..Statx::default()
        }
    }
}

fn time(time: StatxTimestamp) -> SxTime {
    SxTime {
        sec: time.tv_sec,
        nsec: time.tv_nsec,
        reserved: 0,
    }
}

/// As the kernel's `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The inverse, for mknod(2).
pub(crate) fn decode_device(number: u32) -> u64 {
    let major = (number & 0xf_ff00) >> 8;
    let minor = number & 0xff | (number >> 12) & 0xf_ff00;
    rustix::fs::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_their_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 70000), (4095, 0xf_ffff)] {
            let number = decode_device(encode_device(major, minor));
            assert_eq!(
                (rustix::fs::major(number), rustix::fs::minor(number)),
                (major, minor)
            );
        }
    }
}
