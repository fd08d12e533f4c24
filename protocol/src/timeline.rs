//! Named points of a sandbox's start on one clock.
//!
//! The clock is the host's `CLOCK_MONOTONIC` in nanoseconds. The guest stamps
//! its points with its time stamp counter, because its own clocks do not run
//! yet when the first points pass; [`ClockPair`]s and the counter's offset,
//! both taken by the VMM, translate them afterwards.

use serde::{Deserialize, Serialize};

/// The keeper's `main` begins.
pub const KEEPER_START: &str = "keeper.start";
/// The image's layer is ready in the cache.
pub const IMAGE_READY: &str = "keeper.image-ready";
/// The VMM process has been spawned and told what to run.
pub const VMM_SPAWNED: &str = "keeper.vmm-spawned";
/// The VMM's `main` begins.
pub const VMM_START: &str = "vmm.start";
/// The VMM has read the machine's description.
pub const VMM_CONFIGURED: &str = "vmm.configured";
/// Guest memory is mapped and the kernel is in it.
pub const VMM_KERNEL_LOADED: &str = "vmm.kernel-loaded";
/// The first guest instruction of the kernel is about to run.
pub const VMM_KERNEL_ENTRY: &str = "vmm.kernel-entry";
/// The agent's `main` begins.
pub const AGENT_START: &str = "agent.start";
/// The agent has mounted what it needs and has connected to the keeper.
pub const AGENT_READY: &str = "agent.ready";
/// The agent has received the request to create the container.
pub const CONTAINER_CREATE: &str = "agent.create";
/// The container's root is assembled and its first process waits to start.
pub const CONTAINER_CREATED: &str = "agent.created";
/// The agent has received the request to start the container.
pub const CONTAINER_START: &str = "agent.start-request";
/// The workload's `execve` has succeeded.
pub const WORKLOAD_EXEC: &str = "agent.exec";
/// The workload has exited.
pub const WORKLOAD_EXIT: &str = "agent.exit";
/// The keeper knows the exit status.
pub const KEEPER_EXIT: &str = "keeper.exit-known";
/// All output has been passed on; the keeper is about to return.
pub const KEEPER_DONE: &str = "keeper.done";

/// One point of a timeline.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// One of this module's names, or a finer one below them.
    pub name: String,
    /// Host `CLOCK_MONOTONIC` in nanoseconds.
    pub ns: u64,
}

impl Point {
    /// A point now.
    #[must_use]
    pub fn now(name: &str) -> Self {
        Self {
            name: name.into(),
            ns: monotonic_ns(),
        }
    }
}

/// The host's `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    sys::monotonic_ns()
}

/// The processor's time stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    sys::tsc()
}

/// The host's clock and its time stamp counter at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClockPair {
    /// Host `CLOCK_MONOTONIC` in nanoseconds.
    pub ns: u64,
    /// Host time stamp counter.
    pub tsc: u64,
}

impl ClockPair {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        Self {
            ns: monotonic_ns(),
            tsc: tsc(),
        }
    }
}

/// How a guest's time stamp counter maps to the host's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct GuestClock {
    /// A moment near the guest's first instruction.
    pub anchor: ClockPair,
    /// Guest counter minus host counter (KVM's `KVM_VCPU_TSC_OFFSET`).
    pub tsc_offset: i64,
    /// The guest counter's frequency in kHz (KVM's `KVM_GET_TSC_KHZ`).
    pub tsc_khz: u32,
}

impl GuestClock {
    /// The host's `CLOCK_MONOTONIC` at a guest's counter value. The value
    /// comes from the guest and may be anything: the result saturates.
    #[must_use]
    pub fn host_ns(&self, guest_tsc: u64) -> u64 {
        let anchor = i128::from(self.anchor.tsc);
        let host_tsc = i128::from(guest_tsc.wrapping_sub(self.tsc_offset.cast_unsigned()));
        let ns = (host_tsc - anchor) * 1_000_000 / i128::from(self.tsc_khz.max(1));
        u64::try_from(i128::from(self.anchor.ns) + ns).unwrap_or(if ns < 0 { 0 } else { u64::MAX })
    }
}

mod sys {
    //! The two clock reads that have no safe wrapper.

    pub(super) fn monotonic_ns() -> u64 {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `now` is a live, writable timespec; the clock always exists.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
    }

    pub(super) fn tsc() -> u64 {
        // SAFETY: every x86_64 processor has RDTSC, and nerite does not set
        // the prctl that makes it fault.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(tsc_offset: i64) -> GuestClock {
        GuestClock {
            anchor: ClockPair {
                ns: 1_000_000,
                tsc: 5_000_000,
            },
            tsc_offset,
            tsc_khz: 2_000_000,
        }
    }

    #[test]
    fn guest_counter_maps_by_offset_and_frequency() {
        // 2 GHz: 2,000 ticks are 1,000 ns. The guest's counter began at 0.
        assert_eq!(clock(-5_000_000).host_ns(2_000), 1_001_000);
        assert_eq!(clock(0).host_ns(5_002_000), 1_001_000);
        assert_eq!(clock(0).host_ns(4_998_000), 999_000);
    }

    #[test]
    fn absurd_guest_counter_saturates() {
        assert_eq!(clock(0).host_ns(0), 0);
        let slow = GuestClock {
            tsc_khz: 0,
            ..clock(0)
        };
        assert_eq!(slow.host_ns(u64::MAX), u64::MAX);
    }

    #[test]
    fn clocks_advance() {
        let first = ClockPair::now();
        let second = ClockPair::now();
        assert!(second.ns >= first.ns && second.tsc > first.tsc);
    }
}
