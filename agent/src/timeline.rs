//! The guest's points of the start timeline, stamped with its time stamp
//! counter (`protocol::timeline` says why).

use std::sync::{Mutex, PoisonError};

use protocol::timeline::tsc;

/// Points recorded so far, in order.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Mutex<Vec<(&'static str, u64)>>);

/// Enough for the starts of a pod; a timeline is about starts, so later
/// points are not worth memory.
const MOST_POINTS: usize = 256;

impl Timeline {
    /// Records a point now.
    pub(crate) fn stamp(&self, name: &'static str) {
        let mut points = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if points.len() < MOST_POINTS {
            points.push((name, tsc()));
        }
    }

    /// All points.
    pub(crate) fn points(&self) -> Vec<(&'static str, u64)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
