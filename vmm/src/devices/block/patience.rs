//! When the thread of a disk lets the guest go on.
//!
//! A thread that wakes for each request interrupts the guest, where both have
//! one processor, before the guest has asked for the next: then each of many
//! requests costs two changes of thread, an interrupt and its answer. Who asks
//! for one at a time waits for it, and there the thread is to run at once. So
//! it begins patient, is eager after a while of single requests, and tries
//! again now and then.

/// Rounds with one request each until they are believed to be all.
const ALONE: u32 = 64;

/// Rounds until it is tried again.
const EAGER: u32 = 4096;

/// Whether the thread is patient, and for how long it has been so in vain.
#[derive(Debug)]
pub(super) struct Patience {
    patient: bool,
    rounds: u32,
}

impl Patience {
    /// A patient one.
    pub(super) fn new() -> Self {
        Self {
            patient: true,
            rounds: 0,
        }
    }

    /// After a round with so many requests: what it is to be, if that changes.
    pub(super) fn after(&mut self, requests: usize) -> Option<bool> {
        if requests == 0 {
            return None;
        }
        self.rounds = match (self.patient, requests) {
            (true, 2..) => 0,
            _ => self.rounds.saturating_add(1),
        };
        let change = match self.patient {
            true => self.rounds >= ALONE,
            false => requests > 1 || self.rounds >= EAGER,
        };
        if !change {
            return None;
        }
        self.patient = !self.patient;
        self.rounds = 0;
        Some(self.patient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_requests_make_it_eager_for_a_while() {
        let mut patience = Patience::new();
        for _ in 1..ALONE {
            assert_eq!((patience.after(1), patience.after(0)), (None, None));
        }
        assert_eq!(patience.after(1), Some(false));
        for _ in 1..EAGER {
            assert_eq!(patience.after(1), None);
        }
        assert_eq!(patience.after(1), Some(true));
    }

    #[test]
    fn several_requests_keep_it_patient() {
        let mut patience = Patience::new();
        for requests in [1, 1, 5].into_iter().cycle().take(1000) {
            assert_eq!(patience.after(requests), None);
        }
        for _ in 1..ALONE {
            patience.after(1);
        }
        patience.after(1);
        assert_eq!(patience.after(2), Some(true));
    }
}
