//! Images whose parts do not fit together: each gives one sentence.

use std::fs;
use std::path::Path;

use rootfs_builder::image::{Cache, ImageError, Silent, prepare};

use super::common::{self, Layout, OCI_LAYER, Tar, gzip};

/// The whole error of an archive, `IMAGE` in place of its path.
pub(crate) fn error_of(archive: &[u8]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    fs::write(&image, archive).unwrap();
    let cache = Cache::new(scratch.path().join("cache"));
    let error = prepare(&image, &cache, &Silent).unwrap_err();
    assert_eq!(
        fs::read_dir(cache.directory()).unwrap().count(),
        0,
        "a file was left"
    );
    text(&error, &image)
}

fn text(error: &ImageError, image: &Path) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace(&image.display().to_string(), "IMAGE")
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new().file("a", "a").finish(),
        Tar::new().file("b", "b").finish(),
    ]
}

fn layout(change: impl FnOnce(&mut Layout, &mut serde_json::Value)) -> Vec<u8> {
    let mut layout = Layout::new();
    let mut image = layout.image(
        &common::config(&layers()),
        &layers(),
        &format!("{OCI_LAYER}+gzip"),
        gzip,
    );
    change(&mut layout, &mut image);
    layout.manifests.push(image);
    layout.tar()
}

#[test]
fn not_an_image() {
    assert_eq!(error_of(b""), "the image IMAGE is empty");
    assert_eq!(error_of(&[0; 10240]), "the image IMAGE is empty");
    assert_eq!(error_of(&gzip(&[0; 10240])), "the image IMAGE is empty");
    let not = "IMAGE is not an image; give a directory, a root tar, a `docker save` archive or an \
               OCI layout";
    assert_eq!(error_of(b"x"), not);
    assert_eq!(error_of(&[b'x'; 5000]), not);
    assert_eq!(error_of(&gzip(&[b'x'; 5000])), not);
    assert_eq!(
        error_of(b"BZh91AY&SY"),
        "read IMAGE: it is compressed with bzip2; recompress it with gzip, xz or zstd"
    );
    assert_eq!(
        error_of(b"\x1f\x8b"),
        "read IMAGE: it ends too early; copy or save it again"
    );
}

#[test]
fn missing_layer() {
    let layers = layers();
    let manifest = serde_json::json!([{"Config": "c.json", "Layers": ["1.tar", "2.tar"]}]);
    let archive = Tar::new()
        .file("c.json", common::config(&layers).to_string())
        .file("1.tar", &layers[0])
        .file("manifest.json", manifest.to_string());
    assert_eq!(
        error_of(&archive.finish()),
        "the image IMAGE lacks its file 2.tar; save it again"
    );
}

#[test]
fn missing_configuration() {
    let manifest = serde_json::json!([{"Config": "c.json", "Layers": []}]);
    let archive = Tar::new()
        .file("manifest.json", manifest.to_string())
        .finish();
    assert_eq!(
        error_of(&archive),
        "the image IMAGE lacks its file c.json; save it again"
    );
}

#[test]
fn wrong_number_of_layers() {
    let all = layers();
    let archive = common::docker_archive(&common::config(&all[..1]), &all);
    assert_eq!(
        error_of(&archive),
        "the image IMAGE has 2 layers, but config.json in it lists 1; save it again"
    );
}

#[test]
fn several_images() {
    let one = serde_json::json!({"Config": "c", "RepoTags": ["a:1"], "Layers": []});
    let two = serde_json::json!({"Config": "d", "RepoTags": ["b:1", "b:2"], "Layers": []});
    let archive = Tar::new().file("manifest.json", serde_json::json!([one, two]).to_string());
    assert_eq!(
        error_of(&archive.finish()),
        "IMAGE holds several images (a:1, b:1, b:2); save one alone"
    );
    let archive = layout(|layout, image| {
        let mut other = layout.json(
            "application/vnd.oci.image.manifest.v1+json",
            &"other".into(),
        );
        other["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "v2"});
        image["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "v1"});
        layout.manifests.push(other);
    });
    assert_eq!(
        error_of(&archive),
        "IMAGE holds several images (v2, v1); save one alone"
    );
}

#[test]
fn other_platforms() {
    let mut config = common::config(&layers());
    config["architecture"] = "arm64".into();
    let archive = common::docker_archive(&config, &layers());
    let foreign = "the image IMAGE is for linux/arm64; get the one for linux/amd64";
    assert_eq!(error_of(&archive), foreign);
    let archive = layout(|_, image| {
        image["platform"] = serde_json::json!({"os": "linux", "architecture": "arm64"});
    });
    assert_eq!(error_of(&archive), foreign);
}

#[test]
fn unknown_media_types() {
    let archive = layout(|_, image| image["mediaType"] = "text/plain".into());
    let unknown = "IMAGE holds something of the type text/plain, which nerite does not know";
    assert_eq!(error_of(&archive), unknown);
    let mut layout = Layout::new();
    let image = layout.image(
        &common::config(&layers()),
        &layers(),
        "text/plain",
        <[u8]>::to_vec,
    );
    layout.manifests.push(image);
    assert_eq!(error_of(&layout.tar()), unknown);
}

#[test]
fn damaged_document_and_layer() {
    let damage = |which: &'static str| {
        layout(move |layout, _| {
            for data in layout.files.values_mut() {
                let text = String::from_utf8_lossy(data).into_owned();
                if text.contains(which) {
                    *data = text.replacen("amd64", "AMD64", 1).into_bytes();
                }
            }
        })
    };
    let error = error_of(&damage("diff_ids"));
    assert!(error.starts_with("blobs/sha256/"), "{error}");
    assert!(
        error.ends_with("in the image IMAGE is damaged; save it again"),
        "{error}"
    );

    let all = layers();
    let mut config = common::config(&all);
    let expected = format!("sha256:{}", "0".repeat(64));
    config["rootfs"]["diff_ids"][1] = expected.as_str().into();
    let error = error_of(&common::docker_archive(&config, &all));
    let end = format!(
        "/layer.tar of IMAGE: its contents do not match their digest {expected}; copy or save it \
         again"
    );
    assert!(
        error.starts_with("read the layer 1") && error.ends_with(&end),
        "{error}"
    );
}

#[test]
fn digests_that_lead_elsewhere() {
    for digest in ["sha256:../../../etc/passwd", "sha512:00", "sha256:", ""] {
        let archive = layout(|_, image| image["digest"] = digest.into());
        let expected = format!("the digest {digest} in the image IMAGE is not a sha256 one");
        assert_eq!(error_of(&archive), expected);
    }
}

#[test]
fn documents_that_are_none() {
    let tar = Tar::new()
        .file("oci-layout", "{}")
        .file("index.json", "[1]")
        .finish();
    let error = error_of(&tar);
    assert!(
        error.starts_with("read index.json in the image IMAGE: "),
        "{error}"
    );
    let long = vec![b' '; (8 << 20) + 1];
    let tar = Tar::new()
        .file("oci-layout", "{}")
        .file("index.json", long)
        .finish();
    assert_eq!(
        error_of(&tar),
        "index.json in the image IMAGE is longer than 8 MiB"
    );
    let deep = layout(|layout, image| {
        for _ in 0..10 {
            let index = serde_json::json!({"manifests": [image.clone()]});
            *image = layout.json("application/vnd.oci.image.index.v1+json", &index);
        }
    });
    assert_eq!(
        error_of(&deep),
        "the indexes in the image IMAGE are nested too deep"
    );
}
