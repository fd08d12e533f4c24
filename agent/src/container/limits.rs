//! Limits as the OCI configuration has them, as files of cgroup v2.
//!
//! The conversions are runc's, so that a container is limited the same.
//! Nothing is left out: a limit whose file this kernel lacks is an error.

use protocol::oci;

use super::cgroup::Cgroup;
use crate::error::{Failure, Result};

/// A cgroup's file and what is written to it.
type Setting = (String, String);

/// Sets all limits that `resources` names.
pub(crate) fn apply(cgroup: &Cgroup, resources: &oci::Resources) -> Result<()> {
    for (file, value) in settings(resources)? {
        cgroup.write(&file, &value)?;
    }
    Ok(())
}

fn settings(resources: &oci::Resources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_settings(cpu, &mut settings);
    }
    if let Some(pids) = &resources.pids {
        let limit = if pids.limit > 0 {
            pids.limit.to_string()
        } else {
            "max".into()
        };
        settings.push(("pids.max".into(), limit));
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(Failure::argument(format!(
                "linux.resources.unified {file:?} is no cgroup file"
            )));
        }
        settings.push((file.clone(), value.clone()));
    }
    Ok(settings)
}

fn memory_settings(memory: &oci::MemoryLimits, settings: &mut Vec<Setting>) -> Result<()> {
    let limit = memory.limit.filter(|&limit| limit != 0);
    let swap = match (memory.swap.filter(|&swap| swap != 0), limit) {
        (None, _) => None,
        (Some(total), _) if total < 0 => Some("max".into()),
        // The OCI counts memory and swap together, cgroup v2 swap alone.
        (Some(total), Some(limit)) if limit > 0 => {
            let swap = total
                .checked_sub(limit)
                .filter(|&swap| swap >= 0)
                .ok_or_else(|| {
                    Failure::argument(format!(
                        "linux.resources.memory.swap {total} is below memory.limit {limit}"
                    ))
                })?;
            Some(swap.to_string())
        }
        (Some(_), _) => {
            return Err(Failure::argument(
                "linux.resources.memory.swap needs a memory.limit",
            ));
        }
    };
    if let Some(swap) = swap {
        settings.push(("memory.swap.max".into(), swap));
    }
    if let Some(limit) = limit {
        settings.push(("memory.max".into(), amount(limit)));
    }
    if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
        settings.push(("memory.low".into(), amount(reservation)));
    }
    Ok(())
}

/// Negative is without a limit.
fn amount(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

fn cpu_settings(cpu: &oci::CpuLimits, settings: &mut Vec<Setting>) {
    let idle = cpu.idle.filter(|&idle| idle != 0);
    if let Some(idle) = cpu.idle {
        settings.push(("cpu.idle".into(), idle.to_string()));
    }
    // An idle cgroup has no weight to set.
    if let (Some(shares), None) = (cpu.shares.filter(|&shares| shares != 0), idle) {
        settings.push(("cpu.weight".into(), weight(shares).to_string()));
    }
    let quota = cpu.quota.filter(|&quota| quota != 0);
    let period = cpu.period.filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or("max".into(), amount);
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        settings.push(("cpu.max".into(), value));
    }
    if let Some(burst) = cpu.burst {
        settings.push(("cpu.max.burst".into(), burst.to_string()));
    }
    for (file, list) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            settings.push((file.into(), list.clone()));
        }
    }
}

/// From 2–262144 to 1–10000, as runc maps it.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Setting>> {
        settings(&serde_json::from_str(json).unwrap())
    }

    fn pairs(json: &str) -> String {
        let words: Vec<String> = read(json)
            .unwrap()
            .into_iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        words.join(" ")
    }

    #[test]
    fn limits_are_converted_as_runc_does_it() {
        for (json, expected) in [
            (
                r#"{"memory": {"limit": 100, "swap": 150}}"#,
                "memory.swap.max=50 memory.max=100",
            ),
            (
                r#"{"memory": {"limit": -1, "swap": -1}}"#,
                "memory.swap.max=max memory.max=max",
            ),
            (
                r#"{"memory": {"limit": 0, "reservation": 7}}"#,
                "memory.low=7",
            ),
            (r#"{"cpu": {"shares": 1024}}"#, "cpu.weight=39"),
            (r#"{"cpu": {"shares": 0}}"#, ""),
            (
                r#"{"cpu": {"quota": 50000, "period": 100000}}"#,
                "cpu.max=50000 100000",
            ),
            (r#"{"cpu": {"quota": -1}}"#, "cpu.max=max"),
            (r#"{"cpu": {"period": 5}}"#, "cpu.max=max 5"),
            (r#"{"cpu": {"cpus": "0-1", "mems": ""}}"#, "cpuset.cpus=0-1"),
            (r#"{"cpu": {"shares": 9, "idle": 1}}"#, "cpu.idle=1"),
            (r#"{"pids": {"limit": 10}}"#, "pids.max=10"),
            (r#"{"pids": {"limit": -1}}"#, "pids.max=max"),
            (r#"{"unified": {"memory.high": "1M"}}"#, "memory.high=1M"),
        ] {
            assert_eq!(pairs(json), expected, "{json}");
        }
    }

    #[test]
    fn weight_covers_its_range() {
        assert_eq!(
            (weight(1), weight(2), weight(262_144), weight(u64::MAX)),
            (1, 1, 10_000, 10_000)
        );
    }

    #[test]
    fn contradictory_limits_are_refused() {
        for json in [
            r#"{"memory": {"limit": 100, "swap": 50}}"#,
            r#"{"memory": {"swap": 50}}"#,
            r#"{"unified": {"../memory.max": "1"}}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
