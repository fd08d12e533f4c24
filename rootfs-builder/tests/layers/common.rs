//! Tars and images for tests, and what a layer holds as erofs-utils see it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A tar being written, names and all as given.
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn entry(
        mut self,
        name: &str,
        kind: EntryType,
        change: impl FnOnce(&mut Header),
        data: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(name, EntryType::Regular, |_| (), data.as_ref())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(name, EntryType::Directory, |_| (), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(
            name,
            EntryType::Symlink,
            |h| h.set_link_name_literal(target).unwrap(),
            b"",
        )
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(
            name,
            EntryType::Link,
            |h| h.set_link_name_literal(target).unwrap(),
            b"",
        )
    }

    /// The records apply to the entry that comes next.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry("pax", EntryType::XHeader, |_| (), &data)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

pub(crate) fn xz(data: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(0);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

pub(crate) fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// An image's configuration for these layers (not compressed).
pub(crate) fn config(layers: &[Vec<u8>]) -> serde_json::Value {
    let digests: Vec<String> = layers
        .iter()
        .map(|l| format!("sha256:{}", digest(l)))
        .collect();
    serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/app", "-x"],
            "Cmd": null,
            "Env": ["PATH=/bin", "A=b"],
            "WorkingDir": "/srv",
            "User": "1000:1000",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": null,
            "Labels": {"a": "b"},
            "Unknown": {"x": 1},
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [],
    })
}

/// An OCI layout as path and contents of its files.
pub(crate) struct Layout {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        Self {
            files: [("oci-layout".into(), version)].into(),
            manifests: Vec::new(),
        }
    }

    pub(crate) fn blob(&mut self, kind: &str, data: &[u8]) -> serde_json::Value {
        let digest = digest(data);
        self.files
            .insert(format!("blobs/sha256/{digest}"), data.to_vec());
        let digest = format!("sha256:{digest}");
        serde_json::json!({"mediaType": kind, "digest": digest, "size": data.len()})
    }

    pub(crate) fn json(&mut self, kind: &str, value: &serde_json::Value) -> serde_json::Value {
        self.blob(kind, value.to_string().as_bytes())
    }

    /// Adds an image; `layers` are of that media type and packed by `pack`.
    pub(crate) fn image(
        &mut self,
        config: &serde_json::Value,
        layers: &[Vec<u8>],
        kind: &str,
        pack: fn(&[u8]) -> Vec<u8>,
    ) -> serde_json::Value {
        let config = self.json("application/vnd.oci.image.config.v1+json", config);
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob(kind, &pack(layer)))
            .collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.json("application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    pub(crate) fn index(&self) -> serde_json::Value {
        serde_json::json!({"schemaVersion": 2, "manifests": self.manifests})
    }

    pub(crate) fn write(mut self, directory: &Path) {
        self.files
            .insert("index.json".into(), self.index().to_string().into());
        for (name, data) in self.files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }
    }

    pub(crate) fn tar(mut self) -> Vec<u8> {
        self.files
            .insert("index.json".into(), self.index().to_string().into());
        let files = self.files.into_iter();
        files
            .fold(Tar::new(), |tar, (name, data)| tar.file(&name, data))
            .finish()
    }
}

pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// As `docker save` wrote until version 24.
pub(crate) fn docker_archive(config: &serde_json::Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let directory = format!("{index:x}{}", digest(layer));
        let name = format!("{directory}/layer.tar");
        tar = tar.dir(&format!("{directory}/"));
        // A layer that occurs twice is stored once.
        tar = match layers[..index].iter().position(|l| l == layer) {
            Some(first) => tar.symlink(&name, &format!("../{first:x}{}/layer.tar", digest(layer))),
            None => tar.file(&name, layer),
        };
        names.push(name);
    }
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": ["demo:latest"], "Layers": names}
    ]);
    tar.file("config.json", config.to_string())
        .file("manifest.json", manifest.to_string())
        .finish()
}

/// Runs a program of erofs-utils.
fn erofs(program: &str, arguments: &[&std::ffi::OsStr]) -> String {
    let done = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("start {program}: {error}; apt-get install erofs-utils");
        });
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

/// What a layer holds: path to `TYPE MODE TIME CONTENTS`.
pub(crate) fn listing(layer: &Path) -> BTreeMap<String, String> {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let mut extract = std::ffi::OsString::from("--extract=");
    extract.push(&root);
    let options = ["--no-preserve-owner", "--preserve-perms"].map(AsRef::as_ref);
    erofs(
        "fsck.erofs",
        &[options[0], options[1], &extract, layer.as_os_str()],
    );
    let mut found = BTreeMap::new();
    list(&root, "", &mut found).unwrap();
    found
}

pub(crate) fn list(
    directory: &Path,
    prefix: &str,
    found: &mut BTreeMap<String, String>,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        let path = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let mode = meta.mode() & 0o7777;
        let time = meta.mtime();
        let text = if meta.is_dir() {
            list(&entry.path(), &path, found)?;
            format!("dir {mode:o} {time}")
        } else if meta.is_symlink() {
            format!("link {}", fs::read_link(entry.path())?.display())
        } else if meta.len() > 64 {
            format!("file {mode:o} {time} {}", digest(&fs::read(entry.path())?))
        } else {
            let data = fs::read(entry.path())?;
            format!("file {mode:o} {time} {}", String::from_utf8_lossy(&data))
        };
        found.insert(path, text);
    }
    Ok(())
}

/// Paths of a layer with the contents of its files.
pub(crate) fn contents(layer: &Path) -> Vec<String> {
    let short = |(path, text): (String, String)| match text.split(' ').collect::<Vec<_>>()[..] {
        ["file", _, _, data] => format!("{path}={data}"),
        ["link", target] => format!("{path}->{target}"),
        _ => format!("{path}/"),
    };
    listing(layer).into_iter().map(short).collect()
}

/// What `dump.erofs` says about one path.
pub(crate) fn dump(layer: &Path, path: &str) -> String {
    let path = format!("--path={path}");
    erofs(
        "dump.erofs",
        &[path.as_ref(), "-e".as_ref(), layer.as_os_str()],
    )
}

/// Checks the whole layer.
pub(crate) fn check(layer: &Path) {
    erofs("fsck.erofs", &[layer.as_os_str()]);
}
