//! What has happened, in order, until the keeper has seen it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protobuf::Message;
use protocol::agent::sandbox::Event;
use tokio::sync::Notify;

use crate::log;

/// Events that are kept for a keeper that does not ask. It asks all the time;
/// one that does not must not cost the guest its memory.
const MOST_EVENTS: usize = 4096;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    last: u64,
}

impl Events {
    /// Adds an event.
    pub(crate) fn publish(&self, topic: &str, message: &impl Message) {
        let payload = match message.write_to_bytes() {
            Ok(payload) => payload,
            Err(error) => return log::line(&format!("event {topic}: {error}")),
        };
        let mut queue = self.lock();
        if queue.events.len() == MOST_EVENTS {
            // The gap in the numbers tells the keeper.
            queue.events.pop_front();
        }
        queue.last = queue.last.saturating_add(1);
        let sequence = queue.last;
        queue.events.push_back(Event {
            sequence,
            topic: topic.into(),
            payload,
            ..Event::default()
        });
        drop(queue);
        self.arrived.notify_waiters();
    }

    /// Waits until there are events after `seen`, and gives them all. Those
    /// up to `seen` are forgotten.
    pub(crate) async fn after(&self, seen: u64) -> Vec<Event> {
        loop {
            // Before looking, so that nothing comes between.
            let arrived = self.arrived.notified();
            {
                let mut queue = self.lock();
                queue.events.retain(|event| event.sequence > seen);
                if !queue.events.is_empty() {
                    return queue.events.iter().cloned().collect();
                }
            }
            arrived.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use protocol::agent::events::TaskOOM;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn events_come_in_order_and_again_until_seen() {
        let events = Events::default();
        for topic in ["/a", "/b"] {
            events.publish(topic, &TaskOOM::default());
        }
        let first = events.after(0).await;
        assert_eq!(
            first.iter().map(|event| event.sequence).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(events.after(0).await.len(), 2);
        assert_eq!(events.after(1).await[0].topic, "/b");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn asking_waits_for_the_next_event() {
        let events = Events::default();
        let (found, ()) = tokio::join!(events.after(0), async {
            events.publish("/a", &TaskOOM::default());
        });
        assert_eq!(found.len(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn queue_without_reader_keeps_the_latest() {
        let events = Events::default();
        for _ in 0..=MOST_EVENTS {
            events.publish("/a", &TaskOOM::default());
        }
        let kept = events.after(0).await;
        assert_eq!((kept.len(), kept[0].sequence), (MOST_EVENTS, 2));
    }
}
