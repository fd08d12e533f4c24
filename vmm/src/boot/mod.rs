//! What the guest finds in memory when it starts: kernel and command line.

pub mod command_line;
pub mod elf;
