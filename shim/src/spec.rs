//! The OCI configuration of a container that no engine has described.
//!
//! As Docker makes it for `docker run` without options, so that images behave
//! as their authors saw them behave: the same capabilities, mounts, masked
//! paths and environment.

use protocol::oci;

use crate::size::{ByteSize, Cpus};

/// What a person may choose for a container.
#[derive(Clone, Debug, Default)]
pub struct ContainerOptions {
    /// Program and arguments, not empty.
    pub args: Vec<String>,
    /// Environment on top of the default one, later entries winning.
    pub env: Vec<String>,
    /// Working directory; `/` when empty.
    pub cwd: String,
    /// `NAME|UID[:GROUP|GID]`; root when empty.
    pub user: String,
    /// Host name inside.
    pub hostname: String,
    /// Memory limit.
    pub memory: Option<ByteSize>,
    /// Processors.
    pub cpus: Option<Cpus>,
    /// Limit of the number of tasks.
    pub pids: Option<u32>,
    /// The terminal's first size, when it has one.
    pub terminal: Option<oci::ConsoleSize>,
    /// No writes to the root.
    pub read_only: bool,
}

/// Docker's default set (moby `oci/caps/defaults.go`).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration.
#[must_use]
pub fn docker_like(options: &ContainerOptions) -> oci::Spec {
    oci::Spec {
        oci_version: "1.2.0".into(),
        process: Some(process(options)),
        root: Some(oci::Root {
            path: "rootfs".into(),
            readonly: options.read_only,
        }),
        hostname: Some(options.hostname.clone()),
        mounts: mounts(),
        linux: Some(linux(options)),
        ..oci::Spec::default()
    }
}

fn process(options: &ContainerOptions) -> oci::Process {
    let all: Vec<String> = CAPABILITIES.map(String::from).into();
    oci::Process {
        terminal: options.terminal.is_some(),
        console_size: options.terminal,
        user: oci::User {
            username: (!options.user.is_empty()).then(|| options.user.clone()),
            ..oci::User::default()
        },
        args: options.args.clone(),
        env: environment(options),
        cwd: if options.cwd.is_empty() {
            "/".into()
        } else {
            options.cwd.clone()
        },
        capabilities: Some(oci::Capabilities {
            bounding: all.clone(),
            effective: all.clone(),
            permitted: all,
            ..oci::Capabilities::default()
        }),
        ..oci::Process::default()
    }
}

/// Docker's own variables first, then the given ones; each name once, its
/// last value in its first place.
fn environment(options: &ContainerOptions) -> Vec<String> {
    let mut base = vec![PATH.to_owned(), format!("HOSTNAME={}", options.hostname)];
    if options.terminal.is_some() {
        base.push("TERM=xterm".into());
    }
    let mut result: Vec<String> = Vec::new();
    for variable in base.iter().chain(&options.env) {
        let name = variable.split('=').next().unwrap_or_default();
        let same = |other: &&mut String| other.split('=').next() == Some(name);
        match result.iter_mut().find(same) {
            Some(earlier) => earlier.clone_from(variable),
            None => result.push(variable.clone()),
        }
    }
    result
}

fn mounts() -> Vec<oci::Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| oci::Mount {
        destination: destination.into(),
        kind: Some(kind.into()),
        source: Some(source.into()),
        options: options.iter().map(|&option| option.into()).collect(),
        ..oci::Mount::default()
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
        ),
    ]
}

fn linux(options: &ContainerOptions) -> oci::Linux {
    let namespaces = ["mount", "uts", "ipc", "pid", "network", "cgroup"];
    oci::Linux {
        namespaces: namespaces
            .map(|kind| oci::Namespace {
                kind: kind.into(),
                path: None,
            })
            .into(),
        resources: Some(oci::Resources {
            memory: options.memory.map(|limit| {
                let limit = i64::try_from(limit.0).unwrap_or(i64::MAX);
                // Memory and swap together: no swap, as there is none.
                oci::MemoryLimits {
                    limit: Some(limit),
                    swap: Some(limit),
                    reservation: None,
                }
            }),
            cpu: options
                .cpus
                .and_then(Cpus::quota)
                .map(|quota| oci::CpuLimits {
                    quota: Some(quota),
                    period: Some(100_000),
                    ..oci::CpuLimits::default()
                }),
            pids: options.pids.map(|limit| oci::PidsLimit {
                limit: limit.into(),
            }),
            ..oci::Resources::default()
        }),
        masked_paths: MASKED.map(String::from).into(),
        readonly_paths: READ_ONLY.map(String::from).into(),
        ..oci::Linux::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_environment_wins_in_the_first_place() {
        let options = ContainerOptions {
            env: vec!["A=1".into(), "PATH=/x".into(), "A=2".into()],
            hostname: "h".into(),
            ..ContainerOptions::default()
        };
        assert_eq!(environment(&options), ["PATH=/x", "HOSTNAME=h", "A=2"]);
    }

    #[test]
    fn limits_appear_only_when_asked_for() {
        let resources =
            |options: &ContainerOptions| docker_like(options).linux.unwrap().resources.unwrap();
        let none = resources(&ContainerOptions::default());
        assert_eq!(none, oci::Resources::default());
        let some = resources(&ContainerOptions {
            memory: Some(ByteSize::mib(64)),
            cpus: Some(Cpus(500)),
            pids: Some(7),
            ..ContainerOptions::default()
        });
        assert_eq!(some.memory.unwrap().limit, Some(64 << 20));
        assert_eq!(some.cpu.unwrap().quota, Some(50_000));
        assert_eq!(some.pids.unwrap().limit, 7);
    }

    #[test]
    fn terminal_brings_its_size_and_term() {
        let size = oci::ConsoleSize {
            height: 24,
            width: 80,
        };
        let options = ContainerOptions {
            terminal: Some(size),
            ..ContainerOptions::default()
        };
        let process = docker_like(&options).process.unwrap();
        assert!(process.terminal);
        assert_eq!(process.console_size, Some(size));
        assert!(process.env.contains(&"TERM=xterm".to_owned()));
    }
}
