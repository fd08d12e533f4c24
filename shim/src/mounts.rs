//! What a container sees of the host: directories and files become shares,
//! images and block devices become disks, everything else is the guest's own.
//!
//! A share is the mount that the engine has prepared, held by a descriptor
//! from here on: its path is looked up once. So is a disk's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use protocol::agent::{is_disk_format, share_path, socket_path};
use protocol::broker::Policy;
use protocol::control::BlockLimits;
use protocol::oci::{Mount, Spec};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::broker::SharedTree;
use crate::bundle::Bundle;
use crate::disks::{Disk, DiskError, FileKind, Format};
use crate::idmap::{IdMapError, map_ids};
use crate::root::{self, RootError, RootSource, UpperSource};
use crate::rootfs::{FIRST_IMAGE_SLOT, RootFs, SlotFileSystem, Upper};
use crate::sockets::HostSocket;

/// A mount that cannot be had in a guest.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source cannot be opened.
    #[error("share {} as {destination}", path.display())]
    Open {
        /// The source.
        path: PathBuf,
        /// Where the container wants it.
        destination: String,
        /// The system's error.
        source: io::Error,
    },
    /// The source is of no kind that can be shared.
    #[error(
        "mount {destination}: {} is a {kind}, which belongs to the host's kernel; \
         nerite shares directories, regular files and sockets", path.display()
    )]
    Kind {
        /// The source.
        path: PathBuf,
        /// Where the container wants it.
        destination: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file system of the host.
    #[error(
        "mount {destination}: a guest cannot mount {kind:?}; \
         mount it on the host and give the container a bind mount"
    )]
    FileSystem {
        /// Where the container wants it.
        destination: String,
        /// Its type.
        kind: String,
    },
    /// A disk to be mounted.
    #[error("mount {destination}")]
    Disk {
        /// Where the container wants it.
        destination: String,
        /// What is wrong with it.
        source: DiskError,
    },
    /// A block device as a node.
    #[error(
        "linux.devices: {path} would be the guest's block device {major}:{minor}, not the host's; \
         mount the file system on it instead (a mount with its type and the device as source)"
    )]
    Node {
        /// Its path in the container.
        path: String,
        /// Its numbers.
        major: i64,
        /// Its numbers.
        minor: i64,
    },
    /// The root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Mounts made in the guest cannot appear on the host.
    #[error(
        "mount {destination}: {word:?} would show the container's own mounts to the host, which \
         cannot see into a virtual machine; use \"rslave\" to see the host's in the container"
    )]
    Outwards {
        /// Where the container wants it.
        destination: String,
        /// The option.
        word: String,
    },
    /// Its ids cannot be mapped.
    #[error("map the ids of mount {destination}")]
    Ids {
        /// Where the container wants it.
        destination: String,
        /// Why.
        source: IdMapError,
    },
    /// A bind mount or a disk from nowhere.
    #[error("mount {destination} has no source")]
    NoSource {
        /// Where the container wants it.
        destination: String,
    },
}

/// File systems that a guest has of its own.
const OWN: [&str; 8] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
];

/// What a container gets of the host, and its configuration with the guest's
/// names of it.
#[derive(Debug)]
pub struct Plan {
    /// What the guest's agent is told.
    pub spec: Spec,
    /// The root file system.
    pub root: RootFs,
    /// What the broker is told; a root that is shared is the first.
    pub trees: Vec<SharedTree>,
    /// EROFS images.
    pub images: Vec<File>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// How fast each disk may be.
    pub limits: BlockLimits,
    /// The host's sockets that the container may connect to.
    pub sockets: Vec<HostSocket>,
}

/// Images and disks as they are found. Disks have the slots behind all images,
/// so their numbers are known at the end only.
#[derive(Debug, Default)]
struct Devices {
    images: Vec<File>,
    disks: Vec<Disk>,
}

/// A device's place among its kind.
#[derive(Clone, Copy, Debug)]
enum Place {
    Image(usize),
    Disk(usize),
}

