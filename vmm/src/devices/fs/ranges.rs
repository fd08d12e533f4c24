//! Ranges of a file's bytes, and the set of those that somebody has locked.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use protocol::fuse::FileLock;

/// Bytes of a file from the first to the last, positions that the kernel has
/// numbers for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Range {
    first: i64,
    last: i64,
}

impl Range {
    /// The whole file, however long.
    pub(super) const ALL: Self = Self {
        first: 0,
        last: i64::MAX,
    };

    /// The range that a guest names; `None` if there is none such.
    pub(super) fn of(lock: &FileLock) -> Option<Self> {
        let (first, last) = (lock.start.try_into().ok()?, lock.end.try_into().ok()?);
        (first <= last).then_some(Self { first, last })
    }

    /// The range that starts at `first`, `length` bytes long; 0 is up to the
    /// end of all positions (fcntl(2)).
    pub(super) fn from_length(first: i64, length: i64) -> Option<Self> {
        let last = match length {
            0 => i64::MAX,
            length => first.checked_add(length)?.checked_sub(1)?,
        };
        (0 <= first && first <= last).then_some(Self { first, last })
    }

    /// Its first byte.
    pub(super) fn first(self) -> i64 {
        self.first
    }

    /// Its length as fcntl(2) has it.
    pub(super) fn length(self) -> i64 {
        if self.last == i64::MAX {
            0
        } else {
            self.last.saturating_sub(self.first).saturating_add(1)
        }
    }

    /// For the guest.
    pub(super) fn to_lock(self, write: bool, pid: u32) -> FileLock {
        let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
        FileLock {
            start: self.first.cast_unsigned(),
            end: self.last.cast_unsigned(),
            kind: kind.cast_unsigned(),
            pid,
        }
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn encloses(self, other: Self) -> bool {
        self.first < other.first && other.last < self.last
    }

    /// Both as one, if there is nothing between them.
    fn joined(self, other: Self) -> Option<Self> {
        let touches = |one: Self, next: Self| one.last.checked_add(1) == Some(next.first);
        (touches(self, other) || touches(other, self)).then(|| Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        })
    }

    /// What is left of it without `hole`: before and behind.
    fn without(self, hole: Self) -> [Option<Self>; 2] {
        let before = hole.first.checked_sub(1).map(|last| Self { last, ..self });
        let behind = hole.last.checked_add(1).map(|first| Self { first, ..self });
        [before, behind].map(|part| part.filter(|part| part.first <= part.last))
    }
}

/// A locked range, and whether against reading as well.
pub(super) type Locked = (Range, bool);

/// What one owner has locked of one file: ranges that do not overlap, nor touch
/// if they are locked in the same way. As many as the host's kernel has.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<Locked>);

impl Ranges {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Locked> {
        self.0.iter().copied()
    }

    /// Takes a range away.
    pub(super) fn unlock(&mut self, range: Range) {
        if !self.0.iter().any(|(held, _)| held.overlaps(range)) {
            return;
        }
        let mut left = Vec::with_capacity(self.0.len().saturating_add(1));
        for (held, write) in self.0.drain(..) {
            if held.overlaps(range) {
                let parts = held.without(range).into_iter().flatten();
                left.extend(parts.map(|part| (part, write)));
            } else {
                left.push((held, write));
            }
        }
        self.0 = left;
    }

    /// Adds a range, in place of what overlaps with it.
    pub(super) fn lock(&mut self, range: Range, write: bool) {
        self.unlock(range);
        let mut whole = range;
        self.0.retain(|(held, how)| {
            match held.joined(whole).filter(|_| *how == write) {
                Some(joined) => whole = joined,
                None => return true,
            }
            false
        });
        self.0.push((whole, write));
    }

    /// Whether to unlock a range would leave more of them.
    pub(super) fn are_split_by(&self, range: Range) -> bool {
        self.iter().any(|(held, _)| held.encloses(range))
    }

    /// The first that keeps somebody else from locking `range`.
    pub(super) fn against(&self, range: Range, write: bool) -> Option<Locked> {
        let stops = |held: &Locked| held.0.overlaps(range) && (write || held.1);
        self.iter().filter(stops).min_by_key(|held| held.0.first)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: i64, last: i64) -> Range {
        Range { first, last }
    }

    #[test]
    fn range_is_one_that_the_kernel_has_numbers_for() {
        let lock = |start, end| FileLock {
            start,
            end,
            ..FileLock::default()
        };
        let most = i64::MAX.cast_unsigned();
        assert_eq!(Range::of(&lock(0, most)), Some(Range::ALL));
        assert_eq!(Range::of(&lock(7, 7)).unwrap().length(), 1);
        assert_eq!(Range::of(&lock(7, most)).unwrap().length(), 0);
        for (start, end) in [(8, 7), (0, most + 1), (u64::MAX, u64::MAX), (most + 1, 0)] {
            assert_eq!(Range::of(&lock(start, end)), None);
        }
        assert_eq!(Range::from_length(7, 0), Some(range(7, i64::MAX)));
        assert_eq!(Range::from_length(7, 2), Some(range(7, 8)));
        for (first, length) in [(-1, 5), (7, -8), (i64::MAX, 2), (i64::MIN, i64::MIN)] {
            assert_eq!(Range::from_length(first, length), None);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Lock(Range, bool),
        Unlock(Range),
    }

    fn step() -> impl Strategy<Value = Step> {
        let some = (0_i64..40, 0_i64..12).prop_map(|(first, more)| range(first, first + more));
        prop_oneof![
            (some.clone(), any::<bool>()).prop_map(|(range, write)| Step::Lock(range, write)),
            some.prop_map(Step::Unlock),
        ]
    }

    proptest! {
        #[test]
        fn set_is_as_if_each_byte_had_a_lock_of_its_own(
            steps in proptest::collection::vec(step(), 0..40)
        ) {
            let (mut ranges, mut bytes) = (Ranges::default(), [None; 64]);
            for step in steps {
                let (range, value) = match step {
                    Step::Lock(range, write) => {
                        ranges.lock(range, write);
                        (range, Some(write))
                    }
                    Step::Unlock(range) => {
                        ranges.unlock(range);
                        (range, None)
                    }
                };
                for byte in range.first..=range.last {
                    bytes[usize::try_from(byte).unwrap()] = value;
                }
                for (at, byte) in (0_i64..).zip(bytes) {
                    let one = range_at(at);
                    prop_assert_eq!(ranges.against(one, true).map(|held| held.1), byte);
                    prop_assert_eq!(ranges.against(one, false).is_some(), byte == Some(true));
                }
                let runs = bytes.chunk_by(|one, next| one == next).filter(|run| run[0].is_some());
                prop_assert_eq!(ranges.len(), runs.count());
            }
        }
    }

    fn range_at(byte: i64) -> Range {
        range(byte, byte)
    }
}
