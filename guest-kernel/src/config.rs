//! The finished `.config`, and whether it says what the fragments asked for.
//!
//! kconfig drops an option whose dependencies are missing without a word, and
//! turns on what another option selects. A guest kernel that silently lacks
//! `CONFIG_CGROUP_BPF` fails much later, inside somebody's container; here it
//! fails before the first object is compiled, with every such option named.

use std::collections::BTreeMap;
use std::fmt;

use crate::fragment::{Request, option};

/// A parsed `.config`.
#[derive(Debug, Clone, Default)]
pub struct Config(BTreeMap<String, String>);

impl Config {
    /// Parses the text of a `.config`; lines that are no options are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(option)
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// The value of `name`; an option that is absent is off.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("n", String::as_str)
    }

    /// How many options are on.
    #[must_use]
    pub fn options_on(&self) -> usize {
        self.0.values().filter(|value| *value == "y").count()
    }

    /// Every request that did not survive, in the order of the requests.
    #[must_use]
    pub fn lost(&self, requests: &[Request]) -> Vec<Lost> {
        requests
            .iter()
            .filter(|request| self.value(&request.name) != request.value)
            .map(|request| Lost {
                request: request.clone(),
                got: self.value(&request.name).to_owned(),
            })
            .collect()
    }
}

/// A request that kconfig did not grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What was asked.
    pub request: Request,
    /// What the `.config` says instead.
    pub got: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            name,
            value,
            fragment,
            line,
            ..
        } = &self.request;
        write!(
            formatter,
            "{name}: wanted {value}, got {} ({fragment} line {line})",
            self.got
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment::parse;

    const DOT_CONFIG: &str = "#\n# Automatically generated file; DO NOT EDIT.\n#\nCONFIG_SMP=y\n\
        CONFIG_NR_CPUS=512\n# CONFIG_PCI is not set\nCONFIG_LSM=\"yama\"\nCONFIG_INPUT=y\n";

    #[test]
    fn lost_names_option_wanted_got_and_fragment() {
        let requests = parse(
            "x86.config",
            "# why\nCONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_KVM_GUEST=y\n# CONFIG_INPUT is not set\n",
        )
        .unwrap();
        let lost: Vec<_> = Config::parse(DOT_CONFIG)
            .lost(&requests)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            lost,
            [
                "CONFIG_NR_CPUS: wanted 64, got 512 (x86.config line 3)",
                "CONFIG_KVM_GUEST: wanted y, got n (x86.config line 4)",
                "CONFIG_INPUT: wanted n, got y (x86.config line 5)",
            ]
        );
    }

    #[test]
    fn lost_accepts_an_absent_option_as_off_and_an_equal_string() {
        let requests = parse(
            "a",
            "# why\n# CONFIG_PCI is not set\n# CONFIG_ACPI is not set\nCONFIG_LSM=\"yama\"\n",
        )
        .unwrap();
        let config = Config::parse(DOT_CONFIG);
        assert_eq!(config.lost(&requests), []);
        assert_eq!(config.options_on(), 2);
    }
}
