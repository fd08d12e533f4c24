//! The kernel's command line, built from the same slots as the bus.
//!
//! Each word says why it is there; whoever adds one measures the boot.

use crate::arch::x86_64::COMMAND_LINE_LIMIT;
use crate::slots::{LEAST_SLOTS, SLOTS, SlotAddress};

/// What the command line depends on.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Processors that the machine may have.
    pub vcpus: u8,
    /// Devices in slots, from the first.
    pub devices: usize,
    /// Whether somebody reads the whole boot log.
    pub verbose: bool,
    /// Words appended at the end.
    pub arguments: &'a [String],
}

/// A command line that Linux would cut off or misread.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandLineError {
    /// Longer than Linux takes.
    #[error("kernel command line of {length} bytes exceeds {COMMAND_LINE_LIMIT}")]
    TooLong {
        /// Its length, terminator included.
        length: usize,
    },
    /// Not one word of printable ASCII.
    #[error("kernel argument {argument:?} is not one word of printable ascii")]
    Argument {
        /// The offending argument.
        argument: String,
    },
}

/// Words that every guest gets.
const ALWAYS: &[&str] = &[
    // The boot log goes over virtio: one exit for many lines.
    "console=hvc0",
    // A panic ends the VM at once, by the port that the VMM watches.
    "panic=-1",
    "reboot=k",
    // The OS layer: EROFS on the first pmem device, mapped, never copied.
    "root=/dev/pmem0",
    "rootfstype=erofs",
    "rootflags=dax=always",
    "ro",
    "init=/init",
    // KVM keeps the counters of all processors together: no watchdog.
    "tsc=reliable",
    // There is no timer chip behind the IOAPIC whose line could be tested.
    "no_timer_check",
    // The processor's generator seeds the kernel's at once.
    "random.trust_cpu=on",
    // No devices that nobody has asked for: they cost a millisecond, and a
    // container that shares this network namespace would see them.
    "dummy.numdummies=0",
    "ifb.numifbs=0",
];

/// The whole command line.
///
/// # Errors
///
/// [`CommandLineError`] when an argument is no word or the line is too long.
pub fn build(boot: &Boot<'_>) -> Result<String, CommandLineError> {
    let mut words: Vec<String> = ALWAYS.iter().map(ToString::to_string).collect();
    if boot.verbose {
        words.push("loglevel=7".into());
    } else {
        // Nothing is written on the way of a start; errors still are.
        words.push("quiet".into());
    }
    // Until the virtio console is there, errors (and a panic's last words)
    // go to a serial port: silent on a start that goes well.
    words.push("earlyprintk=serial,ttyS0".into());
    if boot.vcpus > 1 {
        // The agent brings the others online after it has answered: bringing
        // them up during boot costs more than the rest of it.
        words.push("maxcpus=1".into());
    }
    let slots = boot.devices.clamp(LEAST_SLOTS, SLOTS);
    words.extend((0..slots).map(|slot| SlotAddress(slot).kernel_argument()));
    for argument in boot.arguments {
        if argument.is_empty() || !argument.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CommandLineError::Argument {
                argument: argument.clone(),
            });
        }
        words.push(argument.clone());
    }
    let line = words.join(" ");
    let length = line.len() + 1;
    if length > COMMAND_LINE_LIMIT {
        return Err(CommandLineError::TooLong { length });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(vcpus: u8, verbose: bool, arguments: &[String]) -> Result<String, CommandLineError> {
        build(&Boot {
            vcpus,
            devices: 4,
            verbose,
            arguments,
        })
    }

    #[test]
    fn line_names_each_slot_once_in_order() {
        let line = line(1, false, &[]).unwrap();
        let slots: Vec<_> = line
            .split(' ')
            .filter(|word| word.starts_with("virtio_mmio.device="))
            .collect();
        assert_eq!(slots.len(), LEAST_SLOTS);
        assert_eq!(slots[0], "virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(slots[1], "virtio_mmio.device=4K@0xd0001000:6");
        assert!(!line.contains("maxcpus"));
    }

    #[test]
    fn line_names_a_slot_for_each_device() {
        let slots = |devices| {
            let boot = Boot {
                vcpus: 1,
                devices,
                verbose: false,
                arguments: &[],
            };
            build(&boot).unwrap().matches("virtio_mmio.device=").count()
        };
        assert_eq!((slots(9), slots(SLOTS), slots(99)), (9, SLOTS, SLOTS));
    }

    #[test]
    fn line_holds_further_processors_back() {
        assert!(line(2, false, &[]).unwrap().contains(" maxcpus=1 "));
    }

    #[test]
    fn line_refuses_what_the_kernel_would_misread() {
        for argument in ["", "two words", "new\nline", "nul\0"] {
            assert!(line(1, false, &[argument.into()]).is_err(), "{argument:?}");
        }
        assert!(matches!(
            line(1, true, &["x".repeat(COMMAND_LINE_LIMIT)]),
            Err(CommandLineError::TooLong { .. })
        ));
    }
}
