//! Read-only EROFS layers for nerite's guests.
#![forbid(unsafe_code)]

pub mod os;
