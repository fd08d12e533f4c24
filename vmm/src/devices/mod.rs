//! The devices. Each is a plain structure with a `drain`; threads, epoll and
//! registers are other people's business.

pub mod block;
pub mod console;
pub mod fs;
pub mod pmem;
pub mod rng;
pub mod vsock;
