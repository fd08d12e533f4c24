//! The OCI runtime configuration, as far as nerite reads it.
//!
//! One set of structures for keeper and agent. Unknown fields are ignored, as
//! the specification asks (config.md, "Extensibility"). Own structures rather
//! than the `oci-spec` crate because that brings a full Unicode `regex` into
//! the guest: 1.2 MB against a budget of 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification, such as `1.2.0`.
    pub oci_version: String,
    /// The container's first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Free-form.
    pub annotations: BTreeMap<String, String>,
    /// The Linux part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The root file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Directory, absolute or relative to the bundle.
    pub path: String,
    /// No writes.
    pub readonly: bool,
}

/// A process in a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// It gets a terminal.
    pub terminal: bool,
    /// The terminal's first size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets; absent: none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Gains no privilege by `execve`.
    pub no_new_privileges: bool,
    /// Written to `/proc/self/oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// nerite's use of a field that the specification keeps for Windows:
    /// `NAME|UID[:GROUP|GID]`, resolved by the agent in the container's own
    /// `/etc/passwd` and `/etc/group` as Docker does, overriding the ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// The five capability sets, names such as `CAP_KILL`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// What may ever be gained.
    pub bounding: Vec<String>,
    /// In force.
    pub effective: Vec<String>,
    /// Kept over `execve` of a file that has them too.
    pub inheritable: Vec<String>,
    /// May be put in force.
    pub permitted: Vec<String>,
    /// Kept over `execve` of any file.
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and its like.
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard limit.
    pub hard: u64,
    /// Soft limit.
    pub soft: u64,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    /// Where, absolute inside the container.
    pub destination: String,
    /// File system type; `bind` or empty for bind mounts.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
    /// The owners that it shows for those of the source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// The groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

/// A range of ids that stand for others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IdMapping {
    /// First id inside; of a mount: in the source.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside; of a mount: what it shows.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// The Linux part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Namespaces of its own, or joined by path.
    pub namespaces: Vec<Namespace>,
    /// Device nodes besides the default ones.
    pub devices: Vec<Device>,
    /// Path of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_path: Option<String>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// `shared`, `slave`, `private` or `unbindable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_propagation: Option<String>,
    /// Kernel parameters, `net.ipv4.ip_forward` style names.
    pub sysctl: BTreeMap<String, String>,
    /// Paths that read as empty.
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An existing one; absent: a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Device {
    /// Where.
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// Limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// Rules for device access.
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimits>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuLimits>,
    /// Number of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsLimit>,
    /// Any cgroup v2 file and what is written to it.
    pub unified: BTreeMap<String, String>,
}

/// A rule for device access.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Allowed or denied.
    pub allow: bool,
    /// `a`, `c` or `b`; absent: `a`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Of `rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

/// Memory limits in bytes; -1 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryLimits {
    /// Hard limit of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Soft limit (cgroup v2 `memory.low`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// Hard limit of memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
}

/// Processor limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuLimits {
    /// Relative weight as cgroup v1 counts it, 2 to 262144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds of processor time per period; negative: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// The period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Unused quota that may be saved up, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Processors, as a list such as `0-1,3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Memory nodes, as a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mems: Option<String>,
    /// 1: only what others leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
}

/// Limit of the number of tasks; 0 or less is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsLimit {
    /// The limit.
    pub limit: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_reads_names_of_the_specification_and_ignores_others() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "future": {"x": 1},
                "process": {"args": ["sh"], "cwd": "/", "noNewPrivileges": true,
                            "user": {"uid": 1, "additionalGids": [5]},
                            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}]},
                "linux": {"namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/kcore"],
                          "resources": {"pids": {"limit": 10}, "memory": {"limit": -1}}}}"#,
        )
        .unwrap();
        let process = spec.process.unwrap();
        assert!(process.no_new_privileges);
        assert_eq!(process.user.additional_gids, [5]);
        assert_eq!(process.rlimits[0].kind, "RLIMIT_NOFILE");
        let linux = spec.linux.unwrap();
        assert_eq!(linux.namespaces[0].kind, "pid");
        assert_eq!(linux.masked_paths, ["/proc/kcore"]);
        assert_eq!(linux.resources.unwrap().pids.unwrap().limit, 10);
    }

    #[test]
    fn spec_survives_its_text() {
        let spec = Spec {
            oci_version: "1.2.0".into(),
            ..Spec::default()
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }
}
