//! Archives made to break out, to crash, or just cut short.

use std::fs;

use proptest::prelude::*;
use rootfs_builder::image::write_layer;
use tar::EntryType;

use super::archive::contents_of;
use super::common::{self, Tar, gzip};
use super::documents::error_of;

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "/..", "a/.."] {
        let expected = format!("read IMAGE: the name {name:?} in it contains `..`");
        assert_eq!(error_of(&Tar::new().file(name, "x").finish()), expected);
    }
    let link = Tar::new().hard_link("passwd", "../../etc/passwd").finish();
    assert_eq!(
        error_of(&link),
        "read IMAGE: the name \"../../etc/passwd\" in it contains `..`"
    );
}

#[test]
fn absolute_names_and_links_stay_in_the_image() {
    let tar = Tar::new()
        .file("/etc/absolute", "a")
        .symlink("up", "../../../..")
        .symlink("abs", "/etc")
        .file("up/top", "t")
        .file("abs/inner", "i")
        .finish();
    assert_eq!(
        contents_of(&tar).0,
        [
            "/abs->/etc",
            "/etc/",
            "/etc/absolute=a",
            "/etc/inner=i",
            "/top=t",
            "/up->../../../.."
        ]
    );
}

#[test]
fn hard_links_lead_to_files_in_the_image_only() {
    let tar = Tar::new()
        .symlink("s", "/etc/shadow")
        .hard_link("h", "s/x")
        .finish();
    assert_eq!(
        error_of(&tar),
        "read IMAGE: \"h\" in it is a hard link to \"s/x\", which is not a file in it"
    );
    let tar = Tar::new().dir("d").hard_link("h", "d").finish();
    assert_eq!(
        error_of(&tar),
        "read IMAGE: \"h\" in it is a hard link to \"d\", which is not a file in it"
    );
}

#[test]
fn links_in_a_circle_end() {
    let tar = Tar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "x")
        .finish();
    assert_eq!(
        error_of(&tar),
        "read IMAGE: \"a\" in it leads through more than 40 links"
    );
}

#[test]
fn names_too_long_for_linux_are_refused() {
    let long = |path: &str| {
        let tar = Tar::new()
            .pax(&[("path", path.as_bytes())])
            .file("x", "x")
            .finish();
        error_of(&tar)
    };
    assert!(long(&"n".repeat(256)).ends_with("in it is too long for Linux"));
    assert!(long(&format!("{}x", "d/".repeat(2048))).ends_with("in it is too long for Linux"));
}

#[test]
fn things_below_a_file_are_refused() {
    let tar = Tar::new().file("a", "x").file("a/b", "x").finish();
    assert!(error_of(&tar).ends_with("lies below something that is not a directory"));
}

#[test]
fn root_that_is_no_directory_and_whiteout_of_nothing_are_refused() {
    assert!(error_of(&Tar::new().file("./.", "x").finish()).ends_with("is not valid"));
    assert!(error_of(&Tar::new().file("a/.wh.", "").finish()).ends_with("is not valid"));
    assert!(error_of(&Tar::new().file(".wh...", "").finish()).ends_with("is not valid"));
}

#[test]
fn deep_directories_and_their_removal_need_no_stack() {
    let mut lower = Tar::new();
    let mut path = String::new();
    for level in 0..30 {
        path += &"d/".repeat(1000);
        let link = format!("l{level}");
        lower = lower.pax(&[("path", path.as_bytes())]).dir("deep");
        lower = lower
            .pax(&[("linkpath", path.as_bytes())])
            .symlink(&link, "deep");
        path = format!("{link}/");
    }
    let upper = Tar::new()
        .file("keep", "k")
        .file(".wh..wh..opq", "")
        .dir("d")
        .finish();
    let layers = [lower.finish(), upper];
    let archive = common::docker_archive(&common::config(&layers), &layers);
    assert_eq!(contents_of(&archive).0, ["/d/", "/keep=k"]);
}

#[test]
fn sparse_and_unknown_entries_are_refused_by_name() {
    let sparse = Tar::new()
        .pax(&[("GNU.sparse.major", b"1")])
        .file("s", "x")
        .finish();
    let expected =
        "read IMAGE: \"s\" in it is stored as a sparse file; make the archive without --sparse";
    assert_eq!(error_of(&sparse), expected);
    let unknown = Tar::new()
        .entry("m", EntryType::new(b'M'), |_| (), b"")
        .finish();
    assert_eq!(
        error_of(&unknown),
        "read IMAGE: \"m\" in it has the unknown type 'M'"
    );
}

#[test]
fn endless_extension_header_is_refused() {
    let tar = Tar::new().entry("x", EntryType::XHeader, |h| h.set_size(1 << 40), b"");
    assert_eq!(
        error_of(&tar.finish()),
        "read IMAGE: a header of it is longer than 1 MiB"
    );
}

#[test]
fn size_beyond_the_end_is_refused_before_it_is_believed() {
    let tar = Tar::new().entry("x", EntryType::Regular, |h| h.set_size(u64::MAX / 2), b"");
    let text = error_of(&tar.finish());
    assert_eq!(text, "read IMAGE: it ends too early; copy or save it again");
}

#[test]
fn archive_cut_anywhere_is_complete_or_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (image, layer) = (scratch.path().join("image"), scratch.path().join("layer"));
    let tar = Tar::new()
        .file("a", vec![1; 700])
        .dir("d")
        .file("d/b", "b")
        .finish();
    let layers = [tar.clone()];
    let docker = common::docker_archive(&common::config(&layers), &layers);
    for whole in [tar, gzip(&docker), docker] {
        for end in (0..whole.len()).step_by(97) {
            fs::write(&image, &whole[..end]).unwrap();
            if write_layer(&image, &layer).is_ok() {
                common::check(&layer);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..<_>::default() })]

    /// Whatever stands in an archive: a layer that fsck accepts, or an error.
    #[test]
    fn damaged_archive_gives_a_sound_layer_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        with_checksums in any::<bool>(),
    ) {
        let mut tar = Tar::new()
            .dir("d")
            .file("d/a", vec![3; 600])
            .pax(&[("SCHILY.xattr.user.x", b"v\n\n1"), ("mtime", b"1.5")])
            .file("f", "f")
            .symlink("s", "d/a")
            .hard_link("h", "d/a")
            .file("d/.wh.a", "")
            .finish();
        for (index, byte) in changes {
            let at = index.index(tar.len());
            tar[at] = byte;
        }
        if with_checksums {
            for block in tar.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let scratch = tempfile::tempdir().unwrap();
        let (image, layer) = (scratch.path().join("image"), scratch.path().join("layer"));
        fs::write(&image, tar).unwrap();
        if write_layer(&image, &layer).is_ok() {
            common::check(&layer);
        } else {
            prop_assert!(!layer.exists());
        }
    }
}
