//! The host apart from KVM.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Uid;

use super::Item;
use crate::assets::Assets;

/// Descriptors that one sandbox may need, with room for its streams.
const DESCRIPTORS: u64 = 1024;

/// Bit of `CAP_NET_ADMIN` (capability.h).
const CAP_NET_ADMIN: u32 = 12;

pub(super) fn architecture() -> Item {
    let name = std::env::consts::ARCH;
    if name == "x86_64" {
        Item::ok("architecture", "processor", name)
    } else {
        Item::failure("architecture", "processor", name, "use an x86_64 host")
    }
}

pub(super) fn assets(assets: &Assets) -> Item {
    let missing: Vec<_> = [&assets.vmm, &assets.kernel, &assets.os_layer]
        .into_iter()
        .filter(|path| fs::File::open(path).is_err())
        .map(|path| path.display().to_string())
        .collect();
    if missing.is_empty() {
        return Item::ok(
            "files",
            "nerite's files",
            assets.directory.display().to_string(),
        );
    }
    let found = format!("cannot be read: {}", missing.join(", "));
    Item::failure(
        "files",
        "nerite's files",
        found,
        "reinstall nerite (`make install`)",
    )
}

pub(super) fn cgroups() -> Item {
    let root = Path::new("/sys/fs/cgroup");
    let is_v2 = statfs(root).is_ok_and(|kind| kind.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let advice = "boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all; until then \
                  limits act in the guest only";
    if !is_v2 {
        return Item::warning(
            "cgroup-v2",
            "cgroup v2",
            "not mounted at /sys/fs/cgroup",
            advice,
        );
    }
    let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|controller| !there.split_whitespace().any(|word| word == *controller))
        .collect();
    if missing.is_empty() {
        Item::ok("cgroup-v2", "cgroup v2", "memory, cpu and pids controllers")
    } else {
        let found = format!("without controllers: {}", missing.join(", "));
        Item::warning("cgroup-v2", "cgroup v2", found, advice)
    }
}

pub(super) fn descriptors() -> Item {
    let (id, name) = ("descriptors", "open files");
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft >= DESCRIPTORS => Item::ok(id, name, format!("limit {soft}")),
        Ok((soft, hard)) => Item::warning(
            id,
            name,
            format!("limit {soft} (at most {hard})"),
            format!("raise it to {DESCRIPTORS} or more (`ulimit -n {DESCRIPTORS}`)"),
        ),
        Err(errno) => Item::warning(
            id,
            name,
            format!("limit unknown: {errno}"),
            "see `ulimit -n`",
        ),
    }
}

/// Templates are files that guests map privately: the cache has to be on a
/// file system that has private mappings of large files.
pub(super) fn clone_start() -> Item {
    let (id, name) = ("clone", "clone start");
    let ok = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if ok.trim() == "2" {
        return Item::warning(
            id,
            name,
            "memory overcommit is off (vm.overcommit_memory = 2)",
            "set vm.overcommit_memory to 0 or 1, or every clone is charged its whole memory",
        );
    }
    Item::ok(id, name, "memory may be shared copy-on-write")
}

pub(super) fn network() -> Item {
    let (id, name) = ("network", "network");
    let mut missing = Vec::new();
    if fs::metadata("/dev/net/tun").is_err() {
        missing.push("/dev/net/tun (`modprobe tun`)");
    }
    if !has_capability(CAP_NET_ADMIN) {
        missing.push("the right to make interfaces, CAP_NET_ADMIN (run as root)");
    }
    if missing.is_empty() {
        Item::ok(id, name, "interfaces can be made")
    } else {
        Item::warning(
            id,
            name,
            "interfaces cannot be given to containers",
            format!("missing: {}", missing.join(", ")),
        )
    }
}

pub(super) fn file_sharing() -> Item {
    let (id, name) = ("file-sharing", "file sharing");
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let here = CString::from(c".");
    if let Err(Errno::ENOSYS) = openat2(nix::fcntl::AT_FDCWD, here.as_c_str(), how) {
        return Item::warning(
            id,
            name,
            "the kernel lacks openat2",
            "use Linux 5.6 or newer",
        );
    }
    if !Uid::effective().is_root() {
        return Item::warning(
            id,
            name,
            "not root: files in shares can have no owner but this user",
            "run as root to share directories with several owners",
        );
    }
    Item::ok(id, name, "directories can be shared safely")
}

fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> bit & 1 == 1)
}
