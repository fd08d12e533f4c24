//! The end of the console's output, kept for the report of how it ended.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::collections::VecDeque;

/// Bytes kept.
const CAPACITY: usize = 64 << 10;
/// Lines reported at most.
const LINES: usize = 200;
/// Bytes reported at most, counted as JSON may escape them: the report is one
/// control message of at most 64 KiB.
const REPORT: usize = 48 << 10;
/// What Linux prints first when it panics.
const PANIC: &str = "Kernel panic - not syncing: ";

/// A ring of the last bytes. Grows with use up to its capacity.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Adds output, forgetting the oldest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let keep = bytes.len().saturating_sub(CAPACITY);
        let bytes = bytes.get(keep..).unwrap_or_default();
        let room = CAPACITY.saturating_sub(bytes.len());
        let excess = self.bytes.len().saturating_sub(room);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// The last lines that fit into a report, oldest first. Hostile text.
    pub(crate) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut room = REPORT;
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines().rev().take(LINES) {
            let line = line.trim_end();
            let cost = line.chars().fold(4usize, |sum, char| {
                sum.saturating_add(if char.is_ascii_graphic() || char == ' ' {
                    2
                } else {
                    6
                })
            });
            let Some(rest) = room.checked_sub(cost) else {
                break;
            };
            room = rest;
            lines.push(line.to_owned());
        }
        lines.reverse();
        lines
    }

    /// The message of the last panic in `lines`, if there was one.
    pub(crate) fn panic_message(lines: &[String]) -> Option<String> {
        lines.iter().rev().find_map(|line| {
            line.split_once(PANIC)
                .map(|(_, message)| message.trim().to_owned())
        })
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\r\n").as_bytes());
        }
        assert!(tail.bytes.len() <= CAPACITY);
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[LINES - 1], "line 99999");
    }

    #[test]
    fn tail_takes_one_write_larger_than_itself() {
        let mut tail = Tail::default();
        tail.push(b"old");
        tail.push(&vec![b'x'; CAPACITY * 2]);
        assert_eq!(tail.bytes.len(), CAPACITY);
    }

    #[test]
    fn report_of_control_characters_stays_small() {
        let mut tail = Tail::default();
        tail.push(&b"\x01\x02\xff\n".repeat(20_000));
        let cost: usize = tail
            .lines()
            .iter()
            .map(|line| line.chars().count() * 6)
            .sum();
        assert!(cost <= REPORT);
    }

    #[test]
    fn panic_is_found_behind_its_time_stamp() {
        let mut tail = Tail::default();
        tail.push(b"[    0.1] Kernel panic - not syncing: VFS: no root\r\nmore\n");
        let message = Tail::panic_message(&tail.lines());
        assert_eq!(message.as_deref(), Some("VFS: no root"));
    }
}
