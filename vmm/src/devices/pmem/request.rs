//! The flush request: four bytes in, four bytes out.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::virtio::Chain;
use crate::virtio::queue::{copy_from, copy_to, total};

const FLUSH: u32 = 0;
const OK: u32 = 0;
const FAILED: u32 = 1;
const ANSWER_BYTES: usize = 4;

/// Answers the request in `chain`; returns how many bytes were written.
pub(super) fn answer(chain: &Chain<'_>) -> u32 {
    if total(chain.writable()) < ANSWER_BYTES {
        return 0; // no room for any answer
    }
    let mut kind = [0; 4];
    let whole = copy_from(chain.readable(), &mut kind) == kind.len();
    let result = if whole && u32::from_le_bytes(kind) == FLUSH {
        OK
    } else {
        FAILED
    };
    u32::try_from(copy_to(chain.writable(), &result.to_le_bytes())).unwrap_or(0)
}