impl Devices {
    fn add(
        &mut self,
        path: &Path,
        format: Format,
        read_only: bool,
        identity: &str,
    ) -> Result<Place, DiskError> {
        let read_only = read_only || format.is_read_only();
        let disk = Disk::open(path, read_only, identity)?;
        // Pages of a file can be mapped by all guests alike.
        if format.is_read_only() && FileKind::of(path)? == FileKind::Image {
            self.images.push(disk.image);
            return Ok(Place::Image(self.images.len() - 1));
        }
        self.disks.push(disk);
        Ok(Place::Disk(self.disks.len() - 1))
    }

    fn slot(&self, place: Place) -> usize {
        match place {
            Place::Image(index) => FIRST_IMAGE_SLOT + index,
            Place::Disk(index) => FIRST_IMAGE_SLOT + self.images.len() + index,
        }
    }
}

/// Opens the root and the mounts of a bundle.
///
/// # Errors
///
/// [`MountError`] names the mount.
pub fn plan(bundle: Bundle) -> Result<Plan, MountError> {
    let Bundle {
        mut spec,
        root,
        directory,
    } = bundle;
    refuse_nodes(&spec)?;
    let source = RootSource::declared(&spec, &directory, &root)?;
    let limits = root::limits(&spec.annotations)?;
    let mut devices = Devices::default();
    let mut trees = Vec::new();
    let shares_root = matches!(
        source,
        RootSource::Directory | RootSource::Layers(_, Some(UpperSource::Directory))
    );
    if shares_root {
        trees.push(root_tree(&root)?);
    }
    let root = add_root(&mut devices, &source, &spec).map_err(RootError::from)?;
    let mut sockets = Vec::new();
    let mut shared = 0;
    let mut mounts: Vec<Mount> = Vec::with_capacity(spec.mounts.len());
    let mut mounted = Vec::new();
    for (index, mut mount) in spec.mounts.into_iter().enumerate() {
        if let Some(place) = disk(&mut devices, &mount, index)? {
            mounted.push((mounts.len(), place));
            mounts.push(mount);
            continue;
        }
        let inside = match share(&mut mount)? {
            None => Vec::new(),
            Some(Shared::Tree(tree)) => {
                mount.source = Some(share_path(Policy::Shared, shared));
                mount.kind = Some("bind".into());
                shared += 1;
                let inside = sockets_in(&tree.tree, &mount.destination)?;
                trees.push(tree);
                inside
            }
            Some(Shared::Socket(socket)) => {
                mount.source = Some(socket_path(sockets.len()));
                mount.kind = Some("bind".into());
                sockets.push(socket);
                Vec::new()
            }
        };
        mounts.push(mount);
        for (destination, socket) in inside {
            mounts.push(Mount {
                destination,
                kind: Some("bind".into()),
                source: Some(socket_path(sockets.len())),
                ..Mount::default()
            });
            sockets.push(socket);
        }
    }
    for (index, place) in mounted {
        if let Some(mount) = mounts.get_mut(index) {
            mount.source = Some(format!("slot:{}", devices.slot(place)));
        }
    }
    spec.mounts = mounts;
    Ok(Plan {
        spec,
        root: root.settle(&devices),
        trees,
        images: devices.images,
        disks: devices.disks,
        limits,
        sockets,
    })
}

/// The numbers of a block device mean another device in the guest.
fn refuse_nodes(spec: &Spec) -> Result<(), MountError> {
    let devices = spec.linux.iter().flat_map(|linux| &linux.devices);
    match devices.into_iter().find(|device| device.kind == "b") {
        None => Ok(()),
        Some(device) => Err(MountError::Node {
            path: device.path.clone(),
            major: device.major,
            minor: device.minor,
        }),
    }
}

fn root_tree(root: &Path) -> Result<SharedTree, MountError> {
    Ok(SharedTree {
        policy: Policy::Exclusive,
        tree: open(root, "/", true)?,
        // Mount points may have to be made in it; the agent closes it then.
        read_only: false,
        follows: true,
    })
}

/// A root whose devices have no slots yet.
enum DraftRoot {
    Shared,
    Disk(Place, Format, bool),
    Layers(Vec<Place>, Option<DraftUpper>),
}

enum DraftUpper {
    Memory,
    Directory,
    Disk(Place, Format),
}

