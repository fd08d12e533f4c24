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

use protocol::broker::entry_bytes;
use protocol::fuse::{
    AttrOut, BatchForgetIn, CopyFileRangeIn, FSYNC_FDATASYNC, FallocateIn, FlushIn, ForgetIn,
    ForgetOne, FsyncIn, GetxattrIn, GetxattrOut, InHeader, InterruptIn, LinkIn, LkIn, LkOut,
    LseekIn, LseekOut, MAX_DATA, MAX_REQUEST, Opcode, OutHeader, ReadIn, ReleaseIn,
    RemovemappingIn, RemovemappingOne, SETUPMAPPING_WRITE, SetupmappingIn, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut, fattr,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::channel::{Answer, Channel, HEAD};
use super::device::{FORGETS, Fs};
use super::files::{Access, Files};
use super::forgets::Forgets;
use super::known::{Answered, Effect, Extended, Known, Told};
use super::locks::{Locks, Wanted};
use super::window::FileWindow;
use crate::memory::GuestRam;
use crate::slots::Slot;
use crate::sys;
use crate::virtio::Chain;
use crate::virtio::queue::{GuestSlice, copy_from, copy_to, part, total};
use crate::virtio::transport::Taken;

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();

/// One worker's view of the device.
#[derive(Debug)]
pub struct Server {
    channel: Channel,
    files: Arc<Files>,
    forgets: Arc<Forgets>,
    known: Option<Arc<Known>>,
    locks: Option<Arc<Locks>>,
    window: Option<Arc<FileWindow>>,
    appends: bool,
}

/// What has become of a request that a worker has served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Served {
    /// So many bytes are written: it is to be given back.
    Done(u32),
    /// It waits for a lock: it is to be served again, or given up.
    Waits,
}

/// What an operation has written behind the header, in bytes.
type Written = usize;

/// What can be learned from an answer.
#[derive(Default)]
struct Learned {
    told: Told,
    answered: Option<Answered>,
}

/// What has become of a request.
enum Done {
    /// This is behind the header, which is still to be written.
    Written(Written),
    /// The broker's answer is in its place, header and all: so many bytes.
    Answered(u32),
    /// There is no answer yet.
    Waits,
}

impl Server {
    /// A server for `device` with one channel to the broker. `appends`:
    /// others may append to the same files, so that where an appending write
    /// goes is the host's to say.
    #[must_use]
    pub fn new(device: &Fs, channel: OwnedFd, appends: bool) -> Self {
        Self {
            channel: Channel::new(channel),
            files: Arc::clone(device.files()),
            forgets: Arc::clone(device.forgets()),
            known: device.known().cloned(),
            locks: device.locks().cloned(),
            window: device.window().cloned(),
            appends,
        }
    }

    /// Serves one request.
    pub fn serve(&self, chain: &Chain<'_>) -> Served {
        match read_at::<InHeader>(chain, 0) {
            Some(header) => self.serve_as(&header, chain),
            None => Served::Done(0),
        }
    }

    /// Answers a request that waits, as if its caller had got a signal; returns
    /// how many bytes were written.
    pub fn give_up(&self, chain: &Chain<'_>) -> u32 {
        let Some(header) = read_at::<InHeader>(chain, 0) else {
            return 0;
        };
        if let Some(locks) = &self.locks {
            locks.waits().end(header.unique);
        }
        if total(chain.writable()) < OUT_HEADER {
            return 0;
        }
        answer(&header, chain, Err(errno(libc::EINTR)))
    }

    /// Where requests wait, if any do.
    pub(super) fn locks(&self) -> Option<&Locks> {
        self.locks.as_deref()
    }

