//! The speed judge: does this KVM run guest kernel code, or interpret it?
//!
//! On a host without VMX or SVM `/dev/kvm` may still answer every request and
//! interpret each ring-0 instruction, a hundred times slower. A boot then
//! looks like a hang. A short loop, timed before the kernel is entered, tells
//! in microseconds on real hardware and in a tenth of a second elsewhere.

use std::io;
use std::time::Instant;

use kvm_ioctls::{VcpuExit, VcpuFd};
use protocol::control::Probe;
use vm_memory::{Bytes, GuestMemoryError};

use crate::arch::x86_64::{JUDGE_CODE, registers};
use crate::memory::GuestRam;

/// Turns of the timed loop, two instructions each: some 20 µs on hardware,
/// 26 ms where they are interpreted.
const TURNS: u32 = 20_000;
/// Turns before it, so that faults and translation are not timed.
const WARM_UP: u32 = 16;
/// A slow result is measured again: the host may have been busy.
const ATTEMPTS: usize = 3;
/// The loop ends with a write to this port, where nothing is.
const PORT: u8 = 0xf4;

/// A judgement that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The loop could not be written.
    #[error("write the speed judge's loop")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused.
    #[error("run the speed judge's loop")]
    Kvm(#[source] io::Error),
    /// The loop ended in some other way.
    #[error("the speed judge's loop ended with {exit}")]
    Exit {
        /// KVM's exit reason.
        exit: String,
    },
}

/// Measures; the processor's special registers must be set. The general ones
/// are changed.
///
/// # Errors
///
/// [`JudgeError`].
pub(crate) fn measure(vcpu: &mut VcpuFd, ram: &GuestRam) -> Result<Probe, JudgeError> {
    run(vcpu, ram, WARM_UP)?;
    let mut best: Option<Probe> = None;
    for _ in 0..ATTEMPTS {
        let probe = run(vcpu, ram, TURNS)?;
        if best.is_none_or(|best| probe.ns < best.ns) {
            best = Some(probe);
        }
        if probe.is_hardware() {
            break;
        }
    }
    Ok(best.unwrap_or(Probe {
        instructions: 0,
        ns: 1,
    }))
}

fn run(vcpu: &mut VcpuFd, ram: &GuestRam, turns: u32) -> Result<Probe, JudgeError> {
    let kvm = |error: kvm_ioctls::Error| JudgeError::Kvm(error.into());
    let mut code = vec![0xb9]; // mov ecx, turns
    code.extend_from_slice(&turns.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xc9]); // dec ecx
    code.extend_from_slice(&[0x75, 0xfc]); // jnz back to it
    code.extend_from_slice(&[0xe6, PORT]); // out port, al
    ram.write_slice(&code, JUDGE_CODE)?;
    vcpu.set_regs(&registers::general(JUDGE_CODE))
        .map_err(kvm)?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(PORT) => break,
            Ok(exit) => {
                let exit = format!("{exit:?}");
                return Err(JudgeError::Exit { exit });
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(kvm(error)),
        }
    }
    let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(Probe {
        instructions: 2 + 2 * u64::from(turns),
        ns,
    })
}
