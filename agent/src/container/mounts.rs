//! Mounts of a container's configuration, checked and prepared.
//!
//! runc's refusals apply: nothing is mounted over the root or below `/proc`,
//! except the few files that programs like lxcfs replace. An option that is no
//! flag goes to the file system, which refuses what it does not know; nothing
//! is ignored.

use std::ffi::CString;

use protocol::agent::is_disk_format;
use protocol::oci;
use rustix::mount::MountAttrFlags;

use super::paths::{InRoot, c_string};
use super::slots::SlotDevice;
use crate::error::{Failure, Result};
use crate::sys::MountAttributes;

/// One mount, ready to be made.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Where.
    pub(crate) target: InRoot,
    /// What.
    pub(crate) source: Source,
    /// Attributes of the mount itself.
    pub(crate) attributes: MountAttributes,
    /// Attributes of the mount and of those below it.
    pub(crate) recursive: MountAttributes,
    /// Read-only, but only when everything else has been made: other mounts
    /// may need directories in this one.
    pub(crate) read_only: bool,
    /// The target must not be reached through symbolic links.
    pub(crate) plain_target: bool,
}

/// What a mount shows.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file system.
    New(FileSystem),
    /// What is mounted there already, changed.
    Remount {
        /// Options of the file system; `None`: only the mount's own change.
        options: Option<Vec<(CString, Option<CString>)>>,
    },
    /// A file or directory of the guest.
    Bind {
        /// Where it is in the guest.
        path: CString,
        /// With the mounts below it.
        recursive: bool,
    },
}

/// A file system to be mounted.
#[derive(Debug)]
pub(crate) struct FileSystem {
    /// Its type.
    pub(crate) kind: CString,
    /// Device or name.
    pub(crate) source: Option<CString>,
    /// Its options.
    pub(crate) options: Vec<(CString, Option<CString>)>,
    /// It begins with a copy of what it covers.
    pub(crate) copy_up: bool,
}

/// Files below `/proc` that may be mounted over.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

impl MountPlan {
    /// Checks and prepares a mount.
    pub(crate) fn new(mount: &oci::Mount) -> Result<Self> {
        let target = InRoot::parse("mounts.destination", &mount.destination)?;
        let clean = target.clean();
        let options = Options::parse(&mount.options)?;
        let kind = mount.kind.as_deref().unwrap_or_default();
        let bind = options.bind || matches!(kind, "bind" | "");
        refuse_target(&clean, kind, bind)?;
        if options.copy_up && (bind || kind != "tmpfs") {
            return Err(Failure::argument(format!(
                "mounts.options \"tmpcopyup\" of {clean} makes sense for tmpfs only"
            )));
        }
        if let Some(word) = options.ids {
            return Err(Failure::argument(format!(
                "mounts.options {word:?} of {clean} makes sense for bind mounts of the host only"
            )));
        }
        let source = if options.remount {
            Source::Remount {
                options: (!bind).then_some(options.data),
            }
        } else if bind {
            let path = mount.source.as_deref().unwrap_or_default();
            if !path.starts_with('/') {
                return Err(Failure::argument(format!(
                    "mounts.source {path:?} of {clean} is not an absolute path"
                )));
            }
            if let Some((name, _)) = options.data.first() {
                return Err(Failure::argument(format!(
                    "mounts.options {:?} of {clean} makes no sense for a bind mount",
                    name.to_string_lossy()
                )));
            }
            Source::Bind {
                path: c_string("mounts.source", path)?,
                recursive: options.recursive,
            }
        } else {
            // There is only one hierarchy; runc does the same on such hosts.
            let kind = if kind == "cgroup" { "cgroup2" } else { kind };
            let mut source = mount.source.clone();
            let mut data = options.data;
            if is_disk_format(kind)
                && let Some(device) =
                    SlotDevice::named("mounts.source", source.as_deref().unwrap_or_default())?
            {
                data.extend(device.options());
                if options.read_only {
                    // The device takes no writes, from the file system either.
                    data.push((c"ro".into(), None));
                }
                source = Some(device.path);
            }
            Source::New(FileSystem {
                kind: c_string("mounts.type", kind)?,
                source: source
                    .map(|source| c_string("mounts.source", source))
                    .transpose()?,
                options: data,
                copy_up: options.copy_up,
            })
        };
        Ok(Self {
            target,
            source,
            attributes: options.attributes,
            recursive: options.recursive_attributes,
            read_only: options.read_only,
            plain_target: matches!(kind, "proc" | "sysfs"),
        })
    }
}

