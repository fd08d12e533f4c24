//! Everything that only one processor architecture knows.

pub mod x86_64;
