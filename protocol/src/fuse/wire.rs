//! The structures, as `fuse.h` lays them out, in the byte order of the host
//! (which is the guest's).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Flags of INIT, of both halves.
pub mod init {
    #![expect(missing_docs, reason = "named as in fuse.h, where they are explained")]
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Which fields of [`SetattrIn`] count.
pub mod fattr {
    #![expect(missing_docs, reason = "named as in fuse.h, where they are explained")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// [`Attr::flags`]: another file system is mounted here.
pub const ATTR_SUBMOUNT: u32 = 1 << 0;
/// [`Attr::flags`]: the guest should have the file's own pages in its memory.
pub const ATTR_DAX: u32 = 1 << 1;
/// [`SetupmappingIn::flags`]: it is written through.
pub const SETUPMAPPING_WRITE: u64 = 1 << 0;
/// [`InitOut::map_alignment`]: units of 2 MiB, as Linux maps them.
pub const MAP_ALIGNMENT_SHIFT: u16 = 21;
/// [`ExtHeader::kind`]: supplementary groups.
pub const EXT_GROUPS: u32 = 32;
/// [`WriteIn::write_flags`]: a writer without CAP_FSETID.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// [`OpenIn::open_flags`]: truncation by a caller without CAP_FSETID.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// [`FsyncIn::fsync_flags`]: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// [`ReleaseIn::release_flags`]: the file's flock(2) ends.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// [`LkIn::lk_flags`]: flock(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// [`SetxattrIn::setxattr_flags`]: an access list whose setter is not in the
/// file's group.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// [`OpenOut::open_flags`]: what is cached stays valid.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// The beginning of every request.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct InHeader {
    /// Bytes of the request, this header included.
    pub len: u32,
    /// What is asked, see [`super::Opcode`].
    pub opcode: u32,
    /// Names the request in its answer.
    pub unique: u64,
    /// The node that it concerns.
    pub nodeid: u64,
    /// The caller's user.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's process.
    pub pid: u32,
    /// Length of extensions at the end, in units of 8 bytes.
    pub total_extlen: u16,
    /// Nothing.
    pub padding: u16,
}

/// The beginning of every answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// Bytes of the answer, this header included.
    pub len: u32,
    /// 0 or a negative error number.
    pub error: i32,
    /// The request's.
    pub unique: u64,
}

/// A node's attributes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Last access, seconds.
    pub atime: u64,
    /// Last modification, seconds.
    pub mtime: u64,
    /// Last change, seconds.
    pub ctime: u64,
    /// Last access, nanoseconds.
    pub atimensec: u32,
    /// Last modification, nanoseconds.
    pub mtimensec: u32,
    /// Last change, nanoseconds.
    pub ctimensec: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, as the kernel encodes it.
    pub rdev: u32,
    /// Best size for input and output.
    pub blksize: u32,
    /// `FUSE_ATTR_…`.
    pub flags: u32,
}

/// A node that a name leads to.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EntryOut {
    /// The node, 0 if the name leads nowhere.
    pub nodeid: u64,
    /// Tells nodes with the same number apart.
    pub generation: u64,
    /// How long the name holds, seconds.
    pub entry_valid: u64,
    /// How long the attributes hold, seconds.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub entry_valid_nsec: u32,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// The attributes.
    pub attr: Attr,
}

/// A node's attributes and how long they hold.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct AttrOut {
    /// Seconds.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// Nothing.
    pub dummy: u32,
    /// The attributes.
    pub attr: Attr,
}

/// STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StatxIn {
    /// As with GETATTR.
    pub getattr_flags: u32,
    /// Nothing.
    pub reserved: u32,
    /// An open file.
    pub fh: u64,
    /// Flags of statx(2).
    pub sx_flags: u32,
    /// What is asked for.
    pub sx_mask: u32,
}

/// A time in [`Statx`].
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SxTime {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: u32,
    /// Nothing.
    pub reserved: i32,
}

/// What statx(2) says.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Statx {
    /// What is filled in.
    pub mask: u32,
    /// Best size for input and output.
    pub blksize: u32,
    /// Flags.
    pub attributes: u64,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permissions.
    pub mode: u16,
    /// Nothing.
    pub spare0: u16,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Flags that are supported.
    pub attributes_mask: u64,
    /// Last access.
    pub atime: SxTime,
    /// Birth.
    pub btime: SxTime,
    /// Last change.
    pub ctime: SxTime,
    /// Last modification.
    pub mtime: SxTime,
    /// Device number.
    pub rdev_major: u32,
    /// Device number.
    pub rdev_minor: u32,
    /// The file system's.
    pub dev_major: u32,
    /// The file system's.
    pub dev_minor: u32,
    /// Nothing.
    pub spare2: [u64; 14],
}

/// The answer to STATX.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StatxOut {
    /// Seconds.
    pub attr_valid: u64,
    /// And nanoseconds.
    pub attr_valid_nsec: u32,
    /// Nothing.
    pub flags: u32,
    /// Nothing.
    pub spare: [u64; 2],
    /// The attributes.
    pub stat: Statx,
}

/// SETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetattrIn {
    /// `FATTR_…`: which fields count.
    pub valid: u32,
    /// Nothing.
    pub padding: u32,
    /// An open file.
    pub fh: u64,
    /// New length.
    pub size: u64,
    /// Whose locks.
    pub lock_owner: u64,
    /// Last access, seconds.
    pub atime: u64,
    /// Last modification, seconds.
    pub mtime: u64,
    /// Last change, seconds.
    pub ctime: u64,
    /// And nanoseconds.
    pub atimensec: u32,
    /// And nanoseconds.
    pub mtimensec: u32,
    /// And nanoseconds.
    pub ctimensec: u32,
    /// Permissions.
    pub mode: u32,
    /// Nothing.
    pub unused4: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Nothing.
    pub unused5: u32,
}

/// MKNOD; a name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MknodIn {
    /// Type and permissions.
    pub mode: u32,
    /// Device number.
    pub rdev: u32,
    /// The caller's.
    pub umask: u32,
    /// Nothing.
    pub padding: u32,
}

/// MKDIR; a name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MkdirIn {
    /// Permissions.
    pub mode: u32,
    /// The caller's.
    pub umask: u32,
}

/// RENAME; the two names follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RenameIn {
    /// The directory of the new name.
    pub newdir: u64,
}

/// RENAME2; the two names follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Rename2In {
    /// The directory of the new name.
    pub newdir: u64,
    /// `RENAME_…`.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// LINK; the new name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LinkIn {
    /// What gets another name.
    pub oldnodeid: u64,
}

/// OPEN.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct OpenIn {
    /// `O_…`.
    pub flags: u32,
    /// `FUSE_OPEN_…`.
    pub open_flags: u32,
}

/// CREATE and TMPFILE; a name follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CreateIn {
    /// `O_…`.
    pub flags: u32,
    /// Type and permissions.
    pub mode: u32,
    /// The caller's.
    pub umask: u32,
    /// `FUSE_OPEN_…`.
    pub open_flags: u32,
}

/// An open file.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct OpenOut {
    /// Its number.
    pub fh: u64,
    /// `FOPEN_…`.
    pub open_flags: u32,
    /// Nothing.
    pub backing_id: i32,
}

/// RELEASE.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ReleaseIn {
    /// The open file.
    pub fh: u64,
    /// `O_…`.
    pub flags: u32,
    /// `FUSE_RELEASE_…`.
    pub release_flags: u32,
    /// Whose locks.
    pub lock_owner: u64,
}

/// FLUSH.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FlushIn {
    /// The open file.
    pub fh: u64,
    /// Nothing.
    pub unused: u32,
    /// Nothing.
    pub padding: u32,
    /// Whose locks.
    pub lock_owner: u64,
}

/// READ, READDIR and READDIRPLUS.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ReadIn {
    /// The open file.
    pub fh: u64,
    /// Where; in a directory a cookie.
    pub offset: u64,
    /// Most bytes wanted.
    pub size: u32,
    /// `FUSE_READ_…`.
    pub read_flags: u32,
    /// Whose locks.
    pub lock_owner: u64,
    /// `O_…`.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// WRITE; the data follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct WriteIn {
    /// The open file.
    pub fh: u64,
    /// Where.
    pub offset: u64,
    /// Bytes.
    pub size: u32,
    /// `FUSE_WRITE_…`.
    pub write_flags: u32,
    /// Whose locks.
    pub lock_owner: u64,
    /// `O_…`.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct WriteOut {
    /// Bytes.
    pub size: u32,
    /// Nothing.
    pub padding: u32,
}

/// A file system's size.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StatfsOut {
    /// Units of `frsize` in all.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Free for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Best size for input and output.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Unit of the counts.
    pub frsize: u32,
    /// Nothing.
    pub padding: u32,
    /// Nothing.
    pub spare: [u32; 6],
}

/// FSYNC and FSYNCDIR.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FsyncIn {
    /// The open file.
    pub fh: u64,
    /// 1: data only.
    pub fsync_flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// SETXATTR; name and value follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetxattrIn {
    /// Bytes of the value.
    pub size: u32,
    /// `XATTR_…`.
    pub flags: u32,
    /// `FUSE_SETXATTR_…`.
    pub setxattr_flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// GETXATTR (a name follows) and LISTXATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetxattrIn {
    /// Room for the answer; 0 asks for the size.
    pub size: u32,
    /// Nothing.
    pub padding: u32,
}

/// The size of an extended attribute or of their list.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetxattrOut {
    /// Bytes.
    pub size: u32,
    /// Nothing.
    pub padding: u32,
}

/// A lock on a range.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    /// Who holds it.
    pub pid: u32,
}

/// GETLK, SETLK and SETLKW.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LkIn {
    /// The open file.
    pub fh: u64,
    /// Who asks.
    pub owner: u64,
    /// The lock.
    pub lk: FileLock,
    /// 1: flock(2) instead of fcntl(2).
    pub lk_flags: u32,
    /// Nothing.
    pub padding: u32,
}

/// The answer to GETLK.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LkOut {
    /// What is in the way; `F_UNLCK`: nothing.
    pub lk: FileLock,
}

