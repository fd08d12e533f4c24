//! The checks by subject.

mod acl;
mod directories;
mod extended;
mod links;
mod listing;
mod locks;
mod mapping;
mod modes;
mod names;
mod open;
mod permissions;
mod read_write;
mod rename;
mod space;
mod special;
mod times;

use crate::suite::Suite;

/// Runs them all.
pub(crate) fn run(suite: &mut Suite) {
    suite.topic("open", open::run);
    suite.topic("names", names::run);
    suite.topic("directories", directories::run);
    suite.topic("links", links::run);
    suite.topic("rename", rename::run);
    suite.topic("modes", modes::run);
    suite.topic("permissions", permissions::run);
    suite.topic("acl", acl::run);
    suite.topic("data", read_write::run);
    suite.topic("mapping", mapping::run);
    suite.topic("space", space::run);
    suite.topic("listing", listing::run);
    suite.topic("times", times::run);
    suite.topic("extended", extended::run);
    suite.topic("locks", locks::run);
    suite.topic("special", special::run);
}
