//! The device: what the driver may know of the disk, and what the engine
//! needs of it. The work is the engine's.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use protocol::control::BlockLimits;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::limiter::Limiter;
use super::request::{DiskShape, SECTOR};
use crate::virtio::{Device, QueueFault, Queues};

/// Descriptors of a queue. Requests take three at least.
const QUEUE_SIZE: u16 = 256;

/// Queues at most: one thread serves them all, more would only save the
/// driver's locks.
const MOST_QUEUES: usize = 4;
const QUEUE_SIZES: [u16; MOST_QUEUES] = [QUEUE_SIZE; MOST_QUEUES];

/// Buffers of a request's data: two requests fit into a queue, header and
/// status included.
pub(super) const MOST_DATA_SEGMENTS: usize = 126;

/// Bytes of one such buffer.
const MOST_SEGMENT_BYTES: u32 = 1 << 20;

/// Sectors of one discard or write-zeroes request: 1 GiB.
pub(super) const MOST_RANGE_SECTORS: u32 = 1 << 21;

/// Bytes of the serial that a driver may ask for.
const IDENTITY: usize = VIRTIO_BLK_ID_BYTES as usize;

/// `struct virtio_blk_config`, as far as the features need it.
const CONFIG: usize = 60;

/// The host's page: writes of whole ones need not read first.
const PHYSICAL_BLOCK: u32 = 4096;

/// An image that makes no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing that has a size.
    #[error("the image is neither a regular file nor a block device")]
    Kind,
    /// It cannot be looked at.
    #[error("find the image's size")]
    Look(#[from] io::Error),
    /// Its size is none that a disk has.
    #[error(
        "an image of {bytes} bytes is no disk; a raw image has whole sectors of {SECTOR} bytes"
    )]
    Size {
        /// Bytes that it has.
        bytes: u64,
    },
}

/// What a disk is to be.
#[derive(Clone, Debug, Default)]
pub struct BlockSettings {
    /// No writes.
    pub read_only: bool,
    /// What the driver reads as its serial; cut at 20 bytes.
    pub identity: String,
    /// How fast it may be.
    pub limits: BlockLimits,
    /// Processors that may use it.
    pub vcpus: u8,
}

/// What the engine's threads share.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) shape: DiskShape,
    pub(super) identity: [u8; IDENTITY],
    /// The driver knows no flush: each write must be durable by itself.
    pub(super) write_through: AtomicBool,
    limiter: Mutex<Limiter>,
}

impl Disk {
    /// The limits, for a moment.
    pub(super) fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One virtio-blk device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queues: usize,
    config: [u8; CONFIG],
}

impl Block {
    /// A disk of what `image` holds: all of it, raw.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn new(image: File, settings: &BlockSettings) -> Result<Self, DiskError> {
        let kind = image.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind);
        }
        // The length of a block device is in no metadata.
        let bytes = (&image).seek(SeekFrom::End(0))?;
        let whole = bytes > 0 && bytes.is_multiple_of(SECTOR) && i64::try_from(bytes).is_ok();
        let sectors = bytes
            .checked_div(SECTOR)
            .filter(|_| whole)
            .ok_or(DiskError::Size { bytes })?;
        let shape = DiskShape {
            sectors,
            read_only: settings.read_only,
        };
        let mut identity = [0; IDENTITY];
        for (to, from) in identity.iter_mut().zip(settings.identity.bytes()) {
            *to = from;
        }
        let queues = usize::from(settings.vcpus).clamp(1, MOST_QUEUES);
        Ok(Self {
            disk: Arc::new(Disk {
                file: image,
                shape,
                identity,
                write_through: AtomicBool::new(true),
                limiter: Mutex::new(Limiter::new(settings.limits, Instant::now())),
            }),
            queues,
            config: config(shape, queues),
        })
    }

    /// What the engine works on.
    pub(super) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// How many queues there are.
    pub(super) fn queues(&self) -> usize {
        self.queues
    }
}

/// `struct virtio_blk_config` (5.2.4).
fn config(shape: DiskShape, queues: usize) -> [u8; CONFIG] {
    let mut config = [0; CONFIG];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let segments = u32::try_from(MOST_DATA_SEGMENTS).unwrap_or(1);
    let sector = u32::try_from(SECTOR).unwrap_or(0);
    let exponent = PHYSICAL_BLOCK.trailing_zeros();
    let exponent = exponent.saturating_sub(sector.trailing_zeros());
    let blocks = PHYSICAL_BLOCK.checked_div(sector).unwrap_or(1);
    let queues = u16::try_from(queues).unwrap_or(1);
    put(0, &shape.sectors.to_le_bytes());
    put(8, &MOST_SEGMENT_BYTES.to_le_bytes());
    put(12, &segments.to_le_bytes());
    put(20, &sector.to_le_bytes());
    // Topology: blocks of 2^n sectors, the first of them aligned.
    put(24, &[u8::try_from(exponent).unwrap_or(0), 0]);
    put(26, &u16::try_from(blocks).unwrap_or(1).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MOST_RANGE_SECTORS.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &blocks.to_le_bytes());
    put(48, &MOST_RANGE_SECTORS.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    config
}

impl Device for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        let changes = if self.disk.shape.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        always | changes
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES.get(..self.queues).unwrap_or(&QUEUE_SIZES)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn activate(&mut self, features: u64) {
        let through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.disk.write_through.store(through, Ordering::Relaxed);
    }

    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), QueueFault> {
        Ok(())
    }
}