fn refuse_target(clean: &str, kind: &str, bind: bool) -> Result<()> {
    if clean == "/" {
        return Err(Failure::argument(
            "mounts.destination \"/\" would hide the root",
        ));
    }
    let proc = clean == "/proc" || clean.starts_with("/proc/");
    let allowed = PROC_FILES.contains(&clean) || (clean == "/proc" && kind == "proc" && !bind);
    if proc && !allowed {
        return Err(Failure::argument(format!(
            "mounts.destination {clean:?} is inside /proc, where only a proc file system may be"
        )));
    }
    Ok(())
}

/// `mount -o` words, sorted out.
#[derive(Debug)]
struct Options {
    bind: bool,
    recursive: bool,
    remount: bool,
    copy_up: bool,
    ids: Option<&'static str>,
    read_only: bool,
    attributes: MountAttributes,
    recursive_attributes: MountAttributes,
    data: Vec<(CString, Option<CString>)>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            bind: false,
            recursive: false,
            remount: false,
            copy_up: false,
            ids: None,
            read_only: false,
            attributes: MountAttributes::NONE,
            recursive_attributes: MountAttributes::NONE,
            data: Vec::new(),
        };
        for word in words {
            options.take(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<()> {
        match word {
            // How loud the kernel is, and what every file system here has.
            "" | "defaults" | "silent" | "loud" | "acl" | "iversion" | "noiversion" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            // The keeper has done it for the host's, and taken the word out.
            "idmap" => self.ids = Some("idmap"),
            "ridmap" => self.ids = Some("ridmap"),
            _ => {
                if let Some((recursive, propagation)) = propagation(word) {
                    let to = if recursive {
                        &mut self.recursive_attributes
                    } else {
                        &mut self.attributes
                    };
                    to.propagation = propagation;
                } else if let Some((set, flag)) = attribute(word) {
                    apply(&mut self.attributes, set, flag);
                } else if let Some((set, flag)) =
                    word.strip_prefix('r').and_then(recursive_attribute)
                {
                    apply(&mut self.recursive_attributes, set, flag);
                } else {
                    let (name, value) = match word.split_once('=') {
                        Some((name, value)) => (name, Some(c_string("mounts.options", value)?)),
                        None => (word, None),
                    };
                    self.data.push((c_string("mounts.options", name)?, value));
                }
            }
        }
        Ok(())
    }
}

/// The last word on a flag counts.
fn apply(attributes: &mut MountAttributes, set: bool, flag: MountAttrFlags) {
    let atime = MountAttrFlags::MOUNT_ATTR__ATIME;
    if flag.is_empty() || atime.contains(flag) {
        // The access time mode is one field, not a set of flags.
        attributes.set.remove(atime);
        attributes.clear.insert(atime);
        if set {
            attributes.set.insert(flag);
        }
    } else if set {
        attributes.set.insert(flag);
        attributes.clear.remove(flag);
    } else {
        attributes.clear.insert(flag);
        attributes.set.remove(flag);
    }
}

fn attribute(word: &str) -> Option<(bool, MountAttrFlags)> {
    Some(match word {
        "nosuid" => (true, MountAttrFlags::MOUNT_ATTR_NOSUID),
        "suid" => (false, MountAttrFlags::MOUNT_ATTR_NOSUID),
        "nodev" => (true, MountAttrFlags::MOUNT_ATTR_NODEV),
        "dev" => (false, MountAttrFlags::MOUNT_ATTR_NODEV),
        "noexec" => (true, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "exec" => (false, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "nodiratime" => (true, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "diratime" => (false, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (true, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => (false, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (true, MountAttrFlags::MOUNT_ATTR_NOATIME),
        "strictatime" => (true, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            (true, MountAttrFlags::MOUNT_ATTR_RELATIME)
        }
        _ => return None,
    })
}

/// What follows the `r` of `rro`, `rnosuid` and so on (runtime-spec, Mounts).
fn recursive_attribute(word: &str) -> Option<(bool, MountAttrFlags)> {
    match word {
        "ro" => Some((true, MountAttrFlags::MOUNT_ATTR_RDONLY)),
        "rw" => Some((false, MountAttrFlags::MOUNT_ATTR_RDONLY)),
        word => attribute(word),
    }
}

/// Whether a propagation is recursive, and its `MS_` flag.
pub(crate) fn propagation(word: &str) -> Option<(bool, u64)> {
    let (recursive, word) = match word.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let flag = match word {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((recursive, flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(destination: &str, kind: &str, source: &str, options: &[&str]) -> Result<MountPlan> {
        MountPlan::new(&oci::Mount {
            destination: destination.into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: options.iter().map(|&option| option.into()).collect(),
            ..oci::Mount::default()
        })
    }

    #[test]
    fn options_of_tmpfs_are_split_into_flags_and_data() {
        let plan = plan(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )
        .unwrap();
        assert_eq!(
            plan.attributes.set,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
        let Source::New(system) = plan.source else {
            panic!("a bind mount")
        };
        assert_eq!(system.options.len(), 2);
        assert_eq!(system.options[0].1.as_deref(), Some(c"755"));
    }

    #[test]
    fn last_option_on_a_flag_counts() {
        let plan = plan("/d", "tmpfs", "tmpfs", &["nosuid", "suid", "ro", "rw"]).unwrap();
        assert!(plan.attributes.set.is_empty());
        assert_eq!(plan.attributes.clear, MountAttrFlags::MOUNT_ATTR_NOSUID);
        assert!(!plan.read_only);
    }

    #[test]
    fn recursive_words_are_told_from_others() {
        let plan = plan("/d", "bind", "/s", &["rbind", "rprivate", "rro", "rnosuid"]).unwrap();
        assert_eq!(plan.recursive.propagation, libc::MS_PRIVATE);
        assert_eq!(
            plan.recursive.set,
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID
        );
        assert!(matches!(
            plan.source,
            Source::Bind {
                recursive: true,
                ..
            }
        ));
    }

    #[test]
    fn mounts_that_runc_refuses_are_refused() {
        for (destination, kind) in [
            ("/", "tmpfs"),
            ("/x/..", "tmpfs"),
            ("/proc", "tmpfs"),
            ("/proc", "bind"),
            ("/proc/self/attr", "bind"),
            ("/x/../proc/1", "tmpfs"),
        ] {
            assert!(
                plan(destination, kind, "/s", &[]).is_err(),
                "{kind} on {destination}"
            );
        }
        assert!(plan("/proc", "proc", "proc", &[]).is_ok());
        assert!(plan("/proc/uptime", "bind", "/s", &[]).is_ok());
        assert!(plan("/processes", "tmpfs", "tmpfs", &[]).is_ok());
    }

    #[test]
    fn words_for_other_kinds_of_mounts_are_refused() {
        assert!(plan("/d", "bind", "/s", &["tmpcopyup"]).is_err());
        assert!(plan("/d", "tmpfs", "t", &["idmap"]).is_err());
        let plan = plan("/d", "bind", "", &["remount", "ro"]).unwrap();
        assert!(matches!(plan.source, Source::Remount { options: None }));
    }

    #[test]
    fn relative_bind_source_is_refused() {
        assert!(plan("/d", "bind", "s", &[]).is_err());
    }
}
