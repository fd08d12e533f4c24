//! What a device holds, counted, for tests of its bounds.

/// What a device holds at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Census {
    /// Files that the guest knows, the shares included.
    pub nodes: usize,
    /// Their descriptors that could be closed and opened again by name.
    pub descriptors: usize,
}
