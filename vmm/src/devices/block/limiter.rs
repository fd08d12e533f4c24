//! Limits on bytes and operations per second.
//!
//! A token bucket, told as time: each request is paid for by the time that it
//! may take at most, and the next one waits until everything is paid. Whoever
//! was idle may go ahead by [`BURST`].

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use protocol::control::BlockLimits;

/// How far a disk that was idle may be ahead.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Bucket {
    per_second: NonZeroU64,
    /// When everything so far is paid.
    paid: Instant,
}

impl Bucket {
    fn new(per_second: NonZeroU64, now: Instant) -> Self {
        Self {
            per_second,
            paid: now,
        }
    }

    fn charge(&mut self, amount: u64, now: Instant) {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid.max(earliest);
        let rate = u128::from(self.per_second.get());
        let time = u128::from(amount)
            .saturating_mul(1_000_000_000)
            .checked_div(rate)
            .unwrap_or(0);
        let time = Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX));
        self.paid = from.checked_add(time).unwrap_or(from);
    }
}

/// The limits of one disk, over all its queues.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    pub(super) fn new(limits: BlockLimits, now: Instant) -> Self {
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        Self {
            bytes: bucket(limits.bytes_per_second),
            operations: bucket(limits.operations_per_second),
        }
    }

    /// Whether there are any.
    pub(super) fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// How long the next request has to wait, `None` if not at all.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        [&self.bytes, &self.operations]
            .into_iter()
            .flatten()
            .filter_map(|bucket| bucket.paid.checked_duration_since(now))
            .max()
            .filter(|wait| !wait.is_zero())
    }

    /// Notes an operation that moves so many bytes.
    pub(super) fn charge(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bytes: u64, operations: u64, now: Instant) -> Limiter {
        let limits = BlockLimits {
            bytes_per_second: NonZeroU64::new(bytes),
            operations_per_second: NonZeroU64::new(operations),
        };
        Limiter::new(limits, now)
    }

    #[test]
    fn rate_holds_over_time_after_a_burst() {
        let start = Instant::now();
        let mut now = start + Duration::from_secs(10);
        let mut limiter = limiter(0, 100, start);
        let mut done = 0;
        let end = now + Duration::from_secs(2);
        while now < end {
            match limiter.wait(now) {
                Some(wait) => now += wait,
                None => {
                    limiter.charge(4096, now);
                    done += 1;
                }
            }
        }
        // 200 in two seconds, and at most a tenth of a second's burst.
        assert!((200..=212).contains(&done), "{done}");
    }

    #[test]
    fn one_large_request_is_paid_before_the_next() {
        let now = Instant::now() + Duration::from_secs(10);
        let mut limiter = limiter(1 << 20, 0, now);
        assert_eq!(limiter.wait(now), None);
        limiter.charge(2 << 20, now);
        let wait = limiter.wait(now).unwrap();
        assert!(wait > Duration::from_millis(1800), "{wait:?}");
        assert_eq!(limiter.wait(now + wait), None);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let now = Instant::now();
        let mut limiter = limiter(0, 0, now);
        limiter.charge(u64::MAX, now);
        assert!(limiter.is_unlimited());
        assert_eq!(limiter.wait(now), None);
    }
}
