//! What engines are told of, in the order in which it happened.

use std::time::SystemTime;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::sync::mpsc;

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// containerd's topic.
    pub topic: &'static str,
    /// When it happened.
    pub at: SystemTime,
    /// What happened.
    pub content: Any,
}

/// Where a keeper's events go. Whoever reads them at the other end may be
/// slow or gone: a keeper never waits for it.
#[derive(Clone, Debug)]
pub struct EventSink(mpsc::UnboundedSender<Event>);

impl EventSink {
    /// A sink and what comes out of it.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Tells of something. `name` is the message's, without its package.
    pub(super) fn tell(&self, topic: &'static str, name: &str, message: &impl Message) {
        // Only a message with a missing required field could fail, which
        // version 3 of the language has none of.
        let value = message.write_to_bytes().unwrap_or_default();
        let content = Any {
            type_url: format!("containerd.events.{name}"),
            value,
            ..Any::default()
        };
        // Nobody reads: then nobody wants to know.
        let _ = self.0.send(Event {
            topic,
            at: SystemTime::now(),
            content,
        });
    }
}
