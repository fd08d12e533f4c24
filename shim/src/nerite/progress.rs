//! A bar for work that takes long enough to wonder about.
