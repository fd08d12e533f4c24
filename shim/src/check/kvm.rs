//! KVM: there, permitted, and real.
//!
//! Some clouds offer a `/dev/kvm` that answers every call, yet interprets
//! guest kernel code one instruction at a time. A boot there looks like a hang
//! (BOOT-10), so the rate is measured, by the very VMM that would boot.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use protocol::control::{ExitReason, FromVmm, Probe};

use super::Item;
use crate::assets::Assets;
use crate::sandbox::open_kvm;
use crate::vmm::{Vmm, VmmError};

/// How long the measurement may take; an emulating KVM needs a fraction.
const PROBE_DEADLINE: Duration = Duration::from_millis(1500);

pub(super) async fn items(assets: &Assets) -> Vec<Item> {
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |source| source.to_string());
            let advice = error.to_string();
            let advice = advice
                .split_once(": ")
                .map_or(advice.as_str(), |(_, advice)| advice);
            return vec![Item::failure(
                "kvm",
                "KVM",
                format!("/dev/kvm: {cause}"),
                advice,
            )];
        }
    };
    let mut items = vec![Item::ok("kvm", "KVM", "/dev/kvm is there and may be used")];
    items.push(match measure(assets, kvm.as_fd()).await {
        Ok(Ok(probe)) => speed(probe),
        Ok(Err(reason)) => Item::failure(
            "kvm-speed",
            "guest speed",
            format!("not measured: {reason}"),
            "see the kernel's log for what KVM says (`dmesg | grep -i kvm`)",
        ),
        Err(Some(error)) => Item::failure(
            "kvm-speed",
            "guest speed",
            format!("not measured: {error}"),
            "reinstall nerite (`make install`)",
        ),
        Err(None) => emulated(&format!(
            "guest kernel code took longer than {} ms to run a loop",
            PROBE_DEADLINE.as_millis()
        )),
    });
    items
}

/// The rate; else why the VMM could not tell; else why it did not answer,
/// `None` when that was for want of time.
async fn measure(
    assets: &Assets,
    kvm: std::os::fd::BorrowedFd<'_>,
) -> Result<Result<Probe, ExitReason>, Option<VmmError>> {
    let vmm = Vmm::spawn(&assets.vmm).map_err(Some)?;
    vmm.probe(kvm).await.map_err(Some)?;
    match tokio::time::timeout(PROBE_DEADLINE, vmm.next()).await {
        Err(_) => Err(None),
        Ok(Err(error)) => Err(Some(error)),
        Ok(Ok(FromVmm::Probed(probe))) => Ok(Ok(probe)),
        Ok(Ok(FromVmm::Exited(exit))) => Ok(Err(exit.reason)),
        Ok(Ok(FromVmm::Running { .. })) => Ok(Err(ExitReason::Failed {
            message: "the VMM answered another question".into(),
        })),
    }
}

fn speed(probe: Probe) -> Item {
    let millions = probe.rate() / 1_000_000;
    if probe.is_hardware() {
        let found =
            format!("guest kernel code runs at hardware speed ({millions} million instructions/s)");
        return Item::ok("kvm-speed", "guest speed", found);
    }
    emulated(&format!(
        "guest kernel code is interpreted ({:.1} million instructions/s)",
        f64::from(u32::try_from(probe.rate() / 1000).unwrap_or(u32::MAX)) / 1000.0
    ))
}

fn emulated(measured: &str) -> Item {
    let module = Path::new("/sys/module/kvm_pvm").exists();
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let kind = match (module, has("svm") || has("vmx")) {
        (true, _) => "an emulating KVM (kvm_pvm)",
        (false, false) => "an emulating KVM: the processor shows neither vmx nor svm",
        (false, true) => "an emulating KVM, although the processor shows vmx or svm",
    };
    Item::failure(
        "kvm-speed",
        "guest speed",
        format!("{kind}; {measured}"),
        "use a host whose processor offers virtualization: bare metal, or a cloud instance with \
         nested virtualization enabled",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn speed_tells_hardware_from_emulation() {
        let hardware = speed(Probe {
            instructions: 40_000,
            ns: 20_000,
        });
        assert_eq!(hardware.status, Status::Ok);
        let slow = speed(Probe {
            instructions: 40_000,
            ns: 26_000_000,
        });
        assert_eq!(slow.status, Status::Failure);
        assert!(slow.found.contains("an emulating KVM"), "{slow:?}");
        assert!(
            slow.found.contains("1.5 million instructions/s"),
            "{slow:?}"
        );
    }
}
