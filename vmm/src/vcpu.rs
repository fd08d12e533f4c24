//! A virtual processor: its thread, and what each exit means.
//!
//! A thread per processor blocks in KVM and answers its exits: registers of
//! the slots, a handful of ports, and everything that ends the machine. It
//! decides nothing about devices; a kick only wakes the event loop.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kvm_ioctls::{VcpuExit, VcpuFd};
use protocol::control::ExitReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::console::Console;
use crate::devices::fs::FileWindow;
use crate::kvm;
use crate::memory::GuestRam;
use crate::slots::{Slot, Slots};

/// Enough for the exit loop; the default of 2 MiB would only be address
/// space, but the less there is the less there is.
const STACK: usize = 128 << 10;

/// Keyboard controller: command and status. Linux restarts by pulsing the
/// reset line (`reboot=k`), after waiting for the input buffer to be empty.
const RESET_PORT: u16 = 0x64;
const RESET_COMMAND: u8 = 0xfe;
/// First serial port, for errors before the virtio console is there.
const SERIAL: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
const SERIAL_DATA: u16 = 0x3f8;
/// Divisor access bit of the serial port's line control register.
const SERIAL_LINE_CONTROL: u16 = 0x3fb;
const DIVISOR_ACCESS: u8 = 0x80;

/// How the machine ended, told once by whichever processor ended it.
#[derive(Debug)]
pub(crate) struct Ending {
    reason: Mutex<Option<ExitReason>>,
    told: EventFd,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            told: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Becomes readable when the machine has ended.
    pub(crate) fn told(&self) -> &EventFd {
        &self.told
    }

    /// The reason, once there is one.
    pub(crate) fn take(&self) -> Option<ExitReason> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Ends the machine; the first reason counts.
    pub(crate) fn tell(&self, reason: ExitReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(reason);
        drop(first);
        // Fails only when it is readable already.
        let _ = self.told.write(1);
    }
}

/// What all processors share.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    pub(crate) slots: Slots,
    pub(crate) ram: GuestRam,
    pub(crate) console: Arc<Slot<Console>>,
    pub(crate) ending: Arc<Ending>,
    /// Windows on files.
    pub(crate) windows: Vec<Arc<FileWindow>>,
}

/// So many times it is told in the console's log that a file ended early.
const TOLD: u64 = 16;
const MENDED: &str =
    "nerite: a file is shorter than what the guest has of it: zeros behind its end\n";

impl Board {
    fn mendings(&self) -> u64 {
        let count = |sum: u64, window: &Arc<FileWindow>| sum.saturating_add(window.mendings());
        self.windows.iter().fold(0, count)
    }

    /// A processor has met memory without a page. True when a file that has
    /// become too short may be the reason, and there are zeros now: put there
    /// by this processor, or by another that was there since it had `seen`.
    fn mend(&self, seen: &mut u64) -> bool {
        for window in &self.windows {
            window.mend();
        }
        let now = self.mendings();
        if now == *seen {
            return false;
        }
        if now <= TOLD {
            self.console
                .with_device(|console| console.write(MENDED.as_bytes()));
        }
        *seen = now;
        true
    }
}

/// One processor, not yet running.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
}

impl Vcpu {
    /// Starts the processor on a thread of its own.
    pub(crate) fn start(self, board: Board) -> io::Result<()> {
        thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .stack_size(STACK)
            .spawn(move || {
                let mut running = Running {
                    fd: self.fd,
                    serial_divisor: false,
                    mended: 0,
                    board,
                };
                let reason = running.run();
                running.board.ending.tell(reason);
            })?;
        Ok(())
    }
}

/// A processor in its loop.
#[derive(Debug)]
struct Running {
    fd: VcpuFd,
    /// The serial port's data register is its divisor at the moment.
    serial_divisor: bool,
    /// Mendings of windows that it knows of.
    mended: u64,
    board: Board,
}

impl Running {
    /// Runs until the machine ends; says why.
    fn run(&mut self) -> ExitReason {
        loop {
            let end = match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    self.board.slots.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    self.board.slots.write(address, data, &self.board.ram);
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    // The status port says "ready for a command".
                    data.fill(if port == RESET_PORT { 0 } else { 0xff });
                    continue;
                }
                Ok(VcpuExit::IoOut(RESET_PORT, &[RESET_COMMAND])) => {
                    return ExitReason::Shutdown;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    if SERIAL.contains(&port) {
                        serial(&mut self.serial_divisor, &self.board.console, port, data);
                    }
                    continue;
                }
                Ok(VcpuExit::Shutdown) => End::TripleFault,
                Ok(VcpuExit::FailEntry(reason, _)) => End::EntryFailed(reason),
                Ok(VcpuExit::InternalError) => End::Internal,
                Ok(exit) => End::Unexpected(format!("{exit:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error)
                    if error.errno() == libc::EFAULT && self.board.mend(&mut self.mended) =>
                {
                    continue;
                }
                Err(error) => End::Unexpected(error.to_string()),
            };
            return self.explain(end);
        }
    }

    fn explain(&mut self, end: End) -> ExitReason {
        let rip = self.fd.get_regs().map_or(0, |registers| registers.rip);
        match end {
            End::TripleFault => ExitReason::TripleFault { rip },
            End::EntryFailed(reason) => ExitReason::EntryFailed { reason, rip },
            End::Internal => ExitReason::Internal {
                suberror: kvm::internal_suberror(&mut self.fd),
                rip,
            },
            End::Unexpected(exit) => ExitReason::Unexpected { exit, rip },
        }
    }
}

/// An exit that ends the machine, before the instruction pointer is known.
#[derive(Debug)]
enum End {
    TripleFault,
    EntryFailed(u64),
    Internal,
    Unexpected(String),
}

/// A write to the serial port: its data is console output.
fn serial(divisor: &mut bool, console: &Slot<Console>, port: u16, data: &[u8]) {
    match port {
        SERIAL_LINE_CONTROL => {
            *divisor = data.first().is_some_and(|byte| byte & DIVISOR_ACCESS != 0);
        }
        SERIAL_DATA if !*divisor => console.with_device(|device| device.write(data)),
        _ => {}
    }
}
