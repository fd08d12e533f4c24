//! containerd's flags, which are Go's: one dash, the value behind `=` or next.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, bail};

/// The program's name.
pub(crate) const NAME: &str = "containerd-shim-nerite-v2";

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Action {
    /// Start a keeper and say where it listens.
    Start,
    /// Clean up behind a keeper that is gone.
    Delete,
    /// Be a keeper, on the socket that is the standard input.
    #[default]
    Serve,
    /// Say which version this is.
    Version,
}

/// The command line.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Flags {
    pub(crate) action: Action,
    /// The container's id.
    pub(crate) id: String,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// containerd's socket.
    pub(crate) address: String,
    pub(crate) debug: bool,
}

impl Flags {
    /// Reads the command line.
    pub(crate) fn parse(arguments: &[OsString]) -> anyhow::Result<Self> {
        let mut flags = Self::default();
        let mut rest = arguments.iter().map(OsString::as_os_str);
        while let Some(argument) = rest.next() {
            let argument = text(argument)?;
            let Some(flag) = argument.strip_prefix('-') else {
                flags.action = match argument {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    other => {
                        bail!("there is no action {other:?}; containerd asks for start or delete")
                    }
                };
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            if name == "v" {
                flags.action = Action::Version;
                return Ok(flags);
            }
            if name == "debug" {
                flags.debug = value != Some("false");
                continue;
            }
            let value = match value {
                Some(value) => value,
                None => text(
                    rest.next()
                        .with_context(|| format!("-{name} needs a value"))?,
                )?,
            };
            match name {
                "id" => flags.id = value.into(),
                "namespace" => flags.namespace = value.into(),
                "address" => flags.address = value.into(),
                // Where a keeper's own files are is its working directory, and
                // events go to containerd's socket.
                "bundle" | "publish-binary" | "socket" => {}
                other => bail!("there is no flag -{other}"),
            }
        }
        Ok(flags)
    }
}

fn text(argument: &OsStr) -> anyhow::Result<&str> {
    let shown = || format!("{} is no text", argument.display());
    argument.to_str().with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Flags> {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Flags::parse(&arguments)
    }

    #[test]
    fn containerds_command_lines_are_read() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock \
                    -publish-binary /usr/bin/containerd -id c1 -debug start";
        let expected = Flags {
            action: Action::Start,
            id: "c1".into(),
            namespace: "k8s.io".into(),
            address: "/run/containerd/containerd.sock".into(),
            debug: true,
        };
        assert_eq!(parse(line).unwrap(), expected);
        let line = "--namespace=k8s.io -address=/s -id=c1 -bundle /b delete";
        let flags = parse(line).unwrap();
        assert_eq!((flags.action, flags.id.as_str()), (Action::Delete, "c1"));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-id x").unwrap().action, Action::Serve);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |line| parse(line).unwrap_err().to_string();
        assert_eq!(error("-id"), "-id needs a value");
        assert_eq!(error("-colour red start"), "there is no flag -colour");
        assert!(error("stop").contains("\"stop\""));
    }
}