    fn serve_as(&self, header: &InHeader, chain: &Chain<'_>) -> Served {
        let opcode = Opcode::from_number(header.opcode);
        if opcode.is_some_and(Opcode::is_one_way) {
            self.forget(header, chain);
            self.pass_forgets_on();
            return Served::Done(0);
        }
        if total(chain.writable()) < OUT_HEADER {
            return Served::Done(0); // no room for any answer
        }
        if let Some(window) = &self.window {
            window.restore();
        }
        let honest = usize::try_from(header.len) == Ok(total(chain.readable()));
        let result = match opcode {
            _ if !honest => Err(errno(libc::EINVAL)),
            None => Err(errno(libc::ENOSYS)),
            Some(opcode) => match self.attempt(opcode, header, chain) {
                // Files that the guest has forgotten may hold the space still.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.pass_forgets_on();
                    self.attempt(opcode, header, chain)
                }
                result => result,
            },
        };
        Served::Done(match result {
            Ok(Done::Waits) => return Served::Waits,
            Ok(Done::Answered(length)) => length,
            Ok(Done::Written(written)) => answer(header, chain, Ok(written)),
            Err(error) => answer(header, chain, Err(error)),
        })
    }

    fn attempt(&self, opcode: Opcode, header: &InHeader, chain: &Chain<'_>) -> io::Result<Done> {
        let Some(known) = &self.known else {
            return self.work(opcode, header, chain).0;
        };
        if let Some(done) = self.answer_known(known, opcode, header, chain) {
            return done.map(Done::Written);
        }
        match Effect::of(opcode, header.nodeid, || other_node(opcode, chain)) {
            Effect::None => known.asking(|| {
                let (done, learned) = self.work(opcode, header, chain);
                (done, learned.answered)
            }),
            effect => known.during(effect, || {
                let (done, learned) = self.work(opcode, header, chain);
                (done, learned.told)
            }),
        }
    }

    /// The answer to a question, if it is known.
    fn answer_known(
        &self,
        known: &Known,
        opcode: Opcode,
        header: &InHeader,
        chain: &Chain<'_>,
    ) -> Option<io::Result<Written>> {
        let node = header.nodeid;
        match opcode {
            Opcode::Getattr => Some(put(chain, &known.attributes(node)?)),
            Opcode::Getxattr => {
                let lacks = known.lacks(node, asked_for(chain)?);
                lacks.then(|| Err(errno(libc::ENODATA)))
            }
            Opcode::Listxattr if known.lacks(node, Extended::Any) => {
                let wanted: GetxattrIn = read_at(chain, IN_HEADER)?;
                Some(match wanted.size {
                    0 => put(chain, &GetxattrOut::default()),
                    _ => Ok(0),
                })
            }
            _ => None,
        }
    }

    /// Does what a request asks, and says what can be learned from it.
    fn work(
        &self,
        opcode: Opcode,
        header: &InHeader,
        chain: &Chain<'_>,
    ) -> (io::Result<Done>, Learned) {
        let written = match opcode {
            Opcode::Read => self.read(header, chain),
            Opcode::Write => self.write(header, chain),
            Opcode::Fsync => self.synchronize(header, chain),
            Opcode::Lseek => self.seek(header, chain),
            Opcode::Fallocate => self.allocate(header, chain),
            Opcode::CopyFileRange => self.copy(header, chain),
            Opcode::Getattr if self.known.is_some() => return self.attributes(header, chain),
            Opcode::Setupmapping => self.set_up_mapping(header, chain),
            Opcode::Removemapping => self.remove_mappings(chain),
            _ => {
                if let Some(locks) = &self.locks
                    && let Some(done) = self.lock(locks, opcode, header, chain)
                {
                    return (done, Learned::default());
                }
                return match self.ask(opcode, header, chain) {
                    Ok((length, learned)) => (Ok(Done::Answered(length)), learned),
                    Err(error) => (Err(error), Learned::default()),
                };
            }
        };
        (written.map(Done::Written), Learned::default())
    }

    /// GETATTR, with an answer that can be kept.
    fn attributes(&self, header: &InHeader, chain: &Chain<'_>) -> (io::Result<Done>, Learned) {
        let body = match body(chain) {
            Ok(body) => body,
            Err(error) => return (Err(error), Learned::default()),
        };
        let answer = self
            .channel
            .send(header, &body)
            .and_then(|()| self.channel.receive_value::<AttrOut>());
        let mut learned = Learned::default();
        let written = match answer {
            Err(_) => Err(errno(libc::EIO)),
            Ok(Err(error)) => Err(errno(error)),
            Ok(Ok(attributes)) => {
                // In a window the guest writes unseen.
                if self.window.is_none() {
                    learned.answered = Some(Answered::Attributes(header.nodeid, attributes));
                }
                put(chain, &attributes)
            }
        };
        (written.map(Done::Written), learned)
    }

    /// Takes what is in the queue of forgets. True: a batch has begun, which a
    /// worker should pass on a little later. `arm`: the next forget is to be
    /// told by a kick.
    pub(super) fn take_forgets(&self, slot: &Slot<Fs>, ram: &GuestRam, arm: bool) -> bool {
        let mut first = false;
        while let Taken::Chain(chain, lease) = slot.take(FORGETS, ram, arm) {
            if let Some(header) = read_at::<InHeader>(&chain, 0) {
                first |= self.forget(&header, &chain);
            }
            slot.give_back(lease, 0, ram);
            if let Some(batch) = self.forgets.take_full() {
                self.tell(&batch);
            }
        }
        first
    }

    /// Passes on what has been collected; says whether there was anything. The
    /// broker has then done it, and whatever another worker has passed on.
    pub(super) fn pass_forgets_on(&self) -> bool {
        let batch = self.forgets.take();
        self.tell(&batch);
        !batch.is_empty()
    }

    /// Notes what a forget names. Its data are closed at once. A longer one
    /// than any request is none: buffers may name the same memory over and
    /// over, so that what is noted would have no bound.
    fn forget(&self, header: &InHeader, chain: &Chain<'_>) -> bool {
        if total(chain.readable()) > MAX_REQUEST {
            return false;
        }
        match Opcode::from_number(header.opcode) {
            Some(Opcode::Forget) => {
                let Some(forget) = read_at::<ForgetIn>(chain, IN_HEADER) else {
                    return false;
                };
                self.note(ForgetOne {
                    nodeid: header.nodeid,
                    nlookup: forget.nlookup,
                })
            }
            Some(Opcode::BatchForget) => {
                let Some(batch) = read_at::<BatchForgetIn>(chain, IN_HEADER) else {
                    return false;
                };
                let mut first = false;
                let mut at = IN_HEADER.saturating_add(size_of::<BatchForgetIn>());
                for _ in 0..batch.count {
                    let Some(one) = read_at::<ForgetOne>(chain, at) else {
                        break;
                    };
                    first |= self.note(one);
                    at = at.saturating_add(size_of::<ForgetOne>());
                }
                first
            }
            Some(Opcode::Interrupt) => {
                if let Some(locks) = &self.locks
                    && let Some(interrupt) = read_at::<InterruptIn>(chain, IN_HEADER)
                {
                    locks.waits().interrupt(interrupt.unique);
                }
                // As for a forget: somebody has to listen for the next one.
                true
            }
            // Nothing else belongs into that queue.
            _ => false,
        }
    }

    fn note(&self, one: ForgetOne) -> bool {
        self.files.forget(one.nodeid);
        if let Some(locks) = &self.locks {
            locks.forget(one.nodeid);
        }
        self.forgets.note(one)
    }

    fn tell(&self, forgets: &[ForgetOne]) {
        let _telling = self.forgets.telling();
        for batch in forgets.chunks(MOST_TOLD) {
            let count = BatchForgetIn {
                count: u32::try_from(batch.len()).unwrap_or(0),
                dummy: 0,
            };
            let mut body = count.as_bytes().to_vec();
            body.extend_from_slice(batch.as_bytes());
            let header = InHeader {
                len: u32::try_from(IN_HEADER.saturating_add(body.len())).unwrap_or(0),
                opcode: Opcode::BatchForget as u32,
                ..InHeader::default()
            };
            // A broker that is gone has forgotten everything.
            let _ = self.channel.send_own(&header, &body);
        }
        if !forgets.is_empty() {
            // A question about no node at all: it is answered behind them.
            let _ = self.channel.open(0, Access::Read);
        }
    }

    /// Lets the broker answer.
    fn ask(
        &self,
        opcode: Opcode,
        header: &InHeader,
        chain: &Chain<'_>,
    ) -> io::Result<(u32, Learned)> {
        let body = body(chain)?;
        if opcode == Opcode::Init {
            self.files.clear();
            if let Some(locks) = &self.locks {
                locks.clear();
            }
            if let Some(known) = &self.known {
                known.clear();
            }
            if let Some(window) = &self.window {
                window.clear();
            }
        }
        // Where more may follow, what the answer itself takes is known.
        let entry = entry_bytes(opcode);
        let length = entry.map_or(usize::MAX, |entry| {
            OUT_HEADER.saturating_add(entry).saturating_sub(HEAD)
        });
        let room = part(chain.writable(), HEAD, length);
        if entry.is_some_and(|_| total(&room) < length) {
            return Err(errno(libc::EINVAL));
        }
        let answer = self
            .channel
            .send(header, &body)
            .and_then(|()| self.channel.receive(&room, entry));
        // Whatever is wrong with the broker, to the guest it is a device that
        // has failed.
        let answer = answer.map_err(|_| errno(libc::EIO))?;
        if answer.header().error == -libc::ENOSPC {
            return Err(errno(libc::ENOSPC));
        }
        let head = answer.head.get(..answer.length).unwrap_or(&answer.head);
        if answer.length > total(chain.writable()) {
            return Err(errno(libc::EIO));
        }
        let _ = copy_to(chain.writable(), head);
        let (named, succeeded) = (answer.node(), answer.header().error == 0);
        let learned = Learned {
            told: Told {
                changed: answer.changed,
                new: (succeeded && opcode == Opcode::Mknod).then_some(named),
            },
            answered: missing(opcode, &answer, chain)
                .map(|extended| Answered::Lacks(header.nodeid, extended)),
        };
        if let Some(file) = answer.file {
            let access = match opcode {
                Opcode::Open => {
                    let flags = read_at::<u32>(chain, IN_HEADER).unwrap_or(0);
                    access_of(flags)
                }
                _ => Access::Write,
            };
            let node = match opcode {
                Opcode::Open => header.nodeid,
                _ => named,
            };
            self.keep(node, access, file)?;
        }
        if opcode == Opcode::Setattr && succeeded {
            self.resized(header.nodeid, chain)?;
        }
        Ok((u32::try_from(answer.length).unwrap_or(u32::MAX), learned))
    }

    fn file(&self, node: u64, access: Access) -> io::Result<Arc<File>> {
        if let Some(file) = self.files.get(node, access) {
            return Ok(file);
        }
        let file = self.channel.open(node, access)?;
        self.keep(node, access, file)
    }

    /// Keeps a file that the broker has opened. Overlayfs makes another file
    /// for whoever writes: then that is what the window has to show.
    fn keep(&self, node: u64, access: Access, file: File) -> io::Result<Arc<File>> {
        let file = self.files.put(node, access, file);
        if let (Access::Write, Some(window)) = (access, &self.window) {
            window.renew(node, &file)?;
        }
        Ok(file)
    }

    /// After attributes have been set: if that was the length, overlayfs may
    /// have made another file, and the window shows the old one.
    fn resized(&self, node: u64, chain: &Chain<'_>) -> io::Result<()> {
        let valid = read_at::<u32>(chain, IN_HEADER).unwrap_or(0);
        let shown = |window: &Arc<FileWindow>| window.shows(node);
        if valid & fattr::SIZE != 0 && self.window.as_ref().is_some_and(shown) {
            self.file(node, Access::Write)?;
        }
        Ok(())
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
        let at = offset(write.offset)?;
        let write_data = || sys::write_at(&file, &data, at, append);
        let written = if write.write_flags & WRITE_KILL_SUIDGID != 0 {
            sys::unprivileged(write_data)
        } else {
            write_data()
        }?;
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
        // Where it collects writes, the guest's kernel asks without writing
        // them first: what is a hole here may be data there, and whoever copies
        // around holes would lose them. Refused once, it asks no more and
        // takes all of each file for data.
        if !self.appends {
            return Err(errno(libc::ENOSYS));
        }
        let seek: LseekIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let file = self.any_file(header.nodeid)?;
        // A negative position is the file system's to refuse, which has a
        // special error for it.
        let found = sys::seek_data(&file, seek.offset.cast_signed(), seek.whence)?;
        put(chain, &LseekOut { offset: found })
    }

    fn allocate(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let wanted: FallocateIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let file = self.file(header.nodeid, Access::Write)?;
        let (from, length) = (offset(wanted.offset)?, offset(wanted.length)?);
        as_caller(header, || sys::allocate(&file, wanted.mode, from, length))?;
        Ok(0)
    }

    /// Does what a request asks of locks; `None` if there is more to it.
    fn lock(
        &self,
        locks: &Locks,
        opcode: Opcode,
        header: &InHeader,
        chain: &Chain<'_>,
    ) -> Option<io::Result<Done>> {
        let node = header.nodeid;
        match opcode {
            Opcode::Flush => {
                let flush: FlushIn = read_at(chain, IN_HEADER)?;
                locks.closed(node, flush.lock_owner);
                Some(Ok(Done::Written(0)))
            }
            Opcode::Release => {
                let release: ReleaseIn = read_at(chain, IN_HEADER)?;
                locks.released(node, release.fh);
                None
            }
            Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => {
                Some(self.ask_locks(locks, opcode, header, chain))
            }
            _ => None,
        }
    }

    fn ask_locks(
        &self,
        locks: &Locks,
        opcode: Opcode,
        header: &InHeader,
        chain: &Chain<'_>,
    ) -> io::Result<Done> {
        let node = header.nodeid;
        let request: LkIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let wanted = Wanted::parse(node, &request)?;
        let open = |access| self.channel.open(node, access);
        if opcode == Opcode::Getlk {
            let lk = locks.get(&wanted, open)?;
            return put(chain, &LkOut { lk }).map(Done::Written);
        }
        let result = locks.set(&wanted, open);
        if opcode == Opcode::Setlkw {
            if let Err(error) = &result
                && error.kind() == io::ErrorKind::WouldBlock
            {
                locks.wait(header.unique, &wanted)?;
                return Ok(Done::Waits);
            }
            locks.waits().end(header.unique);
        }
        result.map(|()| Done::Written(0))
    }

    fn set_up_mapping(&self, header: &InHeader, chain: &Chain<'_>) -> io::Result<Written> {
        let window = self.window.as_ref().ok_or_else(|| errno(libc::ENOSYS))?;
        let wanted: SetupmappingIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        let units = window.range(wanted.moffset, wanted.len)?;
        let writable = wanted.flags & SETUPMAPPING_WRITE != 0;
        let access = if writable {
            Access::Write
        } else {
            Access::Read
        };
        let file = self.file(header.nodeid, access)?;
        window.set_up(units, header.nodeid, &file, wanted.foffset, writable)?;
        // Somebody may have begun to write meanwhile.
        if let Some(file) = self.files.get(header.nodeid, Access::Write) {
            window.renew(header.nodeid, &file)?;
        }
        Ok(0)
    }

    fn remove_mappings(&self, chain: &Chain<'_>) -> io::Result<Written> {
        let window = self.window.as_ref().ok_or_else(|| errno(libc::ENOSYS))?;
        let wanted: RemovemappingIn = read_at(chain, IN_HEADER).ok_or_else(invalid)?;
        if total(chain.readable()) > MAX_REQUEST {
            return Err(invalid());
        }
        let mut at = IN_HEADER.saturating_add(size_of::<RemovemappingIn>());
        for _ in 0..wanted.count {
            let one: RemovemappingOne = read_at(chain, at).ok_or_else(invalid)?;
            window.remove(window.range(one.moffset, one.len)?)?;
            at = at.saturating_add(size_of::<RemovemappingOne>());
        }
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
        let (from, to) = (offset(copy.off_in)?, offset(copy.off_out)?);
        let copied = as_caller(header, || {
            sys::copy_range((&source, from), (&target, to), length)
        })?;
        let answer = WriteOut {
            size: u32::try_from(copied).unwrap_or(0),
            padding: 0,
        };
        put(chain, &answer)
    }
}

