//! What a request is, and its answer: data here, everything else by the
//! broker.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::fuse::{
    BatchForgetIn, CopyFileRangeIn, FSYNC_FDATASYNC, FallocateIn, ForgetIn, ForgetOne, FsyncIn,
    InHeader, LseekIn, LseekOut, MAX_DATA, MAX_REQUEST, Opcode, OutHeader, ReadIn, WriteIn,
    WriteOut,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::channel::{Channel, HEAD};
use super::device::Fs;
use super::files::{Access, Files};
use crate::sys;
use crate::virtio::Chain;
use crate::virtio::queue::{GuestSlice, copy_from, copy_to, part, total};

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();

/// Forgets that are passed on in one message.
pub(super) const MOST_FORGETS: usize = 256;

/// One worker's view of the device.
#[derive(Debug)]
pub struct Server {
    channel: Channel,
    files: Arc<Files>,
    forgets: Vec<ForgetOne>,
    appends: bool,
}

/// What an operation has written behind the header, in bytes.
type Written = usize;

impl Server {
    /// A server for `device` with one channel to the broker. `appends`:
    /// others may append to the same files, so that where an appending write
    /// goes is the host's to say.
    #[must_use]
    pub fn new(device: &Fs, channel: OwnedFd, appends: bool) -> Self {
        Self {
            channel: Channel::new(channel),
            files: Arc::clone(device.files()),
            forgets: Vec::with_capacity(MOST_FORGETS),
            appends,
        }
    }

    /// Serves one request; returns how many bytes were written.
    pub fn serve(&mut self, chain: &Chain<'_>) -> u32 {
        let Some(header) = read_at::<InHeader>(chain, 0) else {
            return 0;
        };
        let opcode = Opcode::from_number(header.opcode);
        if let Some(opcode @ (Opcode::Forget | Opcode::BatchForget)) = opcode {
            self.forget(opcode, &header, chain);
            self.pass_forgets_on();
            return 0;
        }
        if total(chain.writable()) < OUT_HEADER {
            return 0; // no room for any answer
        }
        let honest = usize::try_from(header.len) == Ok(total(chain.readable()));
        let result = match opcode {
            _ if !honest => Err(errno(libc::EINVAL)),
            None => Err(errno(libc::ENOSYS)),
            Some(Opcode::Read) => self.read(&header, chain),
            Some(Opcode::Write) => self.write(&header, chain),
            Some(Opcode::Fsync) => self.synchronize(&header, chain),
            Some(Opcode::Lseek) => self.seek(&header, chain),
            Some(Opcode::Fallocate) => self.allocate(&header, chain),
            Some(Opcode::CopyFileRange) => self.copy(&header, chain),
            Some(Opcode::Setupmapping | Opcode::Removemapping) => Err(errno(libc::ENOSYS)),
            Some(opcode) => match self.ask(opcode, &header, chain) {
                // The broker's answer is in its place, header and all.
                Ok(length) => return length,
                Err(error) => Err(error),
            },
        };
        let (error, length) = match result {
            Ok(written) => (0, OUT_HEADER.saturating_add(written)),
            Err(error) => (
                error.raw_os_error().unwrap_or(libc::EIO).saturating_neg(),
                OUT_HEADER,
            ),
        };
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let answer = OutHeader {
            len: length,
            error,
            unique: header.unique,
        };
        let _ = copy_to(chain.writable(), answer.as_bytes());
        length
    }

    /// Notes what a forget names, to be passed on with others. Its data are
    /// closed at once: if the file has been removed, its space is free then.
    pub(super) fn forget(&mut self, opcode: Opcode, header: &InHeader, chain: &Chain<'_>) {
        if opcode == Opcode::Forget {
            if let Some(forget) = read_at::<ForgetIn>(chain, IN_HEADER) {
                self.note(ForgetOne {
                    nodeid: header.nodeid,
                    nlookup: forget.nlookup,
                });
            }
            return;
        }
        let Some(batch) = read_at::<BatchForgetIn>(chain, IN_HEADER) else {
            return;
        };
        let mut at = IN_HEADER.saturating_add(size_of::<BatchForgetIn>());
        for _ in 0..batch.count {
            let Some(one) = read_at::<ForgetOne>(chain, at) else {
                return;
            };
            self.note(one);
            at = at.saturating_add(size_of::<ForgetOne>());
        }
    }

    fn note(&mut self, one: ForgetOne) {
        self.files.forget(one.nodeid);
        self.forgets.push(one);
        if self.forgets.len() >= MOST_FORGETS {
            self.pass_forgets_on();
        }
    }

    /// Tells the broker what has been forgotten.
    pub(super) fn pass_forgets_on(&mut self) {
        if self.forgets.is_empty() {
            return;
        }
        let batch = BatchForgetIn {
            count: u32::try_from(self.forgets.len()).unwrap_or(0),
            dummy: 0,
        };
        let mut body = batch.as_bytes().to_vec();
        body.extend_from_slice(self.forgets.as_bytes());
        self.forgets.clear();
        let header = InHeader {
            len: u32::try_from(IN_HEADER.saturating_add(body.len())).unwrap_or(0),
            opcode: Opcode::BatchForget as u32,
            ..InHeader::default()
        };
        // A broker that is gone has forgotten everything.
        let _ = self.channel.send_own(&header, &body);
    }

