//! Configuration fragments: which options the guest kernel has, and why.
//!
//! The format is kconfig's own (`CONFIG_X=y`, `# CONFIG_X is not set`), so that
//! the kernel's tools read a fragment too, with one rule added: a paragraph
//! opens with the reason for its options. An option without a reason, a second
//! owner of an option and a module (there is no loader) are errors. A format of
//! our own with a field for the reason would need a converter and hide a
//! fragment from everybody who knows kernels.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::listing::files;

/// One option that a fragment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// With its `CONFIG_` prefix.
    pub name: String,
    /// As in a `.config`: `y`, `n`, a number, or a string with its quotes.
    pub value: String,
    /// The comment above, joined to one line.
    pub reason: String,
    /// File name of the fragment.
    pub fragment: String,
    /// Counted from 1.
    pub line: usize,
}

/// A fragment that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// A directory or file could not be read.
    #[error("read fragments in {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory holds none.
    #[error("no *.config in {}", .0.display())]
    Empty(PathBuf),
    /// A line that is neither option, comment nor blank, or breaks a rule.
    #[error("{fragment} line {line}: {what}")]
    Line {
        /// File name.
        fragment: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Two fragments, or two lines, own the same option.
    #[error("{name} is asked for twice: {first} and {second}")]
    Twice {
        /// The option.
        name: String,
        /// File and line.
        first: String,
        /// File and line.
        second: String,
    },
}

/// Reads every `*.config` of `directory`, in the order of their names.
///
/// # Errors
///
/// [`FragmentError`]: unreadable, malformed, without a reason, or asked twice.
pub fn read_directory(directory: &Path) -> Result<Vec<Request>, FragmentError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| FragmentError::Read { path, source }
    };
    let paths = files(directory, "config").map_err(unreadable(directory))?;
    if paths.is_empty() {
        return Err(FragmentError::Empty(directory.to_owned()));
    }
    let mut requests = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        requests.extend(parse(&name, &text)?);
    }
    check_owners(&requests)?;
    Ok(requests)
}

/// Parses one fragment, named `fragment` in errors.
///
/// # Errors
///
/// [`FragmentError::Line`] for the first line that breaks a rule.
pub fn parse(fragment: &str, text: &str) -> Result<Vec<Request>, FragmentError> {
    let mut requests = Vec::new();
    let mut reason = String::new();
    let mut after_option = false;
    for (index, line) in text.lines().enumerate() {
        let wrong = |what: &str| FragmentError::Line {
            fragment: fragment.to_owned(),
            line: index + 1,
            what: what.to_owned(),
        };
        if line.trim().is_empty() {
            reason.clear();
            after_option = false;
            continue;
        }
        let Some((name, value)) = option(line) else {
            let comment = line
                .strip_prefix('#')
                .ok_or_else(|| wrong("no option and no comment"))?;
            if std::mem::take(&mut after_option) {
                reason.clear();
            }
            if !reason.is_empty() {
                reason.push(' ');
            }
            reason.push_str(comment.trim());
            continue;
        };
        check_name(name).map_err(wrong)?;
        check_value(value).map_err(wrong)?;
        if reason.is_empty() {
            return Err(wrong("option without a reason above it"));
        }
        after_option = true;
        requests.push(Request {
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.clone(),
            fragment: fragment.to_owned(),
            line: index + 1,
        });
    }
    Ok(requests)
}

/// The requests as one text for kconfig, sorted by name: what the digest sees,
/// so that a better reason does not build a new kernel.
#[must_use]
pub fn merged(requests: &[Request]) -> String {
    let sorted: BTreeMap<&str, &str> = requests
        .iter()
        .map(|request| (request.name.as_str(), request.value.as_str()))
        .collect();
    sorted
        .iter()
        .map(|(name, value)| {
            if *value == "n" {
                format!("# {name} is not set\n")
            } else {
                format!("{name}={value}\n")
            }
        })
        .collect()
}

/// An option line of a fragment or of a `.config` as name and value.
pub(crate) fn option(line: &str) -> Option<(&str, &str)> {
    if let Some(off) = line.strip_prefix("# ") {
        let name = off.strip_suffix(" is not set")?;
        return name.starts_with("CONFIG_").then_some((name, "n"));
    }
    line.starts_with("CONFIG_").then(|| line.split_once('='))?
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.bytes().all(plain) {
        Ok(())
    } else {
        Err("odd characters in the option's name")
    }
}

