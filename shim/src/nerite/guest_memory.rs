//! How much RAM a guest gets.

use anyhow::{Context, bail};
use shim::size::ByteSize;

/// Guest RAM where no limit is asked for.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);

/// What the guest's kernel and agent may take on top of a memory limit.
const GUEST_OVERHEAD: ByteSize = ByteSize::mib(48);

/// Docker's least memory limit; less does not start a process.
const LEAST_MEMORY: ByteSize = ByteSize::mib(6);

/// The unit of guest RAM: a huge page.
const HUGE_PAGE: ByteSize = ByteSize::mib(2);

/// Guest RAM for a memory limit: the limit and what the guest itself takes.
pub(crate) fn guest_memory(limit: Option<ByteSize>) -> anyhow::Result<ByteSize> {
    let Some(limit) = limit else {
        return Ok(DEFAULT_MEMORY);
    };
    if limit < LEAST_MEMORY {
        bail!("memory limit {limit} is too small to start a process; give at least {LEAST_MEMORY}");
    }
    let host = host_memory()?;
    if limit > host {
        bail!("memory limit {limit} is more than this host has ({host}); give less with -m");
    }
    // The kernel needs 1/64 of RAM for its page structures.
    Ok(ByteSize(limit.0 + limit.0 / 64 + GUEST_OVERHEAD.0).round_up(HUGE_PAGE))
}

fn host_memory() -> anyhow::Result<ByteSize> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| ByteSize(kib << 10))
        .context("find MemTotal in /proc/meminfo")
}

#[cfg(test)]
mod tests {
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
}