/// Forgets in one message, far below [`MAX_REQUEST`].
const MOST_TOLD: usize = 1024;

/// Whether a request can be served while its guest's processor waits: it asks
/// for a name, or for so little data that copying them is no time.
pub(super) fn is_quick(chain: &Chain<'_>) -> bool {
    const SMALL: u32 = 128 << 10;
    let Some(header) = read_at::<InHeader>(chain, 0) else {
        return true;
    };
    match Opcode::from_number(header.opcode) {
        // Where READ and WRITE say how much, they agree.
        Some(Opcode::Read | Opcode::Write) => {
            read_at::<ReadIn>(chain, IN_HEADER).is_none_or(|read| read.size <= SMALL)
        }
        Some(
            Opcode::Fsync
            | Opcode::Fsyncdir
            | Opcode::Syncfs
            | Opcode::Fallocate
            | Opcode::CopyFileRange
            | Opcode::Setlkw,
        ) => false,
        _ => true,
    }
}

/// Bytes that one COPY_FILE_RANGE copies.
const LARGEST_COPY: usize = 64 << 20;

/// What follows a request's header, if it is one that the broker takes.
fn body<'m>(chain: &Chain<'m>) -> io::Result<Vec<GuestSlice<'m>>> {
    if total(chain.readable()) > MAX_REQUEST {
        return Err(invalid());
    }
    Ok(part(chain.readable(), IN_HEADER, usize::MAX))
}

