//! How large a container's machine is, by its configuration.

use std::io;

use protocol::oci::{Resources, Spec};

use crate::size::{ByteSize, Cpus};

/// Guest RAM where no limit is asked for.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);

/// What the guest's kernel and agent may take on top of a memory limit.
const GUEST_OVERHEAD: ByteSize = ByteSize::mib(48);

/// Docker's least memory limit; less does not start a process.
const LEAST_MEMORY: ByteSize = ByteSize::mib(6);

/// The unit of guest RAM: a huge page.
const HUGE_PAGE: ByteSize = ByteSize::mib(2);

/// A machine that cannot be as it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum MachineSizeError {
    /// Not enough for anything.
    #[error("memory limit {0} is too small to start a process; give at least {LEAST_MEMORY}")]
    TooSmall(ByteSize),
    /// More than there is.
    #[error("memory limit {limit} is more than this host has ({host}); give less with -m")]
    TooLarge {
        /// What is asked for.
        limit: ByteSize,
        /// What there is.
        host: ByteSize,
    },
    /// The host does not say what it has.
    #[error("read this host's memory from /proc/meminfo")]
    Unknown(#[source] io::Error),
}

/// Guest RAM for a memory limit: the limit and what the guest itself takes.
///
/// # Errors
///
/// [`MachineSizeError`].
pub fn guest_memory(limit: Option<ByteSize>) -> Result<ByteSize, MachineSizeError> {
    let Some(limit) = limit else {
        return Ok(DEFAULT_MEMORY);
    };
    if limit < LEAST_MEMORY {
        return Err(MachineSizeError::TooSmall(limit));
    }
    let host = host_memory().map_err(MachineSizeError::Unknown)?;
    if limit > host {
        return Err(MachineSizeError::TooLarge { limit, host });
    }
    // The kernel needs 1/64 of RAM for its page structures.
    Ok(ByteSize(limit.0 + limit.0 / 64 + GUEST_OVERHEAD.0).round_up(HUGE_PAGE))
}

fn host_memory() -> io::Result<ByteSize> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| ByteSize(kib << 10))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The resources that a configuration names.
#[must_use]
pub fn resources(spec: &Spec) -> Resources {
    let linux = spec.linux.as_ref();
    linux
        .and_then(|linux| linux.resources.clone())
        .unwrap_or_default()
}

/// The memory limit, if there is one.
#[must_use]
pub fn memory_limit(resources: &Resources) -> Option<ByteSize> {
    let limit = resources.memory.as_ref()?.limit?;
    u64::try_from(limit)
        .ok()
        .filter(|limit| *limit > 0)
        .map(ByteSize)
}

/// Processors that the quota asks for.
#[must_use]
pub fn processors(resources: &Resources) -> Cpus {
    /// The kernel's period where none is given, in microseconds.
    const PERIOD: u64 = 100_000;
    let thousandths = || {
        let cpu = resources.cpu.as_ref()?;
        let quota = u64::try_from(cpu.quota?).ok()?;
        let period = cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD);
        u32::try_from(quota.checked_mul(1000)? / period).ok()
    };
    thousandths()
        .filter(|cpus| *cpus > 0)
        .map_or(Cpus::ONE, Cpus)
}

#[cfg(test)]
mod tests {
    use protocol::oci::{CpuLimits, MemoryLimits};

    use super::*;

    #[test]
    fn guest_memory_adds_what_the_guest_takes() {
        assert_eq!(guest_memory(None).unwrap(), DEFAULT_MEMORY);
        assert_eq!(
            guest_memory(Some(ByteSize::mib(64))).unwrap(),
            ByteSize::mib(114)
        );
    }

    #[test]
    fn absurd_memory_is_refused_with_the_way_out() {
        let small = guest_memory(Some(ByteSize(1))).unwrap_err().to_string();
        assert_eq!(
            small,
            "memory limit 1 B is too small to start a process; give at least 6 MiB"
        );
        let large = guest_memory(Some(ByteSize(u64::MAX)))
            .unwrap_err()
            .to_string();
        assert!(large.contains("more than this host has"), "{large}");
    }

    #[test]
    fn machine_is_as_large_as_the_limits() {
        let none = Resources::default();
        assert_eq!((memory_limit(&none), processors(&none)), (None, Cpus::ONE));
        let some = Resources {
            memory: Some(MemoryLimits {
                limit: Some(64 << 20),
                ..MemoryLimits::default()
            }),
            cpu: Some(CpuLimits {
                quota: Some(150_000),
                ..CpuLimits::default()
            }),
            ..Resources::default()
        };
        assert_eq!(memory_limit(&some), Some(ByteSize::mib(64)));
        assert_eq!(processors(&some), Cpus(1500));
        let unlimited = Resources {
            memory: Some(MemoryLimits {
                limit: Some(-1),
                ..MemoryLimits::default()
            }),
            cpu: Some(CpuLimits {
                quota: Some(-1),
                ..CpuLimits::default()
            }),
            ..Resources::default()
        };
        assert_eq!(
            (memory_limit(&unlimited), processors(&unlimited)),
            (None, Cpus::ONE)
        );
    }
}
