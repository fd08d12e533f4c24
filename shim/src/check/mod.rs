//! Can this host run nerite, and if not, what is to be done.
//!
//! Each item is looked at by itself and never stops the others, so that one
//! look shows all there is to do. A failure means that nothing runs; a
//! warning, that a named feature does not.

mod host;
mod kvm;

use serde::Serialize;

use crate::assets::Assets;

/// How an item stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Some feature will not work.
    Warning,
    /// Nothing will.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Item {
    /// Stable name for scripts, such as `kvm-speed`.
    pub id: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, when something is to be done.
    pub advice: Option<String>,
}

/// The whole look.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// Whether no item is a failure.
    pub can_run: bool,
    /// The items, in the order in which to solve them.
    pub items: Vec<Item>,
}

impl Item {
    fn ok(id: &'static str, name: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(
        id: &'static str,
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let status = Status::Warning;
        Self {
            id,
            name,
            status,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn failure(
        id: &'static str,
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let status = Status::Failure;
        Self {
            id,
            name,
            status,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// Looks at everything; takes well under two seconds whatever it finds. Needs
/// a tokio runtime with I/O and time around it.
pub async fn run(assets: &Assets) -> Report {
    let mut items = vec![host::architecture(), host::assets(assets)];
    items.extend(kvm::items(assets).await);
    items.push(host::cgroups());
    items.push(host::descriptors());
    items.push(host::clone_start());
    items.push(host::network());
    items.push(host::file_sharing());
    Report {
        version: 1,
        can_run: items.iter().all(|item| item.status != Status::Failure),
        items,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn incomplete_installation_is_a_failure_among_the_others() {
        let report = run(&Assets::beside(Path::new("/nowhere/bin/nerite"))).await;
        assert!(!report.can_run);
        let files = report.items.iter().find(|item| item.id == "files").unwrap();
        assert_eq!(files.status, Status::Failure);
        assert!(
            files.found.contains("/nowhere/lib/nerite/nerite-vmm"),
            "{files:?}"
        );
        assert!(report.items.len() >= 8, "{report:?}");
    }

    #[tokio::test]
    async fn every_problem_has_advice_and_ids_are_unique() {
        let report = run(&Assets::beside(Path::new("/nowhere/bin/nerite"))).await;
        let mut ids: Vec<_> = report.items.iter().map(|item| item.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), report.items.len());
        for item in report.items {
            assert_eq!(item.advice.is_some(), item.status != Status::Ok, "{item:?}");
        }
    }
}
