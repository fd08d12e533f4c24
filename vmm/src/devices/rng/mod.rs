//! Entropy for the guest (virtio 1.2, section 5.4): the host's `getrandom`.

mod device;
#[cfg(test)]
mod tests;

pub use device::Rng;