fn add_root(
    devices: &mut Devices,
    source: &RootSource,
    spec: &Spec,
) -> Result<DraftRoot, DiskError> {
    let read_only = spec.root.as_ref().is_some_and(|root| root.readonly);
    Ok(match source {
        RootSource::Directory => DraftRoot::Shared,
        RootSource::Disk(path, format) => DraftRoot::Disk(
            devices.add(path, *format, read_only, "root")?,
            *format,
            read_only,
        ),
        RootSource::Layers(paths, upper) => {
            let layers = paths
                .iter()
                .map(|path| devices.add(path, Format::EROFS, true, "layer"))
                .collect::<Result<_, _>>()?;
            let upper = match upper {
                None => None,
                Some(UpperSource::Memory) => Some(DraftUpper::Memory),
                Some(UpperSource::Directory) => Some(DraftUpper::Directory),
                Some(UpperSource::Disk(path, format)) => Some(DraftUpper::Disk(
                    devices.add(path, *format, false, "upper")?,
                    *format,
                )),
            };
            DraftRoot::Layers(layers, upper)
        }
    })
}

impl DraftRoot {
    fn settle(self, devices: &Devices) -> RootFs {
        let system = |place, format: Format, writable| SlotFileSystem {
            slot: devices.slot(place),
            format,
            writable,
        };
        match self {
            Self::Shared => RootFs::Share(Policy::Exclusive, 0),
            Self::Disk(place, format, read_only) => RootFs::Disk(system(place, format, !read_only)),
            Self::Layers(layers, upper) => RootFs::Layers(
                layers
                    .into_iter()
                    .map(|place| system(place, Format::EROFS, false))
                    .collect(),
                upper.map(|upper| match upper {
                    DraftUpper::Memory => Upper::Memory,
                    DraftUpper::Directory => Upper::Share(Policy::Exclusive, 0),
                    DraftUpper::Disk(place, format) => Upper::Disk(system(place, format, true)),
                }),
            ),
        }
    }
}

/// The disk behind a mount, `None` if it has none.
fn disk(devices: &mut Devices, mount: &Mount, index: usize) -> Result<Option<Place>, MountError> {
    let kind = mount.kind.as_deref().unwrap_or_default();
    let is_bind = mount
        .options
        .iter()
        .any(|option| matches!(option.as_str(), "bind" | "rbind"));
    if is_bind || !is_disk_format(kind) {
        return Ok(None);
    }
    let destination = || mount.destination.clone();
    let failed = |source| MountError::Disk {
        destination: destination(),
        source,
    };
    let Some(source) = mount.source.as_deref().filter(|source| !source.is_empty()) else {
        return Err(MountError::NoSource {
            destination: destination(),
        });
    };
    let format = Format::parse("type", kind).map_err(failed)?;
    let place = devices.add(
        Path::new(source),
        format,
        is_read_only(mount),
        &format!("mount{index}"),
    );
    place.map(Some).map_err(failed)
}

/// The last word counts, as with mount(8).
fn is_read_only(mount: &Mount) -> bool {
    let last = mount
        .options
        .iter()
        .rfind(|option| matches!(option.as_str(), "ro" | "rw"));
    last.is_some_and(|option| option == "ro")
}

/// What a bind mount shows of the host.
#[derive(Debug)]
enum Shared {
    Tree(SharedTree),
    Socket(HostSocket),
}

