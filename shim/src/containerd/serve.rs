//! The keeper's process.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use shim::assets::Assets;
use shim::keeper::{EventSink, Keeper, services};
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::transport::Listener;

use crate::events;
use crate::flags::Flags;

/// Serves until containerd has no use for it any more.
pub(crate) fn serve(flags: &Flags) -> anyhow::Result<()> {
    // Not part of containerd's session: what ends that one leaves this alone.
    nix::unistd::setsid().context("leave containerd's session")?;
    let listener = inherited()?;
    let path = listener.local_addr().ok().and_then(|address| {
        let path = address.as_pathname()?;
        Some(PathBuf::from(path))
    });
    own_mounts()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let result = runtime.block_on(run(flags, listener, path.as_deref()));
    runtime.shutdown_background();
    result
}

async fn run(flags: &Flags, listener: UnixListener, path: Option<&Path>) -> anyhow::Result<()> {
    let (sink, told) = EventSink::new();
    let publisher = tokio::spawn(events::publish(
        std::env::var("TTRPC_ADDRESS").ok(),
        flags.namespace.clone(),
        told,
    ));
    let keeper = Keeper::new(Assets::locate()?, sink);
    let mut terminated = signal(SignalKind::terminate()).context("take over SIGTERM")?;
    listener.set_nonblocking(true).context("serve")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("serve")?;
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::from(listener))
        .register_service(services(&keeper));
    server.start().await.context("serve")?;
    tokio::select! {
        () = keeper.ended() => {}
        _ = terminated.recv() => {}
    }
    // While it is this one's still: then the next one may come.
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
    // The answer to whoever asked for the end, and the last events.
    let _ = server.shutdown().await;
    drop((server, keeper));
    let _ = tokio::time::timeout(events::LAST, publisher).await;
    Ok(())
}

/// The listening socket that came as standard input.
fn inherited() -> anyhow::Result<UnixListener> {
    let input: OwnedFd = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("take over the socket")?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(null).context("let go of the socket")?;
    Ok(UnixListener::from(input))
}

/// What is mounted here is seen here only, and what the host mounts is seen
/// here as well.
fn own_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context("keep mounts to the keeper")
}
