//! Files through nerite answer as the host's do: `tests/conformance` runs in
//! one bundle under runc and under nerite, and the answers are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::{BUSYBOX, Outcome};

/// Checks that there are at least: a suite that ended early would agree with
/// itself.
const LEAST: usize = 300;

/// Seconds for one run: many times what it takes.
const LONGEST: &str = "600";

/// What engines give a container, as far as it is about files.
const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// The checks whose answers may differ: how their names begin, and where.
const EXPLAINED: &[(&str, &[Where])] = &[
    // The guest's FUSE driver marks no reads in a file's times: the host's
    // kernel does, and a guest that believes what it knows does not hear of
    // it.
    ("times/changed-by-read", BOTH),
    ("times/changed-by-mapped-write", BOTH),
    // Where the guest's kernel collects writes it keeps the times of change
    // itself, and takes truncate(2) to the same length for no change; the
    // host's file has a new time all the same.
    ("times/changed-by-truncate-to-the-same", &[Where::Root]),
    // The guest's FUSE driver passes on no mode of fallocate(2) but holes,
    // zeroes and keeping the length.
    ("space/fallocate-collapse-range", BOTH),
    ("space/fallocate-insert-range", BOTH),
    // The guest's FUSE driver asks nobody for a chown(2) that changes nothing;
    // elsewhere that takes set-ids, and is not for others.
    ("modes/set-id-after-chown-to-nobody-else", BOTH),
    ("times/changed-by-chown-to-nobody", &[Where::Volume]),
    // Whether a set-group-id bit without permission to execute stays depends
    // on whether the caller is in the group, which a request does not say.
    ("modes/set-id-after-write-by-owner", BOTH),
    ("modes/set-id-after-write-by-others", BOTH),
    ("modes/set-id-after-fallocate-by-owner", BOTH),
    ("modes/set-id-after-fallocate-by-others", BOTH),
    ("modes/set-id-after-copy-file-range-by-owner", BOTH),
    ("modes/set-id-after-copy-file-range-by-others", BOTH),
    ("modes/set-id-after-truncate-by-others", BOTH),
    ("modes/set-id-after-ftruncate-by-others", BOTH),
    ("modes/set-id-after-open-and-truncate-by-others", BOTH),
    // How long a file may be is the file system's; to the guest's FUSE driver
    // it is as long as a number, and where it collects writes the error comes
    // when they are written.
    ("data/position-errors", BOTH),
    ("data/large-positions", &[Where::Root]),
    // And that error is told once more where everything is written.
    ("space/sync-of-everything", &[Where::Root]),
    // Direct access of any alignment is served: it ends in the host's cache.
    ("mapping/direct-unaligned", BOTH),
    // The guest's FUSE driver looks for holes without writing first what it
    // has collected. Data must not be taken for a hole, so that all is data.
    ("data/holes", &[Where::Root]),
    // It is FUSE to the guest, and the protocol has no field for more.
    ("space/statfs-type", BOTH),
    // runc's device cgroup refuses before it is found out that no driver has
    // that number; a guest has its own drivers and no such cgroup.
    ("special/device-without-a-driver", BOTH),
];

const BOTH: &[Where] = &[Where::Root, Where::Volume];

/// Topics that are about names, which is what file systems differ in.
const NAMES: &[&str] = &["open/", "names/", "directories/", "links/", "rename/"];

/// All topics.
const ALL: &[&str] = &[];

/// What holds the directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Where {
    /// The container's root: an exclusive device.
    Root,
    /// A bind mount: a shared device.
    Volume,
}

fn command(program: &str, arguments: &[&str]) {
    let outcome: Outcome = Command::new(program)
        .args(arguments)
        .output()
        .unwrap()
        .into();
    assert_eq!(outcome.status, 0, "{program} {arguments:?}: {outcome:?}");
}

/// A file system of its own with a bundle on it.
struct Place {
    // In the order in which they go: mounts before what they lie on.
    mounts: Vec<PathBuf>,
    bundle: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}

impl Place {
    /// `kind`: what mkfs and mount call it.
    fn new(kind: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut place = Self {
            mounts: Vec::new(),
            bundle: PathBuf::new(),
            _scratch: scratch,
        };
        let directory = place.directory("mount");
        match kind {
            "tmpfs" => place.mount(&["-t", "tmpfs", "tmpfs"], &directory),
            "overlay" => {
                let below = place.directory("below");
                place.image("ext4", &below);
                let layer = |name: &str| {
                    let path = below.join(name);
                    fs::create_dir(&path).unwrap();
                    path.display().to_string()
                };
                let options = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    layer("lower"),
                    layer("upper"),
                    layer("work")
                );
                place.mount(&["-t", "overlay", "overlay", "-o", &options], &directory);
            }
            _ => place.image(kind, &directory),
        }
        place.bundle = directory.join("bundle");
        fs::create_dir(&place.bundle).unwrap();
        let rootfs = place.bundle.join("rootfs");
        command("cp", &["-a", BUSYBOX, rootfs.to_str().unwrap()]);
        let program = std::env::current_exe()
            .unwrap()
            .with_file_name("conformance");
        fs::copy(program, rootfs.join("conformance")).unwrap();
        place
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self._scratch.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    fn mount(&mut self, arguments: &[&str], directory: &Path) {
        let directory_name = directory.to_str().unwrap();
        command("mount", &[arguments, &[directory_name]].concat());
        self.mounts.push(directory.into());
    }

