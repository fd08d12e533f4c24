//! A container's root file system in the guest's words: shares and slots.
//! What a bundle says about it is in [`crate::root`].

use protocol::agent::api::Mount;
use protocol::agent::{UPPER_TARGET, share_path};
use protocol::broker::Policy;

use crate::disks::Format;

/// Slot of a sandbox's first image: the OS layer has the one before it.
pub const FIRST_IMAGE_SLOT: usize = 1;

/// A file system in a slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlotFileSystem {
    /// The slot of its image or disk.
    pub slot: usize,
    /// What it is.
    pub format: Format,
    /// It takes writes.
    pub writable: bool,
}

/// Where writes to layers go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upper {
    /// Guest memory.
    Memory,
    /// A share.
    Share(Policy, usize),
    /// A disk.
    Disk(SlotFileSystem),
}

/// A container's root file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RootFs {
    /// Read-only layers, uppermost first, and where writes go; without that
    /// there are none.
    Layers(Vec<SlotFileSystem>, Option<Upper>),
    /// A share.
    Share(Policy, usize),
    /// A disk.
    Disk(SlotFileSystem),
}

impl RootFs {
    /// The sandbox's first image, with writes to guest memory unless the
    /// container wants it read-only.
    #[must_use]
    pub fn first_image(read_only: bool) -> Self {
        let layer = SlotFileSystem {
            slot: FIRST_IMAGE_SLOT,
            format: Format::EROFS,
            writable: false,
        };
        Self::Layers(vec![layer], (!read_only).then_some(Upper::Memory))
    }
}

/// The root as the agent wants it told (protocol::agent).
pub(crate) fn root_mounts(root: &RootFs) -> Vec<Mount> {
    match root {
        RootFs::Share(policy, number) => vec![share_mount(*policy, *number)],
        RootFs::Disk(system) => vec![slot_mount(*system)],
        RootFs::Layers(layers, upper) => {
            let mut mounts: Vec<_> = layers.iter().map(|layer| slot_mount(*layer)).collect();
            match upper {
                None | Some(Upper::Memory) => {}
                Some(Upper::Share(policy, number)) => {
                    mounts.push(for_writes(share_mount(*policy, *number)));
                }
                Some(Upper::Disk(system)) => mounts.push(for_writes(slot_mount(*system))),
            }
            if upper.is_some() || layers.len() > 1 {
                mounts.push(Mount {
                    type_: "overlay".into(),
                    source: "overlay".into(),
                    ..Mount::default()
                });
            }
            mounts
        }
    }
}

fn share_mount(policy: Policy, number: usize) -> Mount {
    Mount {
        type_: "bind".into(),
        source: share_path(policy, number),
        ..Mount::default()
    }
}

fn slot_mount(system: SlotFileSystem) -> Mount {
    let access = if system.writable { "rw" } else { "ro" };
    Mount {
        type_: system.format.word().into(),
        source: format!("slot:{}", system.slot),
        options: vec![access.into()],
        ..Mount::default()
    }
}

fn for_writes(mount: Mount) -> Mount {
    Mount {
        target: UPPER_TARGET.into(),
        ..mount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(root: &RootFs) -> Vec<String> {
        root_mounts(root)
            .into_iter()
            .map(|mount| {
                let words = [
                    mount.type_,
                    mount.source,
                    mount.options.join(","),
                    mount.target,
                ];
                words.join(" ").trim_end().to_owned()
            })
            .collect()
    }

    #[test]
    fn root_of_one_read_only_layer_needs_no_overlay() {
        assert_eq!(told(&RootFs::first_image(true)), ["erofs slot:1 ro"]);
        assert_eq!(
            told(&RootFs::first_image(false)),
            ["erofs slot:1 ro", "overlay overlay"]
        );
        let RootFs::Layers(layers, _) = RootFs::first_image(true) else {
            panic!("no layers")
        };
        let twice = [layers.clone(), layers].concat();
        assert_eq!(
            told(&RootFs::Layers(twice, None)),
            ["erofs slot:1 ro", "erofs slot:1 ro", "overlay overlay"]
        );
    }

    #[test]
    fn upper_is_told_before_the_overlay() {
        let RootFs::Layers(layers, _) = RootFs::first_image(true) else {
            panic!("no layers")
        };
        let disk = SlotFileSystem {
            slot: 2,
            format: Format::parse("", "xfs").unwrap(),
            writable: true,
        };
        assert_eq!(
            told(&RootFs::Layers(layers.clone(), Some(Upper::Disk(disk)))),
            ["erofs slot:1 ro", "xfs slot:2 rw upper", "overlay overlay"]
        );
        let share = Upper::Share(Policy::Exclusive, 0);
        assert_eq!(
            told(&RootFs::Layers(layers, Some(share))),
            [
                "erofs slot:1 ro",
                "bind /shares/exclusive/0  upper",
                "overlay overlay"
            ]
        );
    }
}
