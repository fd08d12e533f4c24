//! Mounts that show other owners than their source has.
//!
//! It is done here, on the host, to the mount that the broker gets: whatever
//! the guest creates is owned on the host as the mapping says, and an owner
//! that has no mapping is nobody. The mapping is a user namespace
//! (mount_setattr(2)), which nobody lives in.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use protocol::oci::{IdMapping, Mount};

/// A mapping that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// An option that says to map, and nothing that says how.
    #[error(
        "option {word:?} needs the mount's own uidMappings and gidMappings: a container in a \
         virtual machine has no user namespace on the host to take them from"
    )]
    NoMapping {
        /// The option.
        word: String,
    },
    /// Only one of the two.
    #[error("uidMappings and gidMappings go together")]
    Half,
    /// The kernel's refusal of the mapping.
    #[error("make a user namespace of the mappings")]
    Namespace(#[source] io::Error),
    /// The kernel's refusal of the mount.
    #[error("the file system of the source cannot show other ids")]
    Mount(#[source] io::Error),
}

/// Maps the ids of `tree`, a mount attached nowhere, as `mount` wants it, and
/// takes what says so out of `mount`.
pub(crate) fn map_ids(tree: BorrowedFd<'_>, mount: &mut Mount) -> Result<(), IdMapError> {
    let words = ["idmap", "ridmap"];
    let word = mount
        .options
        .iter()
        .rfind(|option| words.contains(&option.as_str()))
        .cloned();
    let users = std::mem::take(&mut mount.uid_mappings);
    let groups = std::mem::take(&mut mount.gid_mappings);
    mount
        .options
        .retain(|option| !words.contains(&option.as_str()));
    match (users.is_empty(), groups.is_empty(), word.as_deref()) {
        (true, true, None) => return Ok(()),
        (true, true, Some(word)) => return Err(IdMapError::NoMapping { word: word.into() }),
        (false, false, _) => {}
        _ => return Err(IdMapError::Half),
    }
    let namespace = namespace(&users, &groups).map_err(IdMapError::Namespace)?;
    let recursive = word.as_deref() == Some("ridmap");
    sys::map_ids(tree, &namespace, recursive).map_err(IdMapError::Mount)
}

/// A user namespace with these maps.
fn namespace(users: &[IdMapping], groups: &[IdMapping]) -> io::Result<OwnedFd> {
    let resident = sys::Resident::new()?;
    for (file, mappings) in [("uid_map", users), ("gid_map", groups)] {
        let lines: String = mappings
            .iter()
            .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size))
            .collect();
        std::fs::write(format!("/proc/{}/{file}", resident.id()), lines)?;
    }
    Ok(std::fs::File::open(format!("/proc/{}/ns/user", resident.id()))?.into())
}

mod sys {
    //! A process in a user namespace of its own, and the mount's attribute.

    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

    /// A child that lives in a new user namespace and does nothing.
    pub(super) struct Resident(libc::pid_t);

    impl Resident {
        pub(super) fn new() -> io::Result<Self> {
            let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
            // SAFETY: without a stack it is a fork; the child makes nothing
            // but the bare system calls below, whatever locks other threads
            // hold at this moment.
            let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            match pid {
                -1 => Err(io::Error::last_os_error()),
                0 => loop {
                    // SAFETY: takes plain numbers; it dies with its parent.
                    unsafe {
                        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL)
                    };
                    // SAFETY: waits for a signal; all that come end it.
                    unsafe { libc::syscall(libc::SYS_pause) };
                },
                pid => libc::pid_t::try_from(pid)
                    .map(Self)
                    .map_err(io::Error::other),
            }
        }

        pub(super) fn id(&self) -> libc::pid_t {
            self.0
        }
    }

    impl Drop for Resident {
        fn drop(&mut self) {
            // SAFETY: the child is ours and not waited for yet, so the number
            // is its own.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
            // SAFETY: nothing is written to the null pointer.
            unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
        }
    }

    /// Gives a mount a mapping of ids.
    pub(super) fn map_ids(
        tree: BorrowedFd<'_>,
        namespace: &OwnedFd,
        recursive: bool,
    ) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid mount_attr: nothing is changed.
        let mut change: libc::mount_attr = unsafe { std::mem::zeroed() };
        change.attr_set = libc::MOUNT_ATTR_IDMAP;
        change.userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
        let depth = if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: reads the empty string and the structure, whose size is
        // given; both descriptors are open.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | depth,
                &raw const change,
                size_of::<libc::mount_attr>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn mapping_must_be_complete() {
        let file = tempfile::tempfile().unwrap();
        let mut mount = Mount {
            options: vec!["rbind".into()],
            ..Mount::default()
        };
        assert!(map_ids(file.as_fd(), &mut mount).is_ok());
        mount.options.push("idmap".into());
        let error = map_ids(file.as_fd(), &mut mount.clone()).unwrap_err();
        assert!(error.to_string().contains("\"idmap\""), "{error}");
        mount.uid_mappings.push(IdMapping {
            size: 1,
            ..IdMapping::default()
        });
        let error = map_ids(file.as_fd(), &mut mount).unwrap_err();
        assert!(matches!(error, IdMapError::Half));
    }
}
