//! Which layers an image has: `manifest.json` of `docker save`, and `index.json`
//! of OCI layouts (OCI image specification 1.1, image-layout.md,
//! image-index.md, manifest.md).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::store::Store;
use super::{ImageConfig, ImageError};

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
const OS: &str = "linux";

/// What to read, lowest layer first.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its file's name in the store.
    pub(super) name: String,
    /// The digest of the decoded tar.
    pub(super) digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// The image's configuration, as far as it matters here.
#[derive(Deserialize)]
struct ImageFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// The host's architecture as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The parts of the image in a store; `None` if it is none, so that a tar is
/// a root file system.
pub(super) fn parts(store: &Store) -> Result<Option<Parts>, ImageError> {
    if let Some(manifests) = docker_manifests(store)? {
        return docker(store, manifests).map(Some);
    }
    if store.find("oci-layout")?.is_some() && store.find("index.json")?.is_some() {
        return oci(store).map(Some);
    }
    Ok(None)
}

/// The documents' form decides: a root file system may have a file of that
/// name.
fn docker_manifests(store: &Store) -> Result<Option<Vec<DockerManifest>>, ImageError> {
    if store.find("manifest.json")?.is_none() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&store.document("manifest.json")?).ok())
}

fn docker(store: &Store, manifests: Vec<DockerManifest>) -> Result<Parts, ImageError> {
    let names = |manifest: &DockerManifest| match &manifest.repo_tags {
        Some(tags) if !tags.is_empty() => tags.join(", "),
        _ => manifest.config.clone(),
    };
    if manifests.len() > 1 {
        let names = manifests.iter().map(names).collect();
        return Err(ImageError::Several {
            path: store.image.clone(),
            names,
        });
    }
    let Some(manifest) = manifests.into_iter().next() else {
        return Err(ImageError::Empty {
            path: store.image.clone(),
        });
    };
    let config = json(store, &manifest.config, &store.document(&manifest.config)?)?;
    finish(store, &manifest.config, config, manifest.layers)
}

fn oci(store: &Store) -> Result<Parts, ImageError> {
    let index: Index = json(store, "index.json", &store.document("index.json")?)?;
    let mut found = Vec::new();
    let mut foreign = Vec::new();
    candidates(store, index, 0, &mut found, &mut foreign)?;
    found.dedup_by(|a, b| a.digest == b.digest);
    let descriptor = match found.as_slice() {
        [] if foreign.is_empty() => {
            return Err(ImageError::Empty {
                path: store.image.clone(),
            });
        }
        [] => return Err(platform(store, &foreign.join(", "))),
        [one] => one,
        several => {
            let names = several.iter().map(reference).collect();
            return Err(ImageError::Several {
                path: store.image.clone(),
                names,
            });
        }
    };
    let manifest: Manifest = blob_json(store, &descriptor.digest)?;
    let config = blob_json(store, &manifest.config.digest)?;
    let layers = manifest.layers.iter().map(|layer| layer_name(store, layer));
    let layers = layers.collect::<Result<_, _>>()?;
    finish(store, &manifest.config.digest, config, layers)
}

/// A manifest's name for people.
fn reference(descriptor: &Descriptor) -> String {
    let name = descriptor
        .annotations
        .get("org.opencontainers.image.ref.name");
    name.unwrap_or(&descriptor.digest).clone()
}

/// All manifests for this host, and the platforms of the others.
fn candidates(
    store: &Store,
    index: Index,
    depth: usize,
    found: &mut Vec<Descriptor>,
    foreign: &mut Vec<String>,
) -> Result<(), ImageError> {
    for descriptor in index.manifests {
        // Signatures and provenance, which builders store beside images.
        if descriptor
            .annotations
            .contains_key("vnd.docker.reference.type")
        {
            continue;
        }
        if let Some(platform) = &descriptor.platform
            && (platform.os != OS || platform.architecture != architecture())
        {
            foreign.push(format!("{}/{}", platform.os, platform.architecture));
            continue;
        }
        match descriptor.media_type.as_str() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                if depth == MAX_DEPTH {
                    return Err(ImageError::Nested {
                        path: store.image.clone(),
                    });
                }
                let index = blob_json(store, &descriptor.digest)?;
                candidates(store, index, depth + 1, found, foreign)?;
            }
            ""
            | "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => found.push(descriptor),
            other => return Err(media_type(store, other)),
        }
    }
    Ok(())
}

fn media_type(store: &Store, media_type: &str) -> ImageError {
    ImageError::MediaType {
        path: store.image.clone(),
        media_type: media_type.to_owned(),
    }
}

fn platform(store: &Store, found: &str) -> ImageError {
    ImageError::Platform {
        path: store.image.clone(),
        found: found.to_owned(),
        wanted: format!("{OS}/{}", architecture()),
    }
}

/// The file of a layer of a type that is a tar.
fn layer_name(store: &Store, layer: &Descriptor) -> Result<String, ImageError> {
    let kind = layer.media_type.as_str();
    // The compression is told by the data itself.
    let base = kind
        .strip_suffix("+gzip")
        .or_else(|| kind.strip_suffix("+zstd"))
        .unwrap_or(kind);
    match base {
        ""
        | "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            blob_name(store, &layer.digest)
        }
        _ => Err(media_type(store, kind)),
    }
}

/// Where a blob is.
fn blob_name(store: &Store, digest: &str) -> Result<String, ImageError> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .map(|hex| format!("blobs/sha256/{hex}"))
        .ok_or_else(|| ImageError::DigestForm {
            path: store.image.clone(),
            digest: digest.to_owned(),
        })
}

/// A document that is found by its digest, and has it.
fn blob_json<T: DeserializeOwned>(store: &Store, digest: &str) -> Result<T, ImageError> {
    let name = blob_name(store, digest)?;
    let bytes = store.document(&name)?;
    if !name.ends_with(&super::hex(&Sha256::digest(&bytes))) {
        return Err(ImageError::Damaged {
            path: store.image.clone(),
            member: name,
        });
    }
    json(store, &name, &bytes)
}

fn json<T: DeserializeOwned>(store: &Store, name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Document {
        path: store.image.clone(),
        member: name.to_owned(),
        source,
    })
}

fn finish(
    store: &Store,
    name: &str,
    image: ImageFile,
    layers: Vec<String>,
) -> Result<Parts, ImageError> {
    let known = !image.os.is_empty() || !image.architecture.is_empty();
    if known && (image.os != OS || image.architecture != architecture()) {
        return Err(platform(
            store,
            &format!("{}/{}", image.os, image.architecture),
        ));
    }
    let digests = image.rootfs.diff_ids;
    if digests.len() != layers.len() {
        return Err(ImageError::LayerCount {
            path: store.image.clone(),
            member: name.to_owned(),
            listed: digests.len(),
            found: layers.len(),
        });
    }
    // Checks their form.
    for digest in &digests {
        blob_name(store, digest)?;
    }
    let layers = layers.into_iter().zip(digests);
    Ok(Parts {
        config: image.config.unwrap_or_default(),
        layers: layers
            .map(|(name, digest)| Layer { name, digest })
            .collect(),
    })
}
