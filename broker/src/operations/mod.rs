//! What the guest can ask for, by subject.

pub(crate) mod attributes;
pub(crate) mod create;
pub(crate) mod directory;
pub(crate) mod extended;
pub(crate) mod names;
pub(crate) mod open;
