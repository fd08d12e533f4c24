//! Paths inside a container, prepared for a walk that allocates nothing.
//!
//! Every one of them is resolved with the container's root as `/`
//! (`openat2`, `RESOLVE_IN_ROOT`), so a symbolic link in an image leads
//! nowhere else.

use std::ffi::CString;

use crate::error::{Failure, Result};

/// A path below a container's root.
#[derive(Clone, Debug)]
pub(crate) struct InRoot {
    /// As it was given, for messages.
    pub(crate) label: Vec<u8>,
    /// From the root downwards; empty for the root itself.
    pub(crate) steps: Vec<Step>,
}

/// One component of a path, and the path up to it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The path from the root to here, relative.
    pub(crate) prefix: CString,
    /// The last component of `prefix`.
    pub(crate) name: CString,
}

impl InRoot {
    /// Takes an absolute path, with `.` and `..` resolved in the text as runc
    /// does it; `..` never leaves the root.
    pub(crate) fn parse(field: &str, path: &str) -> Result<Self> {
        if !path.starts_with('/') {
            return Err(Failure::argument(format!(
                "{field} {path:?} is not absolute"
            )));
        }
        let mut names: Vec<&str> = Vec::new();
        for name in path.split('/') {
            match name {
                "" | "." => {}
                ".." => {
                    names.pop();
                }
                name => names.push(name),
            }
        }
        let mut prefix = String::new();
        let steps = names
            .into_iter()
            .map(|name| {
                if !prefix.is_empty() {
                    prefix.push('/');
                }
                prefix.push_str(name);
                Ok(Step {
                    prefix: c_string(field, &*prefix)?,
                    name: c_string(field, name)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            label: path.into(),
            steps,
        })
    }

    /// The cleaned path, absolute.
    pub(crate) fn clean(&self) -> String {
        match self.steps.last() {
            Some(step) => format!("/{}", step.prefix.to_string_lossy()),
            None => "/".into(),
        }
    }
}

/// A string for the kernel. `field` is named when it holds a zero byte.
pub(crate) fn c_string(field: &str, text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Failure::argument(format!("{field} contains a zero byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_cleaned_and_never_leaves_the_root() {
        for (path, clean) in [
            ("/", "/"),
            ("//a/./b/", "/a/b"),
            ("/a/../../../b", "/b"),
            ("/..", "/"),
        ] {
            assert_eq!(InRoot::parse("destination", path).unwrap().clean(), clean);
        }
    }

    #[test]
    fn path_steps_hold_prefix_and_name() {
        let path = InRoot::parse("destination", "/dev/pts").unwrap();
        assert_eq!(path.steps[1].prefix.as_c_str(), c"dev/pts");
        assert_eq!(path.steps[1].name.as_c_str(), c"pts");
    }

    #[test]
    fn path_refuses_relative_and_zero_bytes() {
        assert!(InRoot::parse("destination", "a").is_err());
        assert!(InRoot::parse("destination", "/a\0").is_err());
    }
}