/// The share behind a mount, `None` if it is the guest's own.
fn share(mount: &mut Mount) -> Result<Option<Shared>, MountError> {
    let has = |word: &str| mount.options.iter().any(|option| option == word);
    let kind = mount.kind.as_deref().unwrap_or_default();
    let recursive = has("rbind");
    if has("remount") {
        // Concerns what the guest has mounted before.
        return Ok(None);
    }
    if !(recursive || has("bind") || matches!(kind, "bind" | "")) {
        if OWN.contains(&kind) {
            return Ok(None);
        }
        return Err(MountError::FileSystem {
            destination: mount.destination.clone(),
            kind: kind.into(),
        });
    }
    let Some(source) = mount.source.clone().filter(|source| !source.is_empty()) else {
        return Err(MountError::NoSource {
            destination: mount.destination.clone(),
        });
    };
    if let Some(word) = mount
        .options
        .iter()
        .find(|word| matches!(word.as_str(), "shared" | "rshared"))
    {
        return Err(MountError::Outwards {
            destination: mount.destination.clone(),
            word: word.clone(),
        });
    }
    let path = Path::new(&source);
    let tree = open(path, &mount.destination, recursive)?;
    let kind = match kind_of(&tree, path, &mount.destination)? {
        FileType::Directory | FileType::RegularFile => None,
        FileType::Socket => return socket(tree, path, &mount.destination).map(Some),
        FileType::BlockDevice => Some("block device"),
        FileType::CharacterDevice => Some("character device"),
        FileType::Fifo => Some("named pipe"),
        FileType::Symlink | FileType::Unknown => Some("file of unknown kind"),
    };
    if let Some(kind) = kind {
        return Err(MountError::Kind {
            path: path.into(),
            destination: mount.destination.clone(),
            kind,
        });
    }
    map_ids(tree.as_fd(), mount).map_err(|source| MountError::Ids {
        destination: mount.destination.clone(),
        source,
    })?;
    let flags = flags_of(&tree).map_err(|source| MountError::Open {
        path: path.into(),
        destination: mount.destination.clone(),
        source,
    })?;
    inherit(&mut mount.options, flags);
    // The last word counts, as with mount(8).
    let last = |one: &[&str]| -> Option<&str> {
        let mut words = mount.options.iter().map(String::as_str);
        words.rfind(|word| one.contains(word))
    };
    Ok(Some(Shared::Tree(SharedTree {
        policy: Policy::Shared,
        // On the host it is so with all that is mounted below.
        read_only: last(&["ro", "rw"]) == Some("ro") || last(&["rro", "rrw"]) == Some("rro"),
        follows: !matches!(
            last(&[
                "private",
                "rprivate",
                "unbindable",
                "runbindable",
                "slave",
                "rslave"
            ]),
            Some("private" | "rprivate" | "unbindable" | "runbindable")
        ),
        tree,
    })))
}

/// Options that set a flag of the mount.
const FLAGS: [&str; 5] = ["ro", "nosuid", "nodev", "noexec", "nosymfollow"];

/// Options that say when times of access are kept.
const TIMES: [&str; 4] = ["noatime", "nodiratime", "relatime", "strictatime"];

/// Adds the flags of the source as mount(2) does: a mount that sets some has
/// exactly those, but for the times of access, which are a matter of their own.
fn inherit(options: &mut Vec<String>, of_source: impl Iterator<Item = &'static str>) {
    let sets = |words: &[&str]| options.iter().any(|option| words.contains(&&**option));
    let (times, flags) = (sets(&TIMES), sets(&FLAGS));
    options.extend(
        of_source
            .filter(|word| !times && (!flags || TIMES.contains(word)))
            .map(String::from),
    );
}

/// The options that a mount has.
fn flags_of(tree: &OwnedFd) -> io::Result<impl Iterator<Item = &'static str>> {
    let flags = fstatvfs(tree)?.f_flag;
    let relative = StatVfsMountFlags::RELATIME | StatVfsMountFlags::NOATIME;
    Ok([
        ("ro", flags.contains(StatVfsMountFlags::RDONLY)),
        ("nosuid", flags.contains(StatVfsMountFlags::NOSUID)),
        ("nodev", flags.contains(StatVfsMountFlags::NODEV)),
        ("noexec", flags.contains(StatVfsMountFlags::NOEXEC)),
        ("noatime", flags.contains(StatVfsMountFlags::NOATIME)),
        ("nodiratime", flags.contains(StatVfsMountFlags::NODIRATIME)),
        ("strictatime", !flags.intersects(relative)),
    ]
    .into_iter()
    .filter_map(|(word, set)| set.then_some(word)))
}

/// Entries of a volume that are looked at for sockets, and sockets in it that
/// are passed on: a directory for sockets has few of either.
const MOST_ENTRIES: usize = 512;
const MOST_SOCKETS: usize = 32;