    /// Makes a file system in a file and mounts it.
    fn image(&mut self, kind: &str, directory: &Path) {
        let image = self._scratch.path().join("image");
        let file = fs::File::create(&image).unwrap();
        file.set_len(512 << 20).unwrap();
        let image = image.to_str().unwrap();
        command(&format!("mkfs.{kind}"), &["-q", image]);
        self.mount(&["-o", "loop", image], directory);
    }

    /// Makes the bundle one that runs the suite, in new directories.
    fn prepare(&self, place: Where, topics: &[&str]) {
        for directory in ["rootfs/work", "volume"] {
            let path = self.bundle.join(directory);
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            fs::create_dir(&path).unwrap();
        }
        let config = self.bundle.join("config.json");
        if config.exists() {
            fs::remove_file(&config).unwrap();
        }
        let status = Command::new("runc")
            .arg("spec")
            .current_dir(&self.bundle)
            .status();
        assert!(status.unwrap().success());
        let text = fs::read(&config).unwrap();
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        value["process"]["args"] = json!([&["/conformance", "/work"], topics].concat());
        value["process"]["terminal"] = json!(false);
        value["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            value["process"]["capabilities"][set] = json!(CAPABILITIES);
        }
        if place == Where::Volume {
            value["mounts"].as_array_mut().unwrap().push(json!({
                "type": "bind", "source": self.bundle.join("volume"), "destination": "/work",
                "options": ["rbind", "rw"],
            }));
        }
        fs::write(&config, serde_json::to_vec(&value).unwrap()).unwrap();
    }

    /// The answers of a runtime, by check.
    fn answers(&self, place: Where, topics: &[&str], runtime: &str) -> BTreeMap<String, String> {
        self.prepare(place, topics);
        let bundle = self.bundle.to_str().unwrap();
        // What hangs is to say where.
        let arguments = [
            "--kill-after=5",
            LONGEST,
            runtime,
            "run",
            "--bundle",
            bundle,
        ];
        let outcome: Outcome = Command::new("timeout")
            .args(arguments)
            .arg(format!("{runtime}-{}", std::process::id()))
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
            .into();
        assert_eq!(
            (outcome.status, &*outcome.stderr),
            (0, ""),
            "{runtime} in {place:?}: {}",
            outcome.stdout
        );
        let answers: BTreeMap<String, String> = outcome
            .stdout
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, answer)| (name.into(), answer.into()))
            .collect();
        assert!(answers.len() >= LEAST, "only {} checks", answers.len());
        answers
    }

    /// Runs the suite on the host and through nerite and compares.
    fn compare(&self, place: Where, topics: &[&str]) {
        let host = self.answers(place, topics, "runc");
        let guest = self.answers(place, topics, "nerite");
        let excused = |name: &str| {
            EXPLAINED
                .iter()
                .any(|(begin, places)| name.starts_with(begin) && places.contains(&place))
        };
        let none = "(no answer)".to_owned();
        let names = host
            .keys()
            .chain(guest.keys().filter(|&name| !host.contains_key(name)));
        let differences: Vec<String> = names
            .filter(|name| !excused(name))
            .filter(|&name| host.get(name) != guest.get(name))
            .map(|name| {
                let [host, guest] = [&host, &guest].map(|side| side.get(name).unwrap_or(&none));
                format!("{name}\n    host:  {host}\n    guest: {guest}")
            })
            .collect();
        assert!(
            differences.is_empty(),
            "{} of {} checks differ in {place:?}:\n{}",
            differences.len(),
            host.len(),
            differences.join("\n")
        );
    }
}

#[test]
fn root_on_ext4() {
    Place::new("ext4").compare(Where::Root, ALL);
}

#[test]
fn volume_on_ext4() {
    Place::new("ext4").compare(Where::Volume, ALL);
}

#[test]
fn root_on_xfs() {
    Place::new("xfs").compare(Where::Root, NAMES);
}

#[test]
fn volume_on_xfs() {
    Place::new("xfs").compare(Where::Volume, NAMES);
}

#[test]
fn root_on_btrfs() {
    Place::new("btrfs").compare(Where::Root, NAMES);
}

#[test]
fn root_on_overlayfs() {
    Place::new("overlay").compare(Where::Root, NAMES);
}

#[test]
fn volume_on_tmpfs() {
    Place::new("tmpfs").compare(Where::Volume, NAMES);
}
