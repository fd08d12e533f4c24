//! The agent itself: its containers, and what happens to them.
//!
//! Everything runs on one thread. Locks are only ever held between two awaits
//! and so never waited for; a call that takes long holds none.
//!
//! Requests that change something run as tasks of their own: a keeper that
//! gives up waiting must not leave a container half made.

mod lifecycle;
mod sandbox;
mod task;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use protocol::agent::sandbox::create_sandbox;
use protocol::agent::task::create_task;
use protocol::stream::HostPort;
use protocol::timeline::AGENT_READY;
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::container::Container;
use crate::container::process::Process;
use crate::container::shares::Shares;
use crate::error::{Attempt, Failure, Result};
use crate::events::Events;
use crate::sockets::Sockets;
use crate::timeline::Timeline;
use crate::transport::{Stream, Transport};
use crate::{log, reaper, watches};

/// The agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) transport: Transport,
    /// Processes that are children of the agent.
    children: Mutex<HashMap<Pid, Arc<Process>>>,
    /// Containers; `None` while one is being made.
    containers: Mutex<BTreeMap<String, Option<Arc<Container>>>>,
    pub(crate) shares: Shares,
    /// Somebody looks after what is watched in the shares.
    watching: AtomicBool,
    sockets: Sockets,
    events: Events,
    timeline: Timeline,
    /// The pid namespace that the agent is in.
    pid_namespace: OwnedFd,
    null: OwnedFd,
    /// Somebody has asked for the end.
    shutdown: Notify,
}

/// Serves the keeper until it goes, or asks for the end.
///
/// # Errors
///
/// What kept the agent from serving at all.
pub(crate) async fn serve(
    transport: Transport,
    timeline: Timeline,
    child_signals: OwnedFd,
) -> Result<()> {
    let stream = transport
        .connect(HostPort::AGENT)
        .await
        .attempt(|| format!("connect to the keeper at port {}", HostPort::AGENT))?;
    let agent = Arc::new(Agent {
        transport,
        children: Mutex::default(),
        containers: Mutex::default(),
        shares: Shares::default(),
        watching: AtomicBool::new(false),
        sockets: Sockets::default(),
        events: Events::default(),
        timeline,
        pid_namespace: File::open("/proc/self/ns/pid")
            .attempt(|| "open /proc/self/ns/pid".into())?
            .into(),
        null: crate::container::stdio::null()?,
        shutdown: Notify::new(),
    });
    let gone = Arc::new(Notify::new());
    let connection = Connection {
        stream,
        gone: Arc::clone(&gone),
    };
    let mut server = Server::new()
        .add_listener(Listener::new(Once(Some(connection))))
        .register_service(create_task(Arc::new(task::TaskService(Arc::clone(&agent)))))
        .register_service(create_sandbox(Arc::new(sandbox::SandboxService(
            Arc::clone(&agent),
        ))));
    server
        .start()
        .await
        .map_err(|error| Failure::internal(format!("serve ttrpc: {error}")))?;
    agent.timeline.stamp(AGENT_READY);
    tokio::select! {
        () = gone.notified() => Ok(()),
        () = agent.shutdown.notified() => Ok(()),
        result = reaper::reap(child_signals, |pid, status| agent.child_ended(pid, status)) => {
            result.attempt(|| "wait for processes".into())
        }
    }
}

impl Agent {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Container>>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn children(&self) -> MutexGuard<'_, HashMap<Pid, Arc<Process>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container by its id.
    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| Failure::not_found(format!("container {id:?} does not exist")))
    }

    /// Microseconds of processor time that the containers have used.
    pub(crate) fn processor_use(&self) -> u64 {
        let used = |container: &Arc<Container>| {
            let text = container.cgroup.read("cpu.stat")?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            line?.parse::<u64>().ok()
        };
        let containers = self.containers();
        let used = containers.values().flatten().filter_map(used);
        used.fold(0, u64::wrapping_add)
    }

    /// Sees to it that what is watched in shared directories is notified of
    /// what others do there.
    fn watch_shares(self: &Arc<Self>) {
        if self.shares.systems().is_empty() || self.watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = watches::run(agent).await {
                log::line(&format!("file events: {}", protocol::error::chain(&error)));
            }
        });
    }

    /// Kills everything and ends the agent.
    fn shut_down(&self) {
        for container in self.containers().values().flatten() {
            if let Err(error) = container.cgroup.kill() {
                log::line(&protocol::error::chain(&error));
            }
        }
        self.shutdown.notify_one();
    }
}

/// The keeper's connection, which tells when it is over.
struct Connection {
    stream: Stream,
    gone: Arc<Notify>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {}
            Poll::Ready(_) => self.gone.notify_one(),
            Poll::Pending => {}
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A "listener" that has accepted its one connection already.
struct Once(Option<Connection>);

impl futures_core::Stream for Once {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.take() {
            Some(connection) => Poll::Ready(Some(Ok(connection))),
            None => Poll::Pending,
        }
    }
}