/// The second node of a request that names two.
fn other_node(opcode: Opcode, chain: &Chain<'_>) -> Option<u64> {
    match opcode {
        Opcode::Link => read_at::<LinkIn>(chain, IN_HEADER).map(|link| link.oldnodeid),
        _ => read_at::<CopyFileRangeIn>(chain, IN_HEADER).map(|copy| copy.nodeid_out),
    }
}

/// The extended attribute that GETXATTR asks for, if it is one of interest.
fn asked_for(chain: &Chain<'_>) -> Option<Extended> {
    let mut name = [0; 32];
    let at = IN_HEADER.saturating_add(size_of::<GetxattrIn>());
    let length = copy_from(&part(chain.readable(), at, name.len()), &mut name);
    Extended::from_name(name.get(..length)?)
}

/// What a file lacks by an answer about its extended attributes.
fn missing(opcode: Opcode, answer: &Answer, chain: &Chain<'_>) -> Option<Extended> {
    let header = answer.header();
    match opcode {
        Opcode::Getxattr if header.error == -libc::ENODATA => asked_for(chain),
        // The list, or its size.
        Opcode::Listxattr if header.error == 0 => {
            let none = match answer.length.checked_sub(OUT_HEADER)? {
                0 => true,
                _ => read_at::<GetxattrIn>(chain, IN_HEADER)?.size == 0 && answer.node() == 0,
            };
            none.then_some(Extended::Any)
        }
        _ => None,
    }
}

