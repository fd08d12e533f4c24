//! A request, parsed: what is to be done lies within the disk, what is to be
//! filled or written lies in guest memory, and so does the status byte.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::device::{MOST_DATA_SEGMENTS, MOST_RANGE_SECTORS};
use crate::virtio::Chain;
use crate::virtio::queue::{GuestSlice, copy_from, copy_to, part, total};

/// Bytes of a sector, the unit of every position (5.2.6).
pub(super) const SECTOR: u64 = 512;

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
const HEADER: usize = 16;

/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE: usize = 16;

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskShape {
    /// Whole sectors of the image; their bytes fit into an `i64`.
    pub(super) sectors: u64,
    /// No writes.
    pub(super) read_only: bool,
}

/// Whole sectors within the disk, in bytes: as file offsets they cannot
/// overflow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    pub(super) offset: i64,
    pub(super) bytes: i64,
}

impl Extent {
    fn new(sector: u64, bytes: u64, shape: DiskShape) -> Option<Self> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return None;
        }
        let end = sector.checked_add(bytes.checked_div(SECTOR)?)?;
        if end > shape.sectors {
            return None;
        }
        Some(Self {
            offset: i64::try_from(sector.checked_mul(SECTOR)?).ok()?,
            bytes: i64::try_from(bytes).ok()?,
        })
    }
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Operation<'m> {
    /// Fill guest memory from the disk.
    Read(Extent, Vec<GuestSlice<'m>>),
    /// Write guest memory to the disk.
    Write(Extent, Vec<GuestSlice<'m>>),
    /// Make durable what was written.
    Flush,
    /// Its content is not needed any more.
    Discard(Extent),
    /// Make it read as zeros; `unmap`: without space, if possible.
    WriteZeroes {
        /// Where.
        extent: Extent,
        /// Space may be given back.
        unmap: bool,
    },
    /// Say who the disk is.
    Identify(Vec<GuestSlice<'m>>),
}

impl Operation<'_> {
    /// Bytes between disk and memory, for the limits.
    pub(super) fn moves(&self) -> u64 {
        match self {
            Self::Read(extent, _) | Self::Write(extent, _) => extent.bytes.unsigned_abs(),
            _ => 0,
        }
    }
}

/// The byte that the device answers in.
#[derive(Debug)]
pub(super) struct Status<'m>(GuestSlice<'m>);

/// What is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// Done.
    Ok,
    /// The host could not, or the request is wrong.
    IoError,
    /// The device does not do this.
    Unsupported,
}

impl Status<'_> {
    /// Writes the answer; returns what the used ring says was written, of which
    /// `data` bytes lie before the status.
    pub(super) fn answer(&self, outcome: Outcome, data: u32) -> u32 {
        let value = match outcome {
            Outcome::Ok => VIRTIO_BLK_S_OK,
            Outcome::IoError => VIRTIO_BLK_S_IOERR,
            Outcome::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        // One byte in guest memory: it fits.
        let _ = copy_to(&[self.0], &[u8::try_from(value).unwrap_or(1)]);
        match outcome {
            Outcome::Ok => data.saturating_add(1),
            // Of the data nothing is promised, so neither is what lies behind.
            Outcome::IoError | Outcome::Unsupported => u32::from(data == 0),
        }
    }
}

/// A request that is not carried out.
#[derive(Debug)]
pub(super) enum BadRequest<'m> {
    /// There is no room for an answer.
    NoStatus,
    /// Answered at once.
    Refused(Status<'m>, Outcome),
}

/// A request in its chain.
#[derive(Debug)]
pub(super) struct BlockRequest<'m> {
    pub(super) operation: Operation<'m>,
    pub(super) status: Status<'m>,
}

impl<'m> BlockRequest<'m> {
    /// Reads the request that a chain is (5.2.6).
    pub(super) fn parse(chain: &Chain<'m>, shape: DiskShape) -> Result<Self, BadRequest<'m>> {
        let room = total(chain.writable());
        let before = room.checked_sub(1).ok_or(BadRequest::NoStatus)?;
        let status = part(chain.writable(), before, 1)
            .pop()
            .map(Status)
            .ok_or(BadRequest::NoStatus)?;
        match operation(chain, before, shape) {
            Ok(operation) => Ok(Self { operation, status }),
            Err(outcome) => Err(BadRequest::Refused(status, outcome)),
        }
    }
}

fn operation<'m>(
    chain: &Chain<'m>,
    room: usize,
    shape: DiskShape,
) -> Result<Operation<'m>, Outcome> {
    let most = MOST_DATA_SEGMENTS.saturating_add(2);
    let segments = chain
        .readable()
        .len()
        .saturating_add(chain.writable().len());
    let mut header = [0; HEADER];
    if copy_from(chain.readable(), &mut header) != HEADER || segments > most {
        return Err(Outcome::IoError);
    }
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let extent = |bytes: usize| {
        let bytes = u64::try_from(bytes).map_err(|_| Outcome::IoError)?;
        Extent::new(sector, bytes, shape).ok_or(Outcome::IoError)
    };
    let kind = u32::from_le_bytes([a, b, c, d]);
    let changes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if changes && shape.read_only {
        return Err(Outcome::IoError);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            let into = part(chain.writable(), 0, room);
            Ok(Operation::Read(extent(room)?, into))
        }
        VIRTIO_BLK_T_OUT => {
            let from = part(chain.readable(), HEADER, usize::MAX);
            Ok(Operation::Write(extent(total(&from))?, from))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_DISCARD => {
            let (extent, flags) = range(chain, shape)?;
            // Only write-zeroes knows a flag (5.2.6.2).
            if flags == 0 {
                Ok(Operation::Discard(extent))
            } else {
                Err(Outcome::Unsupported)
            }
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let (extent, flags) = range(chain, shape)?;
            if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Outcome::Unsupported);
            }
            let unmap = flags != 0;
            Ok(Operation::WriteZeroes { extent, unmap })
        }
        VIRTIO_BLK_T_GET_ID => Ok(Operation::Identify(part(chain.writable(), 0, room))),
        _ => Err(Outcome::Unsupported),
    }
}

/// The one range of a discard or write-zeroes request: the configuration
/// offers no more than one.
fn range(chain: &Chain<'_>, shape: DiskShape) -> Result<(Extent, u32), Outcome> {
    let data = part(chain.readable(), HEADER, usize::MAX);
    let mut bytes = [0; RANGE];
    if total(&data) != RANGE || copy_from(&data, &mut bytes) != RANGE {
        return Err(Outcome::IoError);
    }
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    if count > MOST_RANGE_SECTORS {
        return Err(Outcome::IoError);
    }
    let length = u64::from(count).saturating_mul(SECTOR);
    let extent = Extent::new(sector, length, shape).ok_or(Outcome::IoError)?;
    Ok((extent, u32::from_le_bytes([f0, f1, f2, f3])))
}
