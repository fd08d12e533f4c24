//! What a built kernel depends on, as one name for its place in the cache.
//!
//! Equal digest means equal bytes: source, options, compiler, linker and this
//! builder's own settings go in; comments, job count, time and place do not.

use std::fmt::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::patch::Patch;

/// Raised by whoever changes what the builder does to the same inputs.
const BUILDER_REVISION: &str = "1";

/// Everything that decides the bytes of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Version of the source package, as apt names it.
    pub source_version: &'a str,
    /// The merged requests, sorted.
    pub options: &'a str,
    /// The patches, whole.
    pub patches: &'a [Patch],
    /// What compiler and linker say of themselves.
    pub toolchain: &'a str,
    /// The variables given to make.
    pub settings: &'a [&'a str],
}

/// Sixteen hexadecimal digits: the name of a kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

/// Eight hexadecimal digits for `patches`: the name of their source's variant.
#[must_use]
pub fn of_patches(patches: &[Patch]) -> String {
    hexadecimal(patches.iter().map(|patch| patch.text.as_str()), 4)
}

/// The first `bytes` of a hash over `fields`, each told from the next.
fn hexadecimal<'a>(fields: impl IntoIterator<Item = &'a str>, bytes: usize) -> String {
    let mut hash = Sha256::new();
    for field in fields {
        hash.update(field.len().to_le_bytes());
        hash.update(field);
    }
    let mut name = String::new();
    for byte in hash.finalize().iter().take(bytes) {
        // Writing into a `String` cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

impl Digest {
    /// The digest of `inputs`.
    #[must_use]
    pub fn of(inputs: &Inputs<'_>) -> Self {
        let fields = [BUILDER_REVISION, inputs.source_version, inputs.options]
            .into_iter()
            .chain(inputs.patches.iter().map(|patch| patch.text.as_str()))
            .chain([inputs.toolchain])
            .chain(inputs.settings.iter().copied());
        Self(hexadecimal(fields, 8))
    }

    /// Whether `name` could be a digest: how the cache knows its own directories.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const INPUTS: Inputs<'_> = Inputs {
        source_version: "6.12.1-1",
        options: "CONFIG_SMP=y\n",
        patches: &[],
        toolchain: "gcc 12",
        settings: &["A=1", "B=2"],
    };

    #[test]
    fn digest_is_stable_and_names_a_directory() {
        let digest = Digest::of(&INPUTS);
        assert_eq!(digest, Digest::of(&INPUTS));
        assert!(Digest::is_name(&digest.to_string()));
        assert!(!Digest::is_name("source"));
    }

    #[test]
    fn digest_changes_with_each_input() {
        let changed = [
            Inputs {
                source_version: "6.12.2-1",
                ..INPUTS
            },
            Inputs {
                options: "CONFIG_SMP=y\nCONFIG_NET=y\n",
                ..INPUTS
            },
            Inputs {
                patches: &[Patch {
                    path: PathBuf::new(),
                    text: "x".into(),
                }],
                ..INPUTS
            },
            Inputs {
                toolchain: "gcc 14",
                ..INPUTS
            },
            Inputs {
                settings: &["A=1B=2"],
                ..INPUTS
            },
        ];
        for inputs in changed {
            assert_ne!(Digest::of(&inputs), Digest::of(&INPUTS));
        }
    }
}
