//! Root tars, `docker save` archives and OCI layouts that are as they should be.

use std::fs;
use std::path::Path;

use rootfs_builder::image::{Cache, ImageConfig, Silent, prepare, write_layer};
use tar::EntryType;

use super::common::{self, Layout, OCI_LAYER, Tar, gzip, xz, zstd};

/// Makes a layer of an archive and lists it.
pub(crate) fn contents_of(archive: &[u8]) -> (Vec<String>, ImageConfig) {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    fs::write(&image, archive).unwrap();
    layer_contents(&image, scratch.path())
}

fn layer_contents(image: &Path, scratch: &Path) -> (Vec<String>, ImageConfig) {
    let layer = scratch.join("layer.erofs");
    let config = write_layer(image, &layer).unwrap();
    (common::contents(&layer), config)
}

/// Three layers: the second changes the first in every way, the third is the
/// first of two equal ones.
fn layers() -> Vec<Vec<u8>> {
    let base = Tar::new()
        .dir("./")
        .dir("./bin/")
        .file("./bin/app", "one")
        .file("bin/gone", "x")
        .dir("etc")
        .file("etc/a", "a1")
        .file("etc/b", "b1")
        .dir("var")
        .file("var/old", "x")
        .dir("var/sub")
        .file("var/sub/older", "x")
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .hard_link("bin/alias", "bin/app");
    let changes = Tar::new()
        .dir("bin")
        .file("bin/.wh.gone", "")
        .file("bin/app", "two")
        .dir("etc")
        .file("etc/a", "a2")
        .file("var/new", "n")
        .file("var/sub/newer", "n")
        .file("var/.wh..wh..opq", "")
        .file("lib/through-link", "t");
    let last = Tar::new()
        .file("last", "l")
        .hard_link("etc/link-down", "etc/b");
    vec![base.finish(), changes.finish(), last.finish()]
}

const MERGED: [&str; 16] = [
    "/bin/",
    "/bin/alias=one",
    "/bin/app=two",
    "/etc/",
    "/etc/a=a2",
    "/etc/b=b1",
    "/etc/link-down=b1",
    "/last=l",
    "/lib->usr/lib",
    "/usr/",
    "/usr/lib/",
    "/usr/lib/through-link=t",
    "/var/",
    "/var/new=n",
    "/var/sub/",
    "/var/sub/newer=n",
];

fn demo_config() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/bin/app".into(), "-x".into()],
        env: vec!["PATH=/bin".into(), "A=b".into()],
        working_dir: "/srv".into(),
        user: "1000:1000".into(),
        exposed_ports: vec!["53/udp".into(), "80/tcp".into()],
        labels: [("a".into(), "b".into())].into(),
        ..ImageConfig::default()
    }
}

#[test]
fn root_tar_gives_the_same_layer_in_every_compression() {
    let scratch = tempfile::tempdir().unwrap();
    let tar = Tar::new()
        .dir("bin")
        .file("bin/sh", vec![b'x'; 300_000])
        .symlink("sh", "bin/sh");
    let tar = tar.finish();
    let mut layers = Vec::new();
    for (name, data) in [
        ("plain", tar.clone()),
        ("gz", gzip(&tar)),
        ("xz", xz(&tar)),
        ("zst", zstd(&tar)),
    ] {
        let image = scratch.path().join(name);
        fs::write(&image, data).unwrap();
        let layer = scratch.path().join("layer");
        assert_eq!(write_layer(&image, &layer).unwrap(), ImageConfig::default());
        layers.push(fs::read(&layer).unwrap());
    }
    assert!(layers.iter().all(|layer| *layer == layers[0]));
    assert_eq!(common::contents(&scratch.path().join("layer")).len(), 3);
}

#[test]
fn docker_archive_is_merged_with_its_whiteouts() {
    let layers = layers();
    let archive = common::docker_archive(&common::config(&layers), &layers);
    let (found, config) = contents_of(&archive);
    assert_eq!(found, MERGED);
    assert_eq!(config, demo_config());
    let (found, _) = contents_of(&gzip(&archive));
    assert_eq!(found, MERGED);
}

#[test]
fn docker_archive_with_one_layer_twice_follows_its_link() {
    let mut layers = layers();
    layers.push(layers[2].clone());
    let archive = common::docker_archive(&common::config(&layers), &layers);
    assert_eq!(contents_of(&archive).0, MERGED);
}

#[test]
fn docker_archive_with_an_oci_layout_in_it_is_read() {
    let layers = layers();
    let config = common::config(&layers);
    let mut layout = Layout::new();
    let image = layout.image(&config, &layers, OCI_LAYER, <[u8]>::to_vec);
    layout.manifests.push(image);
    let blob = |data: &[u8]| format!("blobs/sha256/{}", common::digest(data));
    let manifest = serde_json::json!([{
        "Config": blob(config.to_string().as_bytes()),
        "RepoTags": null,
        "Layers": layers.iter().map(|layer| blob(layer)).collect::<Vec<_>>(),
        "LayerSources": {},
    }]);
    layout
        .files
        .insert("manifest.json".into(), manifest.to_string().into());
    let (found, config) = contents_of(&layout.tar());
    assert_eq!(
        (found, config),
        (MERGED.map(String::from).into(), demo_config())
    );
}