    /// Lets the broker answer.
    fn ask(&mut self, opcode: Opcode, header: &InHeader, chain: &Chain<'_>) -> io::Result<u32> {
        if total(chain.readable()) > MAX_REQUEST {
            return Err(errno(libc::EINVAL));
        }
        // What the guest has given up must be gone before it asks again.
        self.pass_forgets_on();
        if opcode == Opcode::Init {
            self.files.clear();
        }
        let body = part(chain.readable(), IN_HEADER, usize::MAX);
        let room = part(chain.writable(), HEAD, usize::MAX);
        let answer = self
            .channel
            .send(header, &body)
            .and_then(|()| self.channel.receive(&room))
            // Whatever is wrong with the broker, to the guest it is a device
            // that has failed.
            .map_err(|_| errno(libc::EIO))?;
        let head = answer.head.get(..answer.length).unwrap_or(&answer.head);
        if answer.length > total(chain.writable()) {
            return Err(errno(libc::EIO));
        }
        let _ = copy_to(chain.writable(), head);
        if let Some(file) = &answer.file {
            let access = match opcode {
                Opcode::Open => {
                    let flags = read_at::<u32>(chain, IN_HEADER).unwrap_or(0);
                    access_of(flags)
                }
                _ => Access::Write,
            };
            let node = match opcode {
                Opcode::Open => header.nodeid,
                _ => answer.node(),
            };
            if let Ok(file) = file.try_clone() {
                self.files.put(node, access, file);
            }
        }
        Ok(u32::try_from(answer.length).unwrap_or(u32::MAX))
    }

    fn file(&self, node: u64, access: Access) -> io::Result<Arc<File>> {
        if let Some(file) = self.files.get(node, access) {
            return Ok(file);
        }
        let file = self.channel.open(node, access)?;
        Ok(self.files.put(node, access, file))
    }

    /// Whatever is open already, else a descriptor for reading.
    fn any_file(&self, node: u64) -> io::Result<Arc<File>> {
        self.file(node, Access::Read)
    }

    fn read(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let read: ReadIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let length = usize::try_from(read.size.min(MAX_DATA)).map_err(|_| invalid())?;
        let room = part(chain.writable(), OUT_HEADER, length);
        let file = self.any_file(header.nodeid)?;
        sys::read_at(&file, &room, offset(read.offset)?)
    }

    fn write(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let write: WriteIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let length = usize::try_from(write.size).map_err(|_| invalid())?;
        let at = IN_HEADER.saturating_add(size_of::<WriteIn>());
        let data = part(chain.readable(), at, length);
        if write.size > MAX_DATA || total(&data) != length {
            return Err(invalid());
        }
        let append = self.appends && write.flags & libc::O_APPEND.cast_unsigned() != 0;
        let file = self.file(header.nodeid, Access::Write)?;
        let written = sys::write_at(&file, &data, offset(write.offset)?, append)?;
        let answer = WriteOut {
            size: u32::try_from(written).unwrap_or(0),
            padding: 0,
        };
        put(chain, &answer)
    }

    fn synchronize(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let sync: FsyncIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let file = self.any_file(header.nodeid)?;
        if sync.fsync_flags & FSYNC_FDATASYNC != 0 {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        Ok(0)
    }

    fn seek(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let seek: LseekIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let file = self.any_file(header.nodeid)?;
        let found = sys::seek_data(&file, offset(seek.offset)?, seek.whence)?;
        put(chain, &LseekOut { offset: found })
    }

    fn allocate(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let wanted: FallocateIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let file = self.file(header.nodeid, Access::Write)?;
        sys::allocate(
            &file,
            wanted.mode,
            offset(wanted.offset)?,
            offset(wanted.length)?,
        )?;
        Ok(0)
    }

    fn copy(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let copy: CopyFileRangeIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let source = self.any_file(header.nodeid)?;
        let target = self.file(copy.nodeid_out, Access::Write)?;
        // A piece at a time: the guest asks again, and others get a turn.
        let length = usize::try_from(copy.len)
            .unwrap_or(usize::MAX)
            .min(LARGEST_COPY);
        let copied = sys::copy_range(
            (&source, offset(copy.off_in)?),
            (&target, offset(copy.off_out)?),
            length,
        )?;
        let answer = WriteOut {
            size: u32::try_from(copied).unwrap_or(0),
            padding: 0,
        };
        put(chain, &answer)
    }
}

/// Bytes that one COPY_FILE_RANGE copies.
const LARGEST_COPY: usize = 64 << 20;

fn access_of(flags: u32) -> Access {
    if flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned() {
        Access::Read
    } else {
        Access::Write
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn invalid() -> io::Error {
    errno(libc::EINVAL)
}

/// A position in a file: the kernel's are signed.
fn offset(position: u64) -> io::Result<i64> {
    i64::try_from(position).map_err(|_| invalid())
}

/// Reads a structure of the request, once: the guest may change it later.
fn read_at<T: FromBytes + IntoBytes>(chain: &Chain<'_>, at: usize) -> Option<T> {
    let mut value = T::new_zeroed();
    let slices = part(chain.readable(), at, size_of::<T>());
    (copy_from(&slices, value.as_mut_bytes()) == size_of::<T>()).then_some(value)
}

/// Writes a structure behind the answer's header.
fn put<T: IntoBytes + Immutable>(chain: &Chain<'_>, value: &T) -> io::Result<Written> {
    let room: Vec<GuestSlice<'_>> = part(chain.writable(), OUT_HEADER, size_of::<T>());
    if total(&room) < size_of::<T>() {
        return Err(errno(libc::EOVERFLOW));
    }
    Ok(copy_to(&room, value.as_bytes()))
}
