//! A request under way: the system call that it needs next, and what follows
//! from its result. The same for every engine.
//!
//! ```text
//!  read, write ──short──▶ the rest of it
//!  write zeroes ──not possible──▶ zeros written, piece by piece
//!  any change, without a write cache ──▶ data made durable
//! ```

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::atomic::Ordering;

use super::device::Disk;
use super::request::{Extent, Operation, Outcome};
use crate::virtio::queue::{GuestSlice, copy_to, part};

/// What one write of zeros writes at most.
pub(super) const ZEROS_AT_ONCE: i64 = 1 << 20;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A system call on the image.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a, 'm> {
    /// preadv(2).
    Read(&'a [GuestSlice<'m>], i64),
    /// pwritev2(2), durable if `through`.
    Write {
        from: &'a [GuestSlice<'m>],
        offset: i64,
        through: bool,
    },
    /// pwritev2(2) of so many zeros, at most [`ZEROS_AT_ONCE`].
    Zeros { offset: i64, bytes: i64 },
    /// fallocate(2).
    Allocate { mode: i32, offset: i64, bytes: i64 },
    /// fdatasync(2).
    Synchronize,
}

/// What the result of a call leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// Another call.
    Again,
    /// The answer.
    Done(Outcome),
}

#[derive(Debug)]
enum Step<'m> {
    Read(Vec<GuestSlice<'m>>, Extent),
    Write(Vec<GuestSlice<'m>>, Extent),
    Discard(Extent),
    ZeroRange { extent: Extent, mode: i32 },
    Zeros(Extent),
    Synchronize,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Job<'m> {
    step: Step<'m>,
    /// There is no write cache: what was written must be durable.
    through: bool,
    /// Bytes that a successful read has filled.
    data: u32,
}

impl<'m> Job<'m> {
    /// What it takes to do `operation`; or its answer, where that is nothing.
    pub(super) fn new(operation: Operation<'m>, disk: &Disk) -> Result<Self, (Outcome, u32)> {
        let mut data = 0;
        let step = match operation {
            Operation::Read(extent, into) => {
                data = u32::try_from(extent.bytes).unwrap_or(u32::MAX);
                Step::Read(into, extent)
            }
            Operation::Write(extent, from) => Step::Write(from, extent),
            Operation::Flush => Step::Synchronize,
            Operation::Discard(extent) => Step::Discard(extent),
            Operation::WriteZeroes { extent, unmap } => Step::ZeroRange {
                extent,
                mode: if unmap { PUNCH } else { ZERO },
            },
            Operation::Identify(into) => {
                let written = copy_to(&into, &disk.identity);
                return Err((Outcome::Ok, u32::try_from(written).unwrap_or(0)));
            }
        };
        let through = disk.write_through.load(Ordering::Relaxed);
        Ok(Self {
            step,
            through,
            data,
        })
    }

    /// Bytes that a success has put into guest memory.
    pub(super) fn data(&self) -> u32 {
        self.data
    }

    /// The next call.
    pub(super) fn call(&self) -> Call<'_, 'm> {
        match &self.step {
            Step::Read(into, extent) => Call::Read(into, extent.offset),
            Step::Write(from, extent) => Call::Write {
                from,
                offset: extent.offset,
                through: self.through,
            },
            Step::Discard(extent) => Call::Allocate {
                mode: PUNCH,
                offset: extent.offset,
                bytes: extent.bytes,
            },
            Step::ZeroRange { extent, mode } => Call::Allocate {
                mode: *mode,
                offset: extent.offset,
                bytes: extent.bytes,
            },
            Step::Zeros(extent) => Call::Zeros {
                offset: extent.offset,
                bytes: extent.bytes.min(ZEROS_AT_ONCE),
            },
            Step::Synchronize => Call::Synchronize,
        }
    }

    /// Takes the call's result: what it has moved, or the error negated.
    pub(super) fn advance(&mut self, result: i32) -> Progress {
        let moved = match result {
            error if error == libc::EINTR.saturating_neg() => return Progress::Again,
            error if error < 0 => return self.failed(error.saturating_neg()),
            moved => i64::from(moved),
        };
        match &mut self.step {
            Step::Read(slices, extent) | Step::Write(slices, extent) => {
                // Nothing moved: an image that ends before the disk does.
                if moved == 0 {
                    return Progress::Done(Outcome::IoError);
                }
                if shorten(extent, moved) {
                    return Progress::Done(Outcome::Ok);
                }
                *slices = part(slices, usize::try_from(moved).unwrap_or(0), usize::MAX);
                Progress::Again
            }
            Step::Zeros(extent) => {
                if moved == 0 {
                    return Progress::Done(Outcome::IoError);
                }
                if shorten(extent, moved) {
                    return self.changed();
                }
                Progress::Again
            }
            Step::Discard(_) | Step::ZeroRange { .. } => self.changed(),
            Step::Synchronize => Progress::Done(Outcome::Ok),
        }
    }

    fn failed(&mut self, errno: i32) -> Progress {
        match &self.step {
            Step::Discard(_) if errno == libc::EOPNOTSUPP => Progress::Done(Outcome::Unsupported),
            // Block devices of larger sectors say EINVAL to a part of one.
            Step::ZeroRange { extent, .. } if matches!(errno, libc::EOPNOTSUPP | libc::EINVAL) => {
                self.step = Step::Zeros(*extent);
                Progress::Again
            }
            _ => Progress::Done(Outcome::IoError),
        }
    }

    /// After a change that no flag makes durable.
    fn changed(&mut self) -> Progress {
        if !self.through {
            return Progress::Done(Outcome::Ok);
        }
        self.step = Step::Synchronize;
        Progress::Again
    }
}

/// Takes `moved` bytes off the front; true: nothing is left.
fn shorten(extent: &mut Extent, moved: i64) -> bool {
    extent.offset = extent.offset.saturating_add(moved);
    extent.bytes = extent.bytes.saturating_sub(moved);
    extent.bytes <= 0
}
