//! Directories as images, and the cache.

use super::common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use rootfs_builder::image::{Cache, ImageConfig, PreparedImage, Progress, Silent, prepare};

struct Scene {
    scratch: tempfile::TempDir,
    image: PathBuf,
    cache: Cache,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("root");
        fs::create_dir(&image).unwrap();
        fs::write(image.join("hello"), "hi").unwrap();
        let cache = Cache::new(scratch.path().join("cache"));
        Self {
            scratch,
            image,
            cache,
        }
    }

    fn prepare(&self) -> PreparedImage {
        prepare(&self.image, &self.cache, &Silent).unwrap()
    }

    /// Names in the cache by extension.
    fn cached(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.cache.directory()).unwrap() {
            let path = entry.unwrap().path();
            *found
                .entry(path.extension().unwrap().to_str().unwrap().to_owned())
                .or_default() += 1;
        }
        found
    }

    /// Returns once a change now is later than all that went before.
    fn settle(&self) {
        let marker = self.scratch.path().join("marker");
        let start = SystemTime::now();
        while start.elapsed().unwrap() < Duration::from_millis(40) {
            fs::write(&marker, "").unwrap();
        }
    }
}

fn one_layer() -> BTreeMap<String, usize> {
    [("erofs".into(), 1), ("json".into(), 1)].into()
}

#[test]
fn directory_comes_back_equal() {
    let scene = Scene::new();
    let root = &scene.image;
    fs::create_dir_all(root.join("deep/er/still")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for index in 0..1500 {
        fs::write(
            root.join(format!("many/{index}-{}", "n".repeat(index % 230))),
            "x",
        )
        .unwrap();
    }
    fs::write(root.join("empty"), "").unwrap();
    let big: Vec<u8> = (0..3_000_001_u32).map(|i| i.to_le_bytes()[0]).collect();
    fs::write(root.join("big"), big).unwrap();
    fs::write(root.join("block"), [7; 4096]).unwrap();
    fs::write(root.join("caf\u{e9}"), "utf-8").unwrap();
    fs::set_permissions(root.join("hello"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::set_permissions(root.join("deep"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("deep/er", root.join("short")).unwrap();
    symlink("l".repeat(4095), root.join("long")).unwrap();
    symlink("m".repeat(4000), root.join("middle")).unwrap();
    fs::hard_link(root.join("big"), root.join("deep/big")).unwrap();

    let prepared = scene.prepare();
    let mut expected = BTreeMap::new();
    common::list(root, "", &mut expected).unwrap();
    assert_eq!(common::listing(&prepared.layer), expected);
    assert!(common::dump(&prepared.layer, "/big").contains("Links: 2"));
    assert_eq!(prepared.config, ImageConfig::default());
    assert_eq!(fs::metadata(&prepared.layer).unwrap().len() % 4096, 0);
}

#[test]
fn zeros_take_no_space() {
    let scene = Scene::new();
    fs::write(scene.image.join("zeros"), vec![0; 32 << 20]).unwrap();
    let layer = fs::metadata(scene.prepare().layer).unwrap();
    assert!(layer.len() > 32 << 20);
    assert!(layer.blocks() * 512 < 1 << 20, "{} blocks", layer.blocks());
}

#[test]
fn second_use_finds_the_layer() {
    let scene = Scene::new();
    scene.settle();
    let first = scene.prepare();
    assert!(!first.cached);
    let second = scene.prepare();
    assert!(second.cached);
    assert_eq!(first.layer, second.layer);
    assert_eq!(scene.cached(), one_layer());
}

#[test]
fn each_change_makes_a_new_layer_in_place_of_the_old() {
    let scene = Scene::new();
    let file = scene.image.join("hello");
    let changes: [&dyn Fn(); 5] = [
        &|| fs::write(&file, "ho").unwrap(),
        &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap(),
        &|| fs::rename(&file, scene.image.join("renamed")).unwrap(),
        &|| fs::create_dir(scene.image.join("new")).unwrap(),
        &|| fs::remove_dir(scene.image.join("new")).unwrap(),
    ];
    scene.settle();
    scene.prepare();
    for change in changes {
        change();
        scene.settle();
        assert!(!scene.prepare().cached);
        assert!(scene.prepare().cached);
        assert_eq!(scene.cached(), one_layer());
    }
}

#[test]
fn fresh_change_is_never_taken_from_the_cache() {
    let scene = Scene::new();
    for round in 0..20 {
        fs::write(scene.image.join("hello"), format!("{round:02}")).unwrap();
        let prepared = scene.prepare();
        let found = &common::contents(&prepared.layer)[0];
        assert_eq!(found, &format!("/hello={round:02}"));
    }
}

#[test]
fn many_at_once_make_one_layer() {
    let scene = Scene::new();
    fs::write(scene.image.join("big"), vec![1; 8 << 20]).unwrap();
    scene.settle();
    let (image, cache, barrier) = (&scene.image, &scene.cache, &Barrier::new(8));
    let layers: Vec<PreparedImage> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(move || {
                    barrier.wait();
                    prepare(image, cache, &Silent).unwrap()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(layers.iter().filter(|layer| !layer.cached).count(), 1);
    assert_eq!(scene.cached(), one_layer());
    common::check(&layers[0].layer);
}

#[test]
fn left_over_partial_file_goes_with_the_next_layer() {
    let scene = Scene::new();
    fs::create_dir(scene.cache.directory()).unwrap();
    fs::write(scene.cache.directory().join("killed.partial"), "half").unwrap();
    let used = scene.cache.directory().join("used.partial");
    let other = fs::File::create(&used).unwrap();
    other.lock().unwrap();
    scene.prepare();
    assert_eq!(scene.cached()["partial"], 1);
    assert!(used.exists());
}

#[test]
fn cached_layer_without_its_configuration_is_made_again() {
    let scene = Scene::new();
    scene.settle();
    let first = scene.prepare();
    fs::write(first.layer.with_extension("json"), "{").unwrap();
    assert!(!scene.prepare().cached);
    assert!(scene.prepare().cached);
}

#[test]
fn failure_leaves_nothing() {
    let scene = Scene::new();
    fs::remove_file(scene.image.join("hello")).unwrap();
    let error = prepare(&scene.image, &scene.cache, &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the image {} is empty", scene.image.display())
    );
    assert_eq!(scene.cached(), BTreeMap::new());
}

#[test]
fn missing_image_is_named_with_what_can_be_given() {
    let scene = Scene::new();
    let error = prepare(Path::new("/nowhere"), &scene.cache, &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no image /nowhere; give a directory, a root tar, a `docker save` archive or an OCI layout"
    );
    assert!(!scene.cache.directory().exists());
}

#[test]
fn progress_ends_at_the_total() {
    struct Last(Cell<(u64, u64)>);
    impl Progress for Last {
        fn update(&self, done: u64, total: u64) {
            assert!(done >= self.0.get().0 && done <= total);
            self.0.set((done, total));
        }
    }
    let scene = Scene::new();
    fs::write(scene.image.join("more"), [1; 10_000]).unwrap();
    let last = Last(Cell::default());
    prepare(&scene.image, &scene.cache, &last).unwrap();
    assert_eq!(last.0.get(), (10_002, 10_002));
}

#[test]
fn layer_takes_the_reader_s_own_files_as_root_s() {
    let scene = Scene::new();
    let prepared = scene.prepare();
    // Root keeps owners, and the file is root's; for others it becomes so.
    let text = common::dump(&prepared.layer, "/hello");
    assert!(text.contains("Uid: 0   Gid: 0"), "{text}");
}
