//! Everything that a container's process does before its program runs, as
//! data: checked, converted and allocated beforehand.
//!
//! The child between `clone3` and `execve` (see [`super::child`]) only walks
//! through this. A failure that can be found without a process is found here,
//! and names the field.

use std::ffi::{CString, c_int};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use protocol::oci;
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::Gid;

use super::capabilities::CapabilityPlan;
use super::devices::{self, DevicePlan};
use super::identity::MESSAGE_ROOM;
use super::mounts::{self, MountPlan, Source};
use super::paths::{InRoot, c_string};
use super::rlimits;
use super::rootfs::RootPlan;
use crate::error::{Failure, Result};
use crate::sys::StringArray;

/// The whole.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The child's end of its conversation with the agent.
    pub(crate) sync: OwnedFd,
    /// Standard streams; absent: a terminal.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// First size of the terminal.
    pub(crate) terminal_size: Option<Winsize>,
    /// Namespaces to join, and their `CLONE_` flags, in order.
    pub(crate) join: Vec<(c_int, OwnedFd)>,
    /// Make the cgroup that the child is in the root of its cgroup namespace.
    pub(crate) new_cgroup_namespace: bool,
    /// Bring the loopback interface up: the network namespace is new.
    pub(crate) new_network: bool,
    /// For a container's first process: the container.
    pub(crate) container: Option<ContainerPlan>,
    /// The program and what it may do.
    pub(crate) process: ProcessPlan,
    /// Room for what the agent says on start.
    pub(crate) scratch: Scratch,
}

impl Plan {
    /// The descriptors that the child needs, sorted.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.sync.as_raw_fd()];
        all.extend(self.stdio.iter().flatten().map(AsRawFd::as_raw_fd));
        all.extend(self.join.iter().map(|(_, fd)| fd.as_raw_fd()));
        all.sort_unstable();
        all
    }
}

/// Memory that the child fills without allocating.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The start message.
    pub(crate) message: Vec<u8>,
    /// The supplementary groups in it.
    pub(crate) groups: Vec<Gid>,
    /// Mounts that become read-only at the end.
    pub(crate) read_only: Vec<OwnedFd>,
}

/// A new container.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    /// Its root file system.
    pub(crate) root: RootPlan,
    /// Mounts, in order.
    pub(crate) mounts: Vec<MountPlan>,
    /// Device nodes; empty when `/dev` is somebody else's.
    pub(crate) devices: Vec<DevicePlan>,
    /// `/dev`, when nodes and links are to be made in it.
    pub(crate) dev: Option<InRoot>,
    /// Where a terminal is mounted.
    pub(crate) console: InRoot,
    /// The working directory, made if absent.
    pub(crate) cwd: InRoot,
    /// Host name.
    pub(crate) hostname: Option<String>,
    /// NIS domain name.
    pub(crate) domainname: Option<String>,
    /// Kernel parameters: file, relative to the root; value; name.
    pub(crate) sysctls: Vec<(CString, Vec<u8>, Vec<u8>)>,
    /// Paths that read as empty.
    pub(crate) masked: Vec<InRoot>,
    /// Paths that cannot be written.
    pub(crate) read_only_paths: Vec<InRoot>,
    /// The root cannot be written.
    pub(crate) read_only: bool,
    /// Propagation of the root: an `MS_` flag, and whether of all below it.
    pub(crate) propagation: Option<(bool, u64)>,
}

impl ContainerPlan {
    /// Checks and prepares.
    pub(crate) fn new(spec: &oci::Spec, root: RootPlan) -> Result<Self> {
        let none = oci::Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&none);
        let mounts = spec
            .mounts
            .iter()
            .map(MountPlan::new)
            .collect::<Result<Vec<MountPlan>>>()?;
        let dev = InRoot::parse("/dev", "/dev")?;
        let foreign_dev = mounts.iter().any(|mount| {
            matches!(mount.source, Source::Bind { .. }) && mount.target.clean() == dev.clean()
        });
        let cwd = spec
            .process
            .as_ref()
            .map_or("/", |process| process.cwd.as_str());
        let propagation = match linux.rootfs_propagation.as_deref() {
            None | Some("") => None,
            Some(word) => Some(mounts::propagation(word).ok_or_else(|| {
                Failure::argument(format!("linux.rootfsPropagation {word:?} is unknown"))
            })?),
        };
        let paths = |field: &str, paths: &[String]| {
            paths
                .iter()
                .map(|path| InRoot::parse(field, path))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            root,
            mounts,
            devices: if foreign_dev {
                Vec::new()
            } else {
                devices::plan(&linux.devices)?
            },
            dev: (!foreign_dev).then_some(dev),
            console: InRoot::parse("/dev/console", "/dev/console")?,
            cwd: InRoot::parse("process.cwd", cwd)?,
            hostname: spec.hostname.clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname.clone().filter(|name| !name.is_empty()),
            sysctls: linux
                .sysctl
                .iter()
                .map(|(name, value)| sysctl(name, value))
                .collect::<Result<_>>()?,
            masked: paths("linux.maskedPaths", &linux.masked_paths)?,
            read_only_paths: paths("linux.readonlyPaths", &linux.readonly_paths)?,
            read_only: spec.root.as_ref().is_some_and(|root| root.readonly),
            propagation,
        })
    }
}

