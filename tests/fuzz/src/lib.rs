//! Bodies of the fuzz targets: the real devices, driven by a guest that does
//! whatever the input says.
//!
//! Each body is an ordinary function, so that the committed corpus also runs
//! as a unit test. `tests/fuzz/run` drives them with coverage feedback. What
//! they assert is what must hold whatever the guest does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a finding is reported"
)]

pub mod block;
pub mod broker;
mod driver;
pub mod fs;
mod input;
mod liar;
mod memory;
pub mod queue;
pub mod registers;
mod request;
mod share;
pub mod vsock;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn replay(target: &str, body: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(corpus).unwrap() {
            body(&fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {target} is empty");
    }

    #[test]
    fn corpus_of_block_holds() {
        replay("block", super::block::run);
    }

    #[test]
    fn corpus_of_registers_holds() {
        replay("registers", super::registers::run);
    }

    #[test]
    fn corpus_of_queue_holds() {
        replay("queue", super::queue::run);
    }

    #[test]
    fn corpus_of_vsock_holds() {
        replay("vsock", super::vsock::run);
    }

    #[test]
    fn corpus_of_fs_holds() {
        replay("fs", super::fs::run);
    }

    #[test]
    fn corpus_of_broker_holds() {
        replay("broker", super::broker::run);
    }
}
