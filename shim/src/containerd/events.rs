//! Events for containerd: in order, again if it does not answer, and never in
//! anybody's way.

use std::time::Duration;

use protobuf::MessageField;
use protocol::agent::forward::{Envelope, EventsClient, ForwardRequest};
use shim::keeper::Event;
use tokio::sync::mpsc::UnboundedReceiver;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

/// How long the last events may take when all else has ended.
pub(crate) const LAST: Duration = Duration::from_secs(2);

/// How long one may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a containerd that is starting again is waited for, in steps.
const TRIES: u32 = 60;
const STEP: Duration = Duration::from_secs(1);

/// Passes events on until there are no more. Without an address there is
/// nobody to tell.
pub(crate) async fn publish(
    address: Option<String>,
    namespace: String,
    mut events: UnboundedReceiver<Event>,
) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        let Some(address) = address.as_deref().filter(|address| !address.is_empty()) else {
            continue;
        };
        let request = ForwardRequest {
            envelope: MessageField::some(Envelope {
                timestamp: MessageField::some(event.at.into()),
                namespace: namespace.clone(),
                topic: event.topic.into(),
                event: MessageField::some(event.content),
                ..Envelope::default()
            }),
            ..ForwardRequest::default()
        };
        for _ in 0..TRIES {
            if send(&mut client, address, &request).await {
                break;
            }
            client = None;
            tokio::time::sleep(STEP).await;
        }
    }
}

async fn send(client: &mut Option<EventsClient>, address: &str, request: &ForwardRequest) -> bool {
    if client.is_none() {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let Ok(socket) = Socket::connect_unix(path).await else {
            return false;
        };
        *client = Some(EventsClient::new(Client::new(socket)));
    }
    let Some(client) = client else { return false };
    let timeout = context::with_duration(ANSWER);
    match client.forward(timeout, request).await {
        // One that containerd refuses is no better the next time.
        Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => true,
        Err(_) => false,
    }
}
