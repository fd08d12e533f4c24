//! What a bundle's root is: a directory, a disk, or layers.
//!
//! | `root.path` | annotations |
//! |---|---|
//! | directory | none: it is shared |
//! | image or block device | [`FORMAT`] says what it holds |
//! | directory | [`LAYERS`] and [`UPPER`]: EROFS layers, and where writes go |

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use protocol::control::BlockLimits;
use protocol::oci::Spec;

use crate::disks::{DiskError, FileKind, Format};

/// The file system on a root that is an image or a block device.
pub const FORMAT: &str = "io.nerite.root.format";
/// EROFS images below the root, a JSON array of paths, uppermost first.
pub const LAYERS: &str = "io.nerite.root.layers";
/// Where writes to layers go.
pub const UPPER: &str = "io.nerite.root.upper";
/// Bytes that each disk may move per second.
pub const BYTES_PER_SECOND: &str = "io.nerite.disk.bytes-per-second";
/// Requests that each disk may be sent per second.
pub const OPERATIONS_PER_SECOND: &str = "io.nerite.disk.operations-per-second";

const KNOWN: [&str; 5] = [
    FORMAT,
    LAYERS,
    UPPER,
    BYTES_PER_SECOND,
    OPERATIONS_PER_SECOND,
];
const OWNED: [&str; 2] = ["io.nerite.root.", "io.nerite.disk."];

/// Where writes may go, for messages.
const UPPERS: &str = "\"tmpfs\", \"directory\", \"ext4:PATH\" or \"xfs:PATH\"";

/// A root that is described wrongly.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A disk of it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A name that nerite does not know, in its own part of the names.
    #[error("annotation {name} is unknown; there are {}", KNOWN.join(", "))]
    Unknown {
        /// The annotation.
        name: String,
    },
    /// Two that exclude each other, or one without what it needs.
    #[error("annotation {name} {reason}")]
    Misplaced {
        /// The annotation.
        name: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A value that cannot be read.
    #[error("annotation {name} is {value:?}, not {expected}")]
    Value {
        /// The annotation.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it could say.
        expected: &'static str,
    },
    /// Writes would have nowhere to go.
    #[error(
        "a root of EROFS takes no writes: set root.readonly, or say with annotation {UPPER} \
         where they go: {UPPERS}"
    )]
    Unwritable,
}

/// Where writes to layers go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpperSource {
    /// Guest memory.
    Memory,
    /// `root.path`, in its directory `upper`.
    Directory,
    /// A disk, in its directory `upper`.
    Disk(PathBuf, Format),
}

/// What the root is made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RootSource {
    /// The shared directory.
    Directory,
    /// One disk, written to unless the root is read-only.
    Disk(PathBuf, Format),
    /// EROFS layers, uppermost first.
    Layers(Vec<PathBuf>, Option<UpperSource>),
}