fn check_value(value: &str) -> Result<(), &'static str> {
    let digits = value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix('-'))
        .unwrap_or(value);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let string = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    match value {
        "y" | "n" => Ok(()),
        "m" => Err("modules are off: `y` or not set"),
        _ if number || string => Ok(()),
        _ => Err("value is no `y`, number or quoted string; comments stand above the option"),
    }
}

fn check_owners(requests: &[Request]) -> Result<(), FragmentError> {
    let mut owners: BTreeMap<&str, &Request> = BTreeMap::new();
    for request in requests {
        if let Some(first) = owners.insert(&request.name, request) {
            return Err(FragmentError::Twice {
                name: request.name.clone(),
                first: format!("{} line {}", first.fragment, first.line),
                second: format!("{} line {}", request.fragment, request.line),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Guests have more than one CPU.\nCONFIG_SMP=y\nCONFIG_NR_CPUS=64\n\n\
        # No such hardware,\n# and it probes for long.\n# CONFIG_VT is not set\n\
        # Whose build it is.\nCONFIG_LOCALVERSION=\"-nerite\"\n";

    #[test]
    fn parse_gives_each_option_its_paragraphs_reason() {
        let requests = parse("x86.config", TEXT).unwrap();
        let short: Vec<_> = requests
            .iter()
            .map(|request| {
                (
                    request.name.as_str(),
                    request.value.as_str(),
                    request.reason.as_str(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("CONFIG_SMP", "y", "Guests have more than one CPU."),
                ("CONFIG_NR_CPUS", "64", "Guests have more than one CPU."),
                (
                    "CONFIG_VT",
                    "n",
                    "No such hardware, and it probes for long."
                ),
                ("CONFIG_LOCALVERSION", "\"-nerite\"", "Whose build it is."),
            ]
        );
        assert_eq!(
            (requests[2].line, requests[2].fragment.as_str()),
            (7, "x86.config")
        );
    }

    #[test]
    fn parse_refuses_what_breaks_a_rule_and_names_the_line() {
        for (text, expected) in [
            (
                "CONFIG_SMP=y\n",
                "a line 1: option without a reason above it",
            ),
            (
                "# r\nCONFIG_A=y\n\nCONFIG_B=y\n",
                "a line 4: option without a reason above it",
            ),
            (
                "# r\nCONFIG_A=m\n",
                "a line 2: modules are off: `y` or not set",
            ),
            (
                "# r\nCONFIG_A-B=y\n",
                "a line 2: odd characters in the option's name",
            ),
            ("SMP=y\n", "a line 1: no option and no comment"),
        ] {
            assert_eq!(parse("a", text).unwrap_err().to_string(), expected);
        }
        assert!(parse("a", "# r\nCONFIG_A=y # why\n").is_err());
        assert!(parse("a", "# r\nCONFIG_A=\n").is_err());
    }

    #[test]
    fn merged_is_sorted_and_without_reasons() {
        let requests = parse("x86.config", TEXT).unwrap();
        assert_eq!(
            merged(&requests),
            "CONFIG_LOCALVERSION=\"-nerite\"\nCONFIG_NR_CPUS=64\nCONFIG_SMP=y\n# CONFIG_VT is not set\n"
        );
    }

    #[test]
    fn read_directory_refuses_an_option_with_two_owners() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("b.config"), "# r\nCONFIG_A=y\n").unwrap();
        fs::write(
            directory.path().join("a.config"),
            "# r\n\n# r\n# CONFIG_A is not set\n",
        )
        .unwrap();
        assert_eq!(
            read_directory(directory.path()).unwrap_err().to_string(),
            "CONFIG_A is asked for twice: a.config line 4 and b.config line 2"
        );
    }

    #[test]
    fn shipped_fragments_are_well_formed() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fragments");
        let requests = read_directory(&directory).unwrap();
        let value = |name: &str| {
            requests
                .iter()
                .find(|request| request.name == name)
                .map(|request| request.value.as_str())
        };
        for (name, wanted) in [
            ("CONFIG_KVM_GUEST", "y"),
            ("CONFIG_PARAVIRT", "y"),
            ("CONFIG_ACPI", "n"),
            ("CONFIG_PCI", "n"),
            ("CONFIG_MODULES", "n"),
            ("CONFIG_SERIO", "n"),
            ("CONFIG_RTC_CLASS", "n"),
            ("CONFIG_IP_PNP", "n"),
        ] {
            assert_eq!(value(name), Some(wanted), "{name}");
        }
    }
}
