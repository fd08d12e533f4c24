//! Plain lines to the kernel's log, on errors only.
//!
//! They end up in the boot log, which the VMM keeps the end of. Whatever a
//! request suffers goes into its answer instead.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line. Without a kernel log there is nobody to tell.
pub(crate) fn line(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record of the log (Documentation/ABI/testing/dev-kmsg).
        let _ = log.write_all(format!("<3>nerite-agent: {text}\n").as_bytes());
    }
}
