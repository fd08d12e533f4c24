//! What is said: the machine's description, its streams, its end.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::broker::Policy;
use crate::stream::HostPort;
use crate::timeline::{GuestClock, Point};

/// Index of a descriptor among those sent with the same message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(pub usize);

/// A message to the VMM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum ToVmm {
    /// Measures how fast this KVM runs guest kernel code, answers
    /// [`FromVmm::Probed`] and ends.
    Probe {
        /// `/dev/kvm`.
        kvm: Fd,
    },
    /// Builds and runs the machine. Sent once, first.
    Start(MachineConfig),
    /// One more stream for a running machine.
    Stream(StreamConfig),
}

/// A message from the VMM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum FromVmm {
    /// The answer to [`ToVmm::Probe`].
    Probed(Probe),
    /// The guest kernel is about to run.
    Running {
        /// Translates the guest's points to the host's clock.
        clock: GuestClock,
        /// The VMM's points so far.
        points: Vec<Point>,
        /// What performs the disks' requests, if there are disks.
        disks: Option<BlockEngine>,
    },
    /// The machine has ended, or never began. The VMM's last message.
    Exited(Exit),
}

/// How fast a KVM runs guest kernel code.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Ring-0 instructions executed in the measured run.
    pub instructions: u64,
    /// Time that they took, in nanoseconds.
    pub ns: u64,
}

impl Probe {
    /// Below this rate guest kernel code is not run by the processor but
    /// interpreted: emulating KVMs manage 1–2 million instructions per
    /// second, the slowest nested hardware-style one measured 200 million.
    pub const SLOWEST_HARDWARE: u64 = 20_000_000;

    /// Instructions per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let rate = u128::from(self.instructions) * 1_000_000_000 / u128::from(self.ns.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// Whether guest kernel code runs at hardware speed.
    #[must_use]
    pub fn is_hardware(&self) -> bool {
        self.rate() >= Self::SLOWEST_HARDWARE
    }
}

/// A machine, complete; descriptors by index.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Processors that the guest may have, 1 to 64. It boots with one; the
    /// agent brings the others online.
    pub vcpus: u8,
    /// `/dev/kvm`.
    pub kvm: Fd,
    /// The kernel: an uncompressed 64-bit ELF `vmlinux`.
    pub kernel: Fd,
    /// Read-only images as virtio-pmem devices, in slot order from slot 0.
    /// The first is the OS layer and the guest's root.
    pub pmem: Vec<PmemConfig>,
    /// Disks as virtio-blk devices, in the slots behind the images'.
    pub block: Vec<BlockConfig>,
    /// Shared directories: one virtio-fs device for each policy, at most.
    pub fs: Vec<FsConfig>,
    /// Streams that exist before the guest runs.
    pub streams: Vec<StreamConfig>,
    /// Where the whole boot log goes, besides the tail that is always kept.
    /// With it the kernel logs everything; without it, only errors.
    pub console: Option<Fd>,
    /// Words appended to the kernel's command line.
    pub kernel_arguments: Vec<String>,
}

/// A read-only image in a slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PmemConfig {
    /// The image: a regular file, opened read-only.
    pub image: Fd,
}

/// A disk in a slot.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// The image, raw: a regular file or a block device, opened as it is to be
    /// used. Whoever gives a writable one has locked it.
    pub image: Fd,
    /// No writes.
    pub read_only: bool,
    /// What the guest reads as the disk's serial; 20 bytes at most.
    pub identity: String,
    /// How fast it may be.
    pub limits: BlockLimits,
}

/// How fast a disk may be, over all its queues.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct BlockLimits {
    /// Bytes read and written per second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Requests per second.
    pub operations_per_second: Option<NonZeroU64>,
}

/// What performs the requests of a machine's disks.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum BlockEngine {
    /// io_uring.
    IoUring,
    /// Threads, each with one request at a time: the host refuses io_uring.
    Threads {
        /// Why.
        reason: String,
    },
}

/// A virtio-fs device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct FsConfig {
    /// Its tag is [`Policy::tag`].
    pub policy: Policy,
    /// Channels to the broker: so many requests can be on their way.
    pub channels: Vec<Fd>,
    /// Bytes of guest-physical memory in which the guest can have pages of
    /// files themselves (DAX), a multiple of 2 MiB. Usually 0: none.
    pub window: u64,
}

/// One stream of the guest's vsock.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StreamConfig {
    /// The guest's first connection to this port gets the stream.
    pub port: HostPort,
    /// One end of a stream socketpair.
    pub socket: Fd,
}

/// How a machine ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The last lines of the guest's console, written by the guest: hostile
    /// text, to be shown only escaped.
    pub console: Vec<String>,
}

/// Why a machine ended. `Display` gives the sentence for people.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest asked for it: an orderly shutdown or restart.
    #[error("the guest shut down")]
    Shutdown,
    /// The guest's kernel panicked.
    #[error("the guest kernel panicked: {message}")]
    Panic {
        /// The panic's line on the console.
        message: String,
    },
    /// A fault that even the fault handler could not take.
    #[error("the guest triple-faulted at {rip:#x}")]
    TripleFault {
        /// Instruction pointer.
        rip: u64,
    },
    /// The processor refused to enter the guest.
    #[error("the processor refused to run the guest at {rip:#x} (hardware reason {reason:#x})")]
    EntryFailed {
        /// The processor's reason.
        reason: u64,
        /// Instruction pointer.
        rip: u64,
    },
    /// KVM gave up on an instruction.
    #[error("kvm could not run the guest at {rip:#x} (internal error {suberror})")]
    Internal {
        /// KVM's sub-error.
        suberror: u32,
        /// Instruction pointer.
        rip: u64,
    },
    /// An exit that this machine never causes on purpose.
    #[error("the guest stopped at {rip:#x} for a reason that nerite does not know: {exit}")]
    Unexpected {
        /// KVM's exit reason in words.
        exit: String,
        /// Instruction pointer.
        rip: u64,
    },
    /// Guest kernel code is interpreted on this host.
    #[error(
        "this host's kvm interprets guest kernel code ({rate} instructions per second): \
         the processor offers no virtualization here"
    )]
    EmulatedKvm {
        /// Measured instructions per second.
        rate: u64,
    },
    /// The machine could not be built or kept running; the error chain.
    #[error("{message}")]
    Failed {
        /// The chain of causes, outermost first.
        message: String,
    },
    /// The keeper closed the control socket.
    #[error("the keeper is gone")]
    KeeperGone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_tells_emulation_from_hardware() {
        assert!(
            !Probe {
                instructions: 40_000,
                ns: 26_000_000
            }
            .is_hardware()
        );
        assert!(
            Probe {
                instructions: 40_000,
                ns: 60_000
            }
            .is_hardware()
        );
        assert_eq!(
            Probe {
                instructions: 1,
                ns: 0
            }
            .rate(),
            1_000_000_000
        );
    }

    #[test]
    fn exit_reason_says_what_happened_in_one_line() {
        let reason = ExitReason::TripleFault { rip: 0x100_0000 };
        assert_eq!(reason.to_string(), "the guest triple-faulted at 0x1000000");
    }
}