/// File, value and name of a kernel parameter. As sysctl(8) has it, the first
/// separator decides whether dots or slashes separate.
fn sysctl(name: &str, value: &str) -> Result<(CString, Vec<u8>, Vec<u8>)> {
    let slashes = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('/'));
    let path = if slashes {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Failure::argument(format!(
            "linux.sysctl {name:?} is no parameter's name"
        )));
    }
    let path = c_string("linux.sysctl", format!("proc/sys/{path}"))?;
    Ok((path, value.into(), name.into()))
}

/// A process, whether a container's first or a later one.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    /// As it was given, for messages.
    pub(crate) program: Vec<u8>,
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub(crate) arguments: StringArray,
    /// Environment.
    pub(crate) environment: StringArray,
    /// Working directory.
    pub(crate) cwd: CString,
    /// Resource limits.
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    /// Capability sets.
    pub(crate) capabilities: CapabilityPlan,
    /// Gains no privilege by `execve`.
    pub(crate) no_new_privileges: bool,
    /// File mode creation mask.
    pub(crate) umask: u32,
}

/// Soft limit of descriptors when nothing else is asked for: what programs
/// that still use `select` can bear, and what systemd gives.
const SOFT_DESCRIPTORS: u64 = 1024;

impl ProcessPlan {
    /// Checks and prepares.
    pub(crate) fn new(process: &oci::Process) -> Result<Self> {
        let program = process
            .args
            .first()
            .ok_or_else(|| Failure::argument("process.args is empty"))?
            .as_str();
        if !process.cwd.starts_with('/') {
            return Err(Failure::argument(format!(
                "process.cwd {:?} is not absolute",
                process.cwd
            )));
        }
        let strings = |field: &str, strings: &[String]| {
            strings
                .iter()
                .map(|string| c_string(field, string.as_str()))
                .collect::<Result<Vec<_>>>()
        };
        let mut rlimits = rlimits::plan(&process.rlimits)?;
        if !rlimits
            .iter()
            .any(|(resource, _)| *resource == Resource::Nofile)
        {
            let present = rustix::process::getrlimit(Resource::Nofile);
            rlimits.push((
                Resource::Nofile,
                Rlimit {
                    current: Some(SOFT_DESCRIPTORS),
                    maximum: present.maximum,
                },
            ));
        }
        Ok(Self {
            program: program.into(),
            candidates: candidates(program, &process.env)?,
            arguments: StringArray::new(strings("process.args", &process.args)?, 0),
            environment: StringArray::new(strings("process.env", &process.env)?, MESSAGE_ROOM),
            cwd: c_string("process.cwd", process.cwd.as_str())?,
            rlimits,
            capabilities: CapabilityPlan::new(process.capabilities.as_ref())?,
            no_new_privileges: process.no_new_privileges,
            umask: process.user.umask.unwrap_or(0o022) & 0o777,
        })
    }
}

/// Where a program may be: itself if its name has a slash, else every
/// directory of the process's own `PATH`, as execvp(3) does it.
fn candidates(program: &str, env: &[String]) -> Result<Vec<CString>> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program)?]);
    }
    let path = env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or_default()
        .split(':')
        // An empty entry would be the working directory; Go's LookPath, and
        // with it runc, refuses to find programs there.
        .filter(|directory| directory.starts_with('/') && !program.is_empty())
        .map(|directory| c_string("process.env PATH", format!("{directory}/{program}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(program: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<String> = env.iter().map(|&variable| variable.into()).collect();
        candidates(program, &env)
            .unwrap()
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn program_is_looked_for_in_path_unless_it_has_a_slash() {
        assert_eq!(
            paths("sh", &["A=b", "PATH=/bin::x:/usr/bin"]),
            ["/bin/sh", "/usr/bin/sh"]
        );
        assert_eq!(paths("./sh", &["PATH=/bin"]), ["./sh"]);
        assert!(paths("sh", &[]).is_empty());
        assert!(paths("", &["PATH=/bin"]).is_empty());
    }

    #[test]
    fn sysctl_takes_both_separators_and_no_way_out() {
        let (path, ..) = sysctl("net.ipv4.ip_forward", "1").unwrap();
        assert_eq!(path.as_c_str(), c"proc/sys/net/ipv4/ip_forward");
        let (path, ..) = sysctl("net/ipv4/conf/eth0.1/arp", "1").unwrap();
        assert_eq!(path.as_c_str(), c"proc/sys/net/ipv4/conf/eth0.1/arp");
        for name in ["", "a/../b", "a..b", "/a"] {
            assert!(sysctl(name, "1").is_err(), "{name}");
        }
    }

    #[test]
    fn process_without_program_or_directory_is_refused() {
        let process = oci::Process {
            cwd: "/".into(),
            ..oci::Process::default()
        };
        assert!(ProcessPlan::new(&process).is_err());
        let process = oci::Process {
            args: vec!["a".into()],
            ..oci::Process::default()
        };
        assert!(ProcessPlan::new(&process).is_err());
    }

    #[test]
    fn container_makes_no_devices_in_a_bound_dev() {
        let mut spec = oci::Spec::default();
        spec.mounts.push(oci::Mount {
            destination: "/dev/".into(),
            kind: Some("bind".into()),
            source: Some("/dev".into()),
            options: Vec::new(),
            ..oci::Mount::default()
        });
        let root = RootPlan {
            layers: Vec::new(),
            overlay: Some(super::super::rootfs::Upper::Memory),
        };
        let plan = ContainerPlan::new(&spec, root).unwrap();
        assert!(plan.devices.is_empty() && plan.dev.is_none());
    }
}