#[test]
fn oci_layout_is_read_as_directory_and_as_tar() {
    for (suffix, pack) in [
        ("", <[u8]>::to_vec as fn(&[u8]) -> Vec<u8>),
        ("+gzip", gzip),
        ("+zstd", zstd),
    ] {
        let layers = layers();
        let layout = || {
            let mut layout = Layout::new();
            let kind = format!("{OCI_LAYER}{suffix}");
            let image = layout.image(&common::config(&layers), &layers, &kind, pack);
            layout.manifests.push(image);
            layout
        };
        let (found, config) = contents_of(&layout().tar());
        assert_eq!(found, MERGED);
        assert_eq!(config, demo_config());

        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("layout");
        layout().write(&image);
        let (found, config) = layer_contents(&image, scratch.path());
        assert_eq!(found, MERGED);
        assert_eq!(config, demo_config());
    }
}

#[test]
fn oci_layout_for_several_platforms_gives_this_one() {
    let mut layout = Layout::new();
    let platform =
        |architecture: &str| serde_json::json!({"os": "linux", "architecture": architecture});
    let mut inner = Vec::new();
    for architecture in ["arm64", "amd64", "s390x"] {
        let layers = vec![Tar::new().file("arch", architecture).finish()];
        let mut config = common::config(&layers);
        config["architecture"] = architecture.into();
        let mut image = layout.image(&config, &layers, OCI_LAYER, <[u8]>::to_vec);
        image["platform"] = platform(architecture);
        inner.push(image);
    }
    let mut attestation = inner[0].clone();
    attestation["platform"] = platform("unknown");
    attestation["annotations"] =
        serde_json::json!({"vnd.docker.reference.type": "attestation-manifest"});
    inner.push(attestation);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": inner});
    let index = layout.json("application/vnd.oci.image.index.v1+json", &index);
    layout.manifests.push(index);
    assert_eq!(contents_of(&layout.tar()).0, ["/arch=amd64"]);
}

#[test]
fn cached_archive_keeps_its_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let layers = layers();
    let image = scratch.path().join("image.tar");
    fs::write(
        &image,
        common::docker_archive(&common::config(&layers), &layers),
    )
    .unwrap();
    let old = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_times(old)
        .unwrap();
    let cache = Cache::new(scratch.path().join("cache"));
    // The second is made again if the first came within a clock's tick of
    // the archive.
    let found = loop {
        let prepared = prepare(&image, &cache, &Silent).unwrap();
        if prepared.cached {
            break prepared;
        }
    };
    assert_eq!(found.config, demo_config());
    assert_eq!(common::contents(&found.layer), MERGED);
}

#[test]
fn owners_devices_and_long_names_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let device = |major, minor| {
        move |header: &mut tar::Header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
            header.set_mode(0o620);
        }
    };
    let tar = Tar::new()
        .entry("tty", EntryType::Char, device(5, 0), b"")
        .entry("disk", EntryType::Block, device(259, 300), b"")
        .entry("pipe", EntryType::Fifo, |_| (), b"")
        .pax(&[
            ("uid", b"4000000000"),
            ("gid", b"7"),
            ("mtime", b"1600000000.25"),
        ])
        .file("owned", "x")
        .pax(&[("path", long.as_bytes())])
        .file("short", "y")
        .entry(
            "././@LongLink",
            EntryType::GNULongName,
            |_| (),
            b"very/long/gnu/name\0",
        )
        .file("cut", "z")
        .entry(
            "set-id",
            EntryType::Regular,
            |h| h.set_mode(0o106_755),
            b"s",
        );
    let image = scratch.path().join("image");
    fs::write(&image, tar.finish()).unwrap();
    let layer = scratch.path().join("layer");
    write_layer(&image, &layer).unwrap();
    common::check(&layer);
    for (path, expected) in [
        ("/tty", "char dev"),
        ("/tty", "0620/"),
        ("/disk", "block dev"),
        ("/pipe", "FIFO"),
        ("/owned", "Uid: 4000000000   Gid: 7"),
        ("/owned", "2020-09-13"),
        (&format!("/{long}"), "regular file"),
        ("/very/long/gnu/name", "regular file"),
        ("/set-id", "0755/"),
    ] {
        let text = common::dump(&layer, path);
        assert!(
            text.to_lowercase().contains(&expected.to_lowercase()),
            "{path}: {text}"
        );
    }
}

#[test]
fn hidden_contents_give_their_space_back() {
    let scratch = tempfile::tempdir().unwrap();
    let big = vec![0x55; 8 << 20];
    let layers = vec![
        Tar::new().file("big", &big).finish(),
        Tar::new().file(".wh.big", "").file("s", "s").finish(),
    ];
    let image = scratch.path().join("image");
    fs::write(
        &image,
        common::docker_archive(&common::config(&layers), &layers),
    )
    .unwrap();
    let layer = scratch.path().join("layer");
    write_layer(&image, &layer).unwrap();
    assert_eq!(common::contents(&layer), ["/s=s"]);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&layer).unwrap());
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
}

#[test]
fn root_tar_with_a_file_called_manifest_json_is_a_root_file_system() {
    let tar = Tar::new()
        .file("manifest.json", r#"{"name":"web-app"}"#)
        .finish();
    assert_eq!(
        contents_of(&tar).0,
        [r#"/manifest.json={"name":"web-app"}"#]
    );
}
