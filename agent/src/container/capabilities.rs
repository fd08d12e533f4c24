//! The five capability sets of a process (capabilities(7)).

use protocol::oci;
use rustix::thread::CapabilitySet;

use crate::error::{Failure, Result};

/// The sets, as bits. The default is the empty set five times: a process
/// whose configuration says nothing has none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CapabilityPlan {
    /// What may ever be gained.
    pub(crate) bounding: CapabilitySet,
    /// In force.
    pub(crate) effective: CapabilitySet,
    /// Kept over `execve` of a file that has them too.
    pub(crate) inheritable: CapabilitySet,
    /// May be put in force.
    pub(crate) permitted: CapabilitySet,
    /// Kept over `execve` of any file.
    pub(crate) ambient: CapabilitySet,
}

impl CapabilityPlan {
    /// Reads the names.
    pub(crate) fn new(capabilities: Option<&oci::Capabilities>) -> Result<Self> {
        let none = oci::Capabilities::default();
        let named = capabilities.unwrap_or(&none);
        let inheritable = set("inheritable", &named.inheritable)?;
        let permitted = set("permitted", &named.permitted)?;
        Ok(Self {
            bounding: set("bounding", &named.bounding)?,
            effective: set("effective", &named.effective)?,
            inheritable,
            permitted,
            // `runc spec` asks for ambient capabilities that are not
            // inheritable, which the kernel does not grant; runc goes on
            // without them.
            ambient: set("ambient", &named.ambient)? & inheritable & permitted,
        })
    }
}

fn set(field: &str, names: &[String]) -> Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let known = name
            .strip_prefix("CAP_")
            .and_then(CapabilitySet::from_name)
            .ok_or_else(|| {
                Failure::argument(format!("process.capabilities.{field} {name:?} is unknown"))
            })?;
        Ok(set | known)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_name_and_absent_means_none() {
        let named = oci::Capabilities {
            bounding: vec!["CAP_KILL".into(), "CAP_CHECKPOINT_RESTORE".into()],
            ..oci::Capabilities::default()
        };
        let plan = CapabilityPlan::new(Some(&named)).unwrap();
        assert_eq!(plan.bounding.bits(), 1 << 5 | 1 << 40);
        assert!(plan.permitted.is_empty());
        assert!(CapabilityPlan::new(None).unwrap().bounding.is_empty());
    }

    #[test]
    fn ambient_capabilities_must_be_inheritable() {
        let kill = vec!["CAP_KILL".into()];
        let mut named = oci::Capabilities {
            permitted: kill.clone(),
            ambient: kill.clone(),
            ..oci::Capabilities::default()
        };
        assert!(
            CapabilityPlan::new(Some(&named))
                .unwrap()
                .ambient
                .is_empty()
        );
        named.inheritable = kill;
        assert_eq!(
            CapabilityPlan::new(Some(&named)).unwrap().ambient,
            CapabilitySet::KILL
        );
    }

    #[test]
    fn unknown_capability_is_refused() {
        for name in ["KILL", "CAP_kill", "CAP_EVERYTHING", "CAP_"] {
            let named = oci::Capabilities {
                effective: vec![name.into()],
                ..oci::Capabilities::default()
            };
            assert!(CapabilityPlan::new(Some(&named)).is_err(), "{name}");
        }
    }
}