impl RootSource {
    /// What `spec` declares of its root at `path`; other paths are relative to
    /// the bundle's `directory`.
    ///
    /// # Errors
    ///
    /// [`RootError`] names the annotation.
    pub fn declared(spec: &Spec, directory: &Path, path: &Path) -> Result<Self, RootError> {
        let annotations = &spec.annotations;
        let unknown = annotations.keys().find(|name| {
            OWNED.iter().any(|prefix| name.starts_with(prefix)) && !KNOWN.contains(&name.as_str())
        });
        if let Some(name) = unknown {
            return Err(RootError::Unknown { name: name.clone() });
        }
        let word = |name: &str| annotations.get(name).map(String::as_str);
        let misplaced = |name, reason| RootError::Misplaced { name, reason };
        let read_only = spec.root.as_ref().is_some_and(|root| root.readonly);
        let kind = FileKind::of(path)?;
        let layers = match (kind, word(FORMAT), word(LAYERS)) {
            (FileKind::Directory, Some(_), _) => {
                return Err(misplaced(
                    FORMAT,
                    "is for images and block devices; root.path is a directory",
                ));
            }
            (FileKind::Directory, None, Some(list)) => layers(list, directory)?,
            (FileKind::Directory, None, None) => {
                return match word(UPPER) {
                    Some(_) => Err(misplaced(UPPER, "needs layers below it")),
                    None => Ok(Self::Directory),
                };
            }
            (_, _, Some(_)) => {
                return Err(misplaced(
                    LAYERS,
                    "needs a root.path that is a directory; an image belongs into the list",
                ));
            }
            (kind, None, None) => {
                return Err(RootError::Disk(DiskError::Undeclared {
                    path: path.into(),
                    kind: kind.word(),
                    setting: FORMAT,
                }));
            }
            (_, Some(format), None) => {
                let format = Format::parse(FORMAT, format)?;
                if !format.is_read_only() {
                    return match word(UPPER) {
                        Some(_) => Err(misplaced(
                            UPPER,
                            "is for roots of EROFS; this one takes writes itself",
                        )),
                        None => Ok(Self::Disk(path.into(), format)),
                    };
                }
                if word(UPPER) == Some("directory") {
                    return Err(misplaced(
                        UPPER,
                        "cannot be \"directory\": root.path is none",
                    ));
                }
                vec![path.into()]
            }
        };
        let upper = word(UPPER).map(|word| upper(word, directory)).transpose()?;
        match upper {
            None if !read_only => Err(RootError::Unwritable),
            Some(_) if read_only => Err(misplaced(UPPER, "has no use: root.readonly is true")),
            upper => Ok(Self::Layers(layers, upper)),
        }
    }
}

fn layers(list: &str, directory: &Path) -> Result<Vec<PathBuf>, RootError> {
    let paths: Vec<String> = serde_json::from_str(list).unwrap_or_default();
    if paths.is_empty() || paths.iter().any(String::is_empty) {
        return Err(RootError::Value {
            name: LAYERS,
            value: list.into(),
            expected: "a JSON array of paths, uppermost layer first",
        });
    }
    Ok(paths.iter().map(|path| directory.join(path)).collect())
}

fn upper(word: &str, directory: &Path) -> Result<UpperSource, RootError> {
    match (word, word.split_once(':')) {
        ("tmpfs", _) => Ok(UpperSource::Memory),
        ("directory", _) => Ok(UpperSource::Directory),
        (_, Some((format, path))) if !path.is_empty() => {
            let format = Format::parse(UPPER, format)?;
            if format.is_read_only() {
                return Err(RootError::Misplaced {
                    name: UPPER,
                    reason: "cannot be EROFS, which takes no writes",
                });
            }
            Ok(UpperSource::Disk(directory.join(path), format))
        }
        _ => Err(RootError::Value {
            name: UPPER,
            value: word.into(),
            expected: UPPERS,
        }),
    }
}

/// How fast each disk may be.
///
/// # Errors
///
/// [`RootError::Value`].
pub fn limits(annotations: &BTreeMap<String, String>) -> Result<BlockLimits, RootError> {
    let rate = |name: &'static str| -> Result<Option<NonZeroU64>, RootError> {
        let Some(value) = annotations.get(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(rate) => Ok(Some(rate)),
            Err(_) => Err(RootError::Value {
                name,
                value: value.clone(),
                expected: "a whole number above 0",
            }),
        }
    };
    Ok(BlockLimits {
        bytes_per_second: rate(BYTES_PER_SECOND)?,
        operations_per_second: rate(OPERATIONS_PER_SECOND)?,
    })
}

#[cfg(test)]
mod tests {
    use protocol::oci::Root;

    use super::*;

    fn declared(
        path: &Path,
        read_only: bool,
        annotations: &[(&str, &str)],
    ) -> Result<RootSource, String> {
        let spec = Spec {
            root: Some(Root {
                path: String::new(),
                readonly: read_only,
            }),
            annotations: annotations
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect(),
            ..Spec::default()
        };
        RootSource::declared(&spec, Path::new("/bundle"), path).map_err(|error| error.to_string())
    }