/// INTERRUPT.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct InterruptIn {
    /// The request whose caller has got a signal.
    pub unique: u64,
}

/// INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct InitIn {
    /// Protocol version.
    pub major: u32,
    /// Protocol version.
    pub minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// What the kernel can, lower half.
    pub flags: u32,
    /// Upper half.
    pub flags2: u32,
    /// Nothing.
    pub unused: [u32; 11],
}

/// The answer to INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct InitOut {
    /// Protocol version.
    pub major: u32,
    /// Protocol version.
    pub minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// What is used, lower half.
    pub flags: u32,
    /// Requests that nobody waits for at a time.
    pub max_background: u16,
    /// From how many on the kernel holds back.
    pub congestion_threshold: u16,
    /// Bytes.
    pub max_write: u32,
    /// Unit of times in nanoseconds.
    pub time_gran: u32,
    /// Pages of one request.
    pub max_pages: u16,
    /// Binary logarithm of the unit of DAX mappings.
    pub map_alignment: u16,
    /// Upper half.
    pub flags2: u32,
    /// Nothing.
    pub max_stack_depth: u32,
    /// Nothing.
    pub unused: [u32; 6],
}

/// FORGET.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ForgetIn {
    /// How many answers that named the node are forgotten.
    pub nlookup: u64,
}

/// One of BATCH_FORGET.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ForgetOne {
    /// The node.
    pub nodeid: u64,
    /// As in [`ForgetIn`].
    pub nlookup: u64,
}

/// BATCH_FORGET; so many [`ForgetOne`] follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BatchForgetIn {
    /// How many.
    pub count: u32,
    /// Nothing.
    pub dummy: u32,
}

/// FALLOCATE.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FallocateIn {
    /// The open file.
    pub fh: u64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u64,
    /// `FALLOC_FL_…`.
    pub mode: u32,
    /// Nothing.
    pub padding: u32,
}

/// LSEEK.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LseekIn {
    /// The open file.
    pub fh: u64,
    /// From where.
    pub offset: u64,
    /// `SEEK_DATA` or `SEEK_HOLE`.
    pub whence: u32,
    /// Nothing.
    pub padding: u32,
}

/// The answer to LSEEK.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LseekOut {
    /// Where it is.
    pub offset: u64,
}

/// COPY_FILE_RANGE.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CopyFileRangeIn {
    /// The open source.
    pub fh_in: u64,
    /// Where in the source.
    pub off_in: u64,
    /// The target's node.
    pub nodeid_out: u64,
    /// The open target.
    pub fh_out: u64,
    /// Where in the target.
    pub off_out: u64,
    /// How much.
    pub len: u64,
    /// Nothing.
    pub flags: u64,
}

/// SETUPMAPPING: a piece of a file into the window.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetupmappingIn {
    /// The open file.
    pub fh: u64,
    /// Where in the file.
    pub foffset: u64,
    /// Bytes.
    pub len: u64,
    /// `FUSE_SETUPMAPPING_FLAG_…`.
    pub flags: u64,
    /// Where in the window.
    pub moffset: u64,
}

/// REMOVEMAPPING; so many [`RemovemappingOne`] follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RemovemappingIn {
    /// How many.
    pub count: u32,
}

/// One of REMOVEMAPPING.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RemovemappingOne {
    /// Where in the window.
    pub moffset: u64,
    /// Bytes.
    pub len: u64,
}

/// An entry of READDIR; the name and padding to 8 bytes follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Dirent {
    /// Inode number.
    pub ino: u64,
    /// Where the next entry begins.
    pub off: u64,
    /// Bytes of the name.
    pub namelen: u32,
    /// The type, `DT_…`.
    pub kind: u32,
}

/// An extension at the end of a request.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ExtHeader {
    /// Bytes, this header included.
    pub size: u32,
    /// `FUSE_EXT_…`.
    pub kind: u32,
}

// The kernel's sizes.
const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<OutHeader>() == 16);
const _: () = assert!(size_of::<Attr>() == 88);
const _: () = assert!(size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104);
const _: () = assert!(size_of::<StatxIn>() == 24);
const _: () = assert!(size_of::<Statx>() == 256);
const _: () = assert!(size_of::<StatxOut>() == 288);
const _: () = assert!(size_of::<SetattrIn>() == 88);
const _: () = assert!(size_of::<MknodIn>() == 16);
const _: () = assert!(size_of::<ReadIn>() == 40);
const _: () = assert!(size_of::<WriteIn>() == 40);
const _: () = assert!(size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<LkIn>() == 48);
const _: () = assert!(size_of::<InitIn>() == 64);
const _: () = assert!(size_of::<InitOut>() == 64);
const _: () = assert!(size_of::<CopyFileRangeIn>() == 56);
const _: () = assert!(size_of::<Dirent>() == 24);
const _: () = assert!(size_of::<SetupmappingIn>() == 40);
const _: () = assert!(size_of::<RemovemappingIn>() == 4);
const _: () = assert!(size_of::<RemovemappingOne>() == 16);
const _: () = assert!(size_of::<ReleaseIn>() == 24);
