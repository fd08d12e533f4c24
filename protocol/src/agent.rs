//! The agent's services: containerd's Task service for containers and
//! processes, and `nerite.agent.v1.Sandbox` for the rest.
//!
//! Conventions that the definitions cannot express:
//!
//! - `CreateTaskRequest.options` carries the OCI runtime configuration as
//!   JSON under [`SPEC_TYPE_URL`]; `ExecProcessRequest.spec` carries an OCI
//!   `process` under [`PROCESS_TYPE_URL`] (containerd's own URLs).
//! - `stdin`, `stdout` and `stderr` are [`crate::stream::StreamAddress`]es:
//!   `vsock:PORT`, to which the agent connects once. Empty: `/dev/null`.
//!   With a terminal, output goes to `stdout` only.
//! - `CreateTaskRequest.rootfs` is read from first to last: any number of
//!   mounts (uppermost layer first), each read-only unless it has the option
//!   `rw`, then optionally one `overlay`. Without the `overlay` there is exactly
//!   one mount, which is the root. With it, writes go to a tmpfs in the guest,
//!   or to the mount before it if that has the target [`UPPER_TARGET`]: to its
//!   directory `upper`, with `work` beside it.
//! - A mount whose source is `slot:N`, in `rootfs` or in the configuration with
//!   a type of [`DISK_FORMATS`], is the block device in that slot.
//! - A `bind` mount, in `rootfs` or in the configuration, whose source is a
//!   [`share_path`] shows a share; the agent mounts its device first.
//! - A `bind` mount whose source is a [`socket_path`] shows a socket that
//!   `ForwardSocket` has made before.
//! - `Start` that fails because the program does not exist answers
//!   `NOT_FOUND`, because it cannot be executed `PERMISSION_DENIED`.
//! - Events carry containerd's topics; `TaskOOM` precedes its `TaskExit`.
//!   A `TaskExit` is sent when the process exits, not when its streams end.
//! - `WaitResponse.exit_status` and `TaskExit.exit_status` are 0–255, or 128
//!   plus the signal.

use crate::broker::Policy;

pub use containerd_shim_protos::cgroups_v2::metrics;
pub use containerd_shim_protos::events::task as events;
pub use containerd_shim_protos::shim::oci as runc;
pub use containerd_shim_protos::{api, shim_async as task, topics};

/// containerd's service for its shims' events.
pub mod forward {
    pub use containerd_shim_protos::shim::event::Envelope;
    pub use containerd_shim_protos::shim::events::ForwardRequest;
    pub use containerd_shim_protos::shim_async::EventsClient;
}

/// Type URL of an OCI runtime configuration in an `Any`, value in JSON.
pub const SPEC_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Type URL of an OCI process in an `Any`, value in JSON.
pub const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type URL of OCI resources in an `Any`, value in JSON (`Update`).
pub const RESOURCES_TYPE_URL: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Target of the mount in a `rootfs` that an overlay writes to.
pub const UPPER_TARGET: &str = "upper";

/// File systems on disks that a guest mounts.
pub const DISK_FORMATS: [&str; 5] = ["erofs", "ext2", "ext3", "ext4", "xfs"];

/// Whether a type of file system lies on a disk that a guest mounts.
#[must_use]
pub fn is_disk_format(kind: &str) -> bool {
    DISK_FORMATS.contains(&kind)
}

/// The guest's directory with one mount point for each directory device.
pub const SHARES: &str = "/shares";

/// Where the guest finds share `number` of a directory device.
#[must_use]
pub fn share_path(policy: Policy, number: usize) -> String {
    format!("{SHARES}/{}/{number}", policy.tag())
}

/// The guest's directory with the Unix sockets that stand for the host's.
pub const SOCKETS: &str = "/sockets";

/// Where the guest has the socket that stands for the host's `number`.
#[must_use]
pub fn socket_path(number: usize) -> String {
    format!("{SOCKETS}/{number}")
}

/// `nerite.agent.v1`, generated from `proto/nerite/agent/v1/sandbox.proto`.
pub mod sandbox {
    #![allow(
        warnings,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        missing_docs
    )]

    pub use self::sandbox::*;
    pub use self::service::*;

    // The generated service names its messages `super::sandbox`.
    mod sandbox {
        include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
    }

    mod service {
        include!(concat!(env!("OUT_DIR"), "/sandbox_ttrpc.rs"));
    }
}