    fn refused(path: &Path, read_only: bool, annotations: &[(&str, &str)], by: &str) {
        let error = declared(path, read_only, annotations).unwrap_err();
        assert!(error.contains(by), "{error}");
    }

    #[test]
    fn image_is_what_it_is_declared_to_be() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = file.path();
        let ext4 = Format::parse("", "ext4").unwrap();
        assert_eq!(
            declared(image, false, &[(FORMAT, "ext4")]),
            Ok(RootSource::Disk(image.into(), ext4))
        );
        assert_eq!(
            declared(image, true, &[(FORMAT, "erofs")]),
            Ok(RootSource::Layers(vec![image.into()], None))
        );
        refused(
            image,
            false,
            &[],
            "a regular file: say what it holds with io.nerite.root.format",
        );
        refused(image, false, &[(FORMAT, "qcow2")], "qemu-img convert");
        refused(image, false, &[(FORMAT, "erofs")], "takes no writes");
        refused(
            image,
            false,
            &[(FORMAT, "erofs"), (UPPER, "directory")],
            "root.path is none",
        );
        refused(
            image,
            false,
            &[(FORMAT, "ext4"), (UPPER, "tmpfs")],
            "takes writes itself",
        );
        refused(
            image,
            false,
            &[(LAYERS, r#"["a"]"#)],
            "belongs into the list",
        );
    }

    #[test]
    fn layers_need_a_place_for_writes() {
        let directory = Path::new("/");
        let list = r#"["upper.erofs", "/lower.erofs"]"#;
        let expected = vec!["/bundle/upper.erofs".into(), "/lower.erofs".into()];
        assert_eq!(
            declared(directory, false, &[(LAYERS, list), (UPPER, "tmpfs")]),
            Ok(RootSource::Layers(
                expected.clone(),
                Some(UpperSource::Memory)
            ))
        );
        let xfs = Format::parse("", "xfs").unwrap();
        assert_eq!(
            declared(directory, false, &[(LAYERS, list), (UPPER, "xfs:disk")]),
            Ok(RootSource::Layers(
                expected,
                Some(UpperSource::Disk("/bundle/disk".into(), xfs))
            ))
        );
        refused(directory, false, &[(LAYERS, list)], "takes no writes");
        refused(
            directory,
            true,
            &[(LAYERS, list), (UPPER, "tmpfs")],
            "has no use",
        );
        refused(
            directory,
            false,
            &[(LAYERS, "a:b"), (UPPER, "tmpfs")],
            "JSON array",
        );
        refused(
            directory,
            false,
            &[(LAYERS, list), (UPPER, "disk")],
            "ext4:PATH",
        );
        refused(
            directory,
            false,
            &[(LAYERS, list), (UPPER, "erofs:x")],
            "takes no writes",
        );
    }

    #[test]
    fn misplaced_and_unknown_annotations_are_refused() {
        let directory = Path::new("/");
        assert_eq!(
            declared(directory, false, &[("io.other", "x")]),
            Ok(RootSource::Directory)
        );
        refused(
            directory,
            false,
            &[("io.nerite.root.fromat", "x")],
            "fromat is unknown",
        );
        refused(
            directory,
            false,
            &[(FORMAT, "ext4")],
            "root.path is a directory",
        );
        refused(directory, false, &[(UPPER, "tmpfs")], "needs layers");
        refused(
            Path::new("/dev/null"),
            false,
            &[],
            "neither a regular file nor a block device",
        );
    }

    #[test]
    fn limits_are_whole_numbers() {
        let of = |name: &str, value: &str| limits(&[(name.into(), value.into())].into());
        let bytes = of(BYTES_PER_SECOND, "1048576").unwrap();
        assert_eq!(bytes.bytes_per_second, NonZeroU64::new(1 << 20));
        assert_eq!(bytes.operations_per_second, None);
        assert!(of(OPERATIONS_PER_SECOND, "0").is_err());
        assert!(of(BYTES_PER_SECOND, "1M").is_err());
    }
}