/// Changes a file with the privilege that the caller seems to have: these
/// requests have no flag that says it, as WRITE has.
fn as_caller<T>(header: &InHeader, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if header.uid == 0 {
        change()
    } else {
        sys::unprivileged(change)
    }
}

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

/// Completes an answer with what follows its header, or with an error; returns
/// its length.
fn answer(header: &InHeader, chain: &Chain<'_>, result: io::Result<Written>) -> u32 {
    let (error, written) = match result {
        Ok(written) => (0, written),
        Err(error) => (
            error.raw_os_error().unwrap_or(libc::EIO).saturating_neg(),
            0,
        ),
    };
    let length = u32::try_from(OUT_HEADER.saturating_add(written)).unwrap_or(u32::MAX);
    let answer = OutHeader {
        len: length,
        error,
        unique: header.unique,
    };
    let _ = copy_to(chain.writable(), answer.as_bytes());
    length
}

/// Writes a structure behind the answer's header.
fn put<T: IntoBytes + Immutable>(chain: &Chain<'_>, value: &T) -> io::Result<Written> {
    let room: Vec<GuestSlice<'_>> = part(chain.writable(), OUT_HEADER, size_of::<T>());
    if total(&room) < size_of::<T>() {
        return Err(errno(libc::EOVERFLOW));
    }
    Ok(copy_to(&room, value.as_bytes()))
}
