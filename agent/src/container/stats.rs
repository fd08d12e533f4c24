//! What a container uses, from its cgroup, as containerd's
//! `io.containerd.cgroups.v2.Metrics`.
//!
//! A file that this kernel lacks leaves its part out, as containerd does.

use protobuf::MessageField;
use protocol::agent::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};

use super::cgroup::{Cgroup, field};

/// Type URL of the message.
pub(crate) const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// Reads everything.
pub(crate) fn read(cgroup: &Cgroup) -> Metrics {
    Metrics {
        pids: cgroup
            .read("pids.current")
            .map(|current| PidsStat {
                current: number(&current),
                limit: cgroup
                    .read("pids.max")
                    .map_or(0, |limit| limited(&limit, 0)),
                ..PidsStat::default()
            })
            .into(),
        cpu: cgroup.read("cpu.stat").map(|text| cpu(&text)).into(),
        memory: memory(cgroup),
        memory_events: cgroup
            .read("memory.events")
            .map(|text| events(&text))
            .into(),
        io: cgroup.read("io.stat").map(|text| io(&text)).into(),
        ..Metrics::default()
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// A limit; `none` stands for having none.
fn limited(text: &str, none: u64) -> u64 {
    text.trim().parse().unwrap_or(none)
}

fn get(text: &str, key: &str) -> u64 {
    field(text, key).map_or(0, number)
}

fn cpu(text: &str) -> CPUStat {
    CPUStat {
        usage_usec: get(text, "usage_usec"),
        user_usec: get(text, "user_usec"),
        system_usec: get(text, "system_usec"),
        nr_periods: get(text, "nr_periods"),
        nr_throttled: get(text, "nr_throttled"),
        throttled_usec: get(text, "throttled_usec"),
        nr_bursts: get(text, "nr_bursts"),
        burst_usec: get(text, "burst_usec"),
        ..CPUStat::default()
    }
}

fn memory(cgroup: &Cgroup) -> MessageField<MemoryStat> {
    let (Some(usage), Some(text)) = (cgroup.read("memory.current"), cgroup.read("memory.stat"))
    else {
        return MessageField::none();
    };
    let file = |name: &str| cgroup.read(name).unwrap_or_default();
    MessageField::some(MemoryStat {
        usage: number(&usage),
        usage_limit: limited(&file("memory.max"), u64::MAX),
        max_usage: number(&file("memory.peak")),
        swap_usage: number(&file("memory.swap.current")),
        swap_limit: limited(&file("memory.swap.max"), u64::MAX),
        swap_max_usage: number(&file("memory.swap.peak")),
        anon: get(&text, "anon"),
        file: get(&text, "file"),
        kernel_stack: get(&text, "kernel_stack"),
        slab: get(&text, "slab"),
        sock: get(&text, "sock"),
        shmem: get(&text, "shmem"),
        file_mapped: get(&text, "file_mapped"),
        file_dirty: get(&text, "file_dirty"),
        file_writeback: get(&text, "file_writeback"),
        anon_thp: get(&text, "anon_thp"),
        inactive_anon: get(&text, "inactive_anon"),
        active_anon: get(&text, "active_anon"),
        inactive_file: get(&text, "inactive_file"),
        active_file: get(&text, "active_file"),
        unevictable: get(&text, "unevictable"),
        slab_reclaimable: get(&text, "slab_reclaimable"),
        slab_unreclaimable: get(&text, "slab_unreclaimable"),
        pgfault: get(&text, "pgfault"),
        pgmajfault: get(&text, "pgmajfault"),
        workingset_refault: get(&text, "workingset_refault_anon")
            .saturating_add(get(&text, "workingset_refault_file")),
        workingset_activate: get(&text, "workingset_activate_anon")
            .saturating_add(get(&text, "workingset_activate_file")),
        workingset_nodereclaim: get(&text, "workingset_nodereclaim"),
        pgrefill: get(&text, "pgrefill"),
        pgscan: get(&text, "pgscan"),
        pgsteal: get(&text, "pgsteal"),
        pgactivate: get(&text, "pgactivate"),
        pgdeactivate: get(&text, "pgdeactivate"),
        pglazyfree: get(&text, "pglazyfree"),
        pglazyfreed: get(&text, "pglazyfreed"),
        thp_fault_alloc: get(&text, "thp_fault_alloc"),
        thp_collapse_alloc: get(&text, "thp_collapse_alloc"),
        ..MemoryStat::default()
    })
}

fn events(text: &str) -> MemoryEvents {
    MemoryEvents {
        low: get(text, "low"),
        high: get(text, "high"),
        max: get(text, "max"),
        oom: get(text, "oom"),
        oom_kill: get(text, "oom_kill"),
        oom_group_kill: get(text, "oom_group_kill"),
        ..MemoryEvents::default()
    }
}

/// Lines of `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N …`.
fn io(text: &str) -> IOStat {
    let usage = text
        .lines()
        .filter_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let value = |key: &str| {
                rest.split_whitespace()
                    .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                    .map_or(0, number)
            };
            Some(IOEntry {
                major: number(major),
                minor: number(minor),
                rbytes: value("rbytes"),
                wbytes: value("wbytes"),
                rios: value("rios"),
                wios: value("wios"),
                ..IOEntry::default()
            })
        })
        .collect();
    IOStat {
        usage,
        ..IOStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_are_read_by_key() {
        let stat = io("259:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0 \n");
        assert_eq!(stat.usage.len(), 2);
        let entry = &stat.usage[0];
        assert_eq!(
            (entry.major, entry.minor, entry.rbytes, entry.wios),
            (259, 1, 1, 4)
        );
    }

    #[test]
    fn limits_without_a_number_are_none() {
        assert_eq!(limited("max\n", u64::MAX), u64::MAX);
        assert_eq!(limited("4096\n", u64::MAX), 4096);
    }
}
