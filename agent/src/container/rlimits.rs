//! Resource limits of a process (`setrlimit`, getrlimit(2)).

use protocol::oci;
use rustix::process::{Resource, Rlimit};

use crate::error::{Failure, Result};

/// The limits that the configuration names.
pub(crate) fn plan(rlimits: &[oci::Rlimit]) -> Result<Vec<(Resource, Rlimit)>> {
    rlimits.iter().map(one).collect()
}

fn one(rlimit: &oci::Rlimit) -> Result<(Resource, Rlimit)> {
    let kind = rlimit.kind.as_str();
    let resource = resource(kind)
        .ok_or_else(|| Failure::argument(format!("process.rlimits type {kind:?} is unknown")))?;
    if rlimit.soft > rlimit.hard {
        return Err(Failure::argument(format!(
            "process.rlimits {kind}: soft limit {} is above hard limit {}",
            rlimit.soft, rlimit.hard
        )));
    }
    let limit = |value| (value != u64::MAX).then_some(value);
    Ok((
        resource,
        Rlimit {
            current: limit(rlimit.soft),
            maximum: limit(rlimit.hard),
        },
    ))
}

fn resource(kind: &str) -> Option<Resource> {
    Some(match kind.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, soft: u64, hard: u64) -> Result<Vec<(Resource, Rlimit)>> {
        plan(&[oci::Rlimit {
            kind: kind.into(),
            soft,
            hard,
        }])
    }

    #[test]
    fn limits_are_read_and_the_largest_number_is_none() {
        let limits = read("RLIMIT_CORE", 0, u64::MAX).unwrap();
        assert_eq!(
            limits,
            [(
                Resource::Core,
                Rlimit {
                    current: Some(0),
                    maximum: None
                }
            )]
        );
    }

    #[test]
    fn unknown_and_inverted_limits_are_refused() {
        assert!(read("NOFILE", 1, 1).is_err());
        assert!(read("RLIMIT_NOFILES", 1, 1).is_err());
        assert!(read("RLIMIT_NOFILE", 2, 1).is_err());
    }
}