/// The sockets that are in a volume, at its top, and where the container has
/// them.
fn sockets_in(tree: &OwnedFd, destination: &str) -> Result<Vec<(String, HostSocket)>, MountError> {
    let find = || -> Result<Vec<_>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match openat(tree, c".", flags, Mode::empty()) {
            Err(Errno::NOTDIR) => return Ok(Vec::new()),
            result => result?,
        };
        let mut found = Vec::new();
        for entry in Dir::new(directory)?.take(MOST_ENTRIES) {
            let entry = entry?;
            // A name that is no text is no destination either.
            let (FileType::Socket, Ok(name)) = (entry.file_type(), entry.file_name().to_str())
            else {
                continue;
            };
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(tree, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                socket => found.push((format!("{destination}/{name}"), host_socket(socket?)?)),
            }
            if found.len() == MOST_SOCKETS {
                break;
            }
        }
        Ok(found)
    };
    find().map_err(|errno| MountError::Open {
        path: destination.into(),
        destination: destination.into(),
        source: errno.into(),
    })
}

/// A socket to which connections are passed on.
fn socket(socket: OwnedFd, path: &Path, destination: &str) -> Result<Shared, MountError> {
    let socket = host_socket(socket).map_err(|errno| MountError::Open {
        path: path.into(),
        destination: destination.into(),
        source: errno.into(),
    })?;
    Ok(Shared::Socket(socket))
}

fn host_socket(socket: OwnedFd) -> Result<HostSocket, Errno> {
    let status = fstat(&socket)?;
    Ok(HostSocket {
        socket,
        mode: status.st_mode & 0o777,
        uid: status.st_uid,
        gid: status.st_gid,
    })
}

/// A clone of the mount at `path`, attached nowhere.
fn open(path: &Path, destination: &str, recursive: bool) -> Result<OwnedFd, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|errno| MountError::Open {
        path: path.into(),
        destination: destination.into(),
        source: errno.into(),
    })
}

fn kind_of(tree: &OwnedFd, path: &Path, destination: &str) -> Result<FileType, MountError> {
    fstat(tree.as_fd())
        .map(|status| FileType::from_raw_mode(status.st_mode))
        .map_err(|errno| MountError::Open {
            path: path.into(),
            destination: destination.into(),
            source: errno.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            destination: "/d".into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn file_systems_of_the_host_are_refused_by_name() {
        assert!(share(&mut mount("tmpfs", "tmpfs", &[])).unwrap().is_none());
        let error = share(&mut mount("nfs", "server:/x", &[])).unwrap_err();
        assert!(error.to_string().contains("\"nfs\""), "{error}");
    }

    #[test]
    fn block_device_nodes_are_refused_with_their_numbers() {
        let spec = |kind: &str| -> Spec {
            let device =
                format!(r#"{{"path": "/dev/x", "type": "{kind}", "major": 8, "minor": 1}}"#);
            let text = format!(r#"{{"linux": {{"devices": [{device}]}}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert!(refuse_nodes(&spec("c")).is_ok());
        let error = refuse_nodes(&spec("b")).unwrap_err().to_string();
        assert!(
            error.contains("/dev/x would be the guest's block device 8:1"),
            "{error}"
        );
    }

    #[test]
    fn flags_of_the_source_count_unless_there_are_others() {
        let inherited = |own: &[&str]| {
            let mut options: Vec<String> = own.iter().map(|&word| word.into()).collect();
            inherit(&mut options, ["nosuid", "noexec", "noatime"].into_iter());
            options.join(",")
        };
        assert_eq!(inherited(&["rbind"]), "rbind,nosuid,noexec,noatime");
        assert_eq!(inherited(&["ro"]), "ro,noatime");
        assert_eq!(inherited(&["relatime"]), "relatime");
    }

    #[test]
    fn mounts_of_the_guest_cannot_reach_the_host() {
        let error = share(&mut mount("bind", "/", &["rbind", "rshared"])).unwrap_err();
        assert!(error.to_string().contains("\"rshared\""), "{error}");
    }

    #[test]
    fn missing_source_is_named() {
        let error = share(&mut mount("bind", "/nowhere/at/all", &[])).unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/at/all as /d"),
            "{error}"
        );
        assert!(share(&mut mount("bind", "", &[])).is_err());
    }
}
