//! The one place that prints: results on standard output, the rest on standard
//! error.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::{Context, Result};
use guest_kernel::fragment::Request;

/// Writes a result. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

/// Says why the command failed, with all causes.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nobody is left to hear that standard error is closed.
    let _ = writeln!(io::stderr(), "guest-kernel: {error:#}");
}

/// The options as Markdown: a heading for each fragment, a paragraph for each
/// reason with the options that share it.
pub(crate) fn markdown(requests: &[Request]) -> String {
    let mut text = String::from("# Options of the guest kernel\n");
    let (mut fragment, mut reason) = ("", "");
    for request in requests {
        // Writing into a `String` cannot fail.
        if request.fragment != fragment {
            fragment = &request.fragment;
            reason = "";
            let _ = writeln!(text, "\n## {}", fragment.trim_end_matches(".config"));
        }
        if request.reason != reason {
            reason = &request.reason;
            let _ = write!(text, "\n{reason}\n\n");
        }
        let value = if request.value == "n" {
            "off"
        } else {
            &request.value
        };
        let _ = writeln!(text, "- `{}` {value}", request.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::fragment::parse;

    #[test]
    fn markdown_writes_each_reason_once() {
        let requests = parse(
            "x86.config",
            "# Several CPUs.\nCONFIG_SMP=y\nCONFIG_NR_CPUS=64\n\n# No screen.\n# CONFIG_VT is not set\n",
        )
        .unwrap();
        assert_eq!(
            markdown(&requests),
            "# Options of the guest kernel\n\n## x86\n\nSeveral CPUs.\n\n- `CONFIG_SMP` y\n\
             - `CONFIG_NR_CPUS` 64\n\nNo screen.\n\n- `CONFIG_VT` off\n"
        );
    }
}
