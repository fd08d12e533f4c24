//! Roots and volumes that are images or block devices.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::{BUSYBOX, Outcome};

use tests::bundle::Bundle;

const WORKBENCH: &str = "/srv/roots/workbench";
const MIB: u64 = 1 << 20;

/// Runs a host program to success; answers what it printed.
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A sparse ext4 image with the content of a directory.
fn ext4(path: &Path, content: &Path, mib: u64) {
    File::create(path).unwrap().set_len(mib * MIB).unwrap();
    host("mkfs.ext4", &["-q", "-F", "-d", text(content), text(path)]);
}

fn erofs(path: &Path, content: &Path) {
    host("mkfs.erofs", &["--quiet", text(path), text(content)]);
}

/// What a file in an ext4 image holds.
fn in_image(image: &Path, path: &str) -> String {
    host("debugfs", &["-R", &format!("cat {path}"), text(image)])
}

/// A loop device, detached at the end.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Self {
        Self(host("losetup", &["--find", "--show", text(image)]))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Busy for as long as a dying machine has it; then it goes by itself.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A file system in memory, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let path = text(directory.path());
        host("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", path]);
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        host("umount", &["--lazy", text(self.0.path())]);
    }
}

/// What is on disks of a bundle.
trait OnDisks {
    /// Makes an ext4 image of the root the root.
    fn with_ext4_root(&mut self) -> PathBuf;
    /// An empty ext4 volume on `/volume`.
    fn with_volume(&mut self, image: &Path, mib: u64);
    /// Three layers: busybox, then two that change it.
    fn with_layers(&mut self, upper: &str);
}

impl OnDisks for Bundle {
    fn with_ext4_root(&mut self) -> PathBuf {
        let image = self.beside("root.img");
        ext4(&image, &self.path(""), 64);
        self.config["root"]["path"] = json!("root.img");
        self.annotate("io.nerite.root.format", "ext4");
        image
    }

    fn with_volume(&mut self, image: &Path, mib: u64) {
        let empty = tempfile::tempdir().unwrap();
        ext4(image, empty.path(), mib);
        self.mount("ext4", image, "/volume", &["rw"]);
    }

    fn with_layers(&mut self, upper: &str) {
        let top = self.beside("top");
        let middle = self.beside("middle");
        for directory in [&top, &middle] {
            fs::create_dir_all(directory.join("layer")).unwrap();
        }
        fs::write(middle.join("layer/both"), "middle").unwrap();
        fs::write(middle.join("layer/middle"), "middle").unwrap();
        fs::write(middle.join("layer/gone"), "middle").unwrap();
        symlink("both", middle.join("layer/link")).unwrap();
        fs::write(top.join("layer/both"), "top").unwrap();
        host("mknod", &[text(&top.join("layer/gone")), "c", "0", "0"]);
        erofs(&self.beside("top.erofs"), &top);
        erofs(&self.beside("middle.erofs"), &middle);
        erofs(&self.beside("base.erofs"), Path::new(BUSYBOX));
        self.config["root"]["path"] = json!("writable");
        fs::create_dir(self.beside("writable")).unwrap();
        self.annotate(
            "io.nerite.root.layers",
            r#"["top.erofs", "middle.erofs", "base.erofs"]"#,
        );
        self.annotate("io.nerite.root.upper", upper);
    }
}

/// Waits for a line of the container's.
fn wait_for_line(child: &mut Child, wanted: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), wanted);
}

fn finish(child: Child) -> Outcome {
    child.wait_with_output().unwrap().into()
}

#[test]
fn root_is_an_ext4_image() {
    let mut bundle = Bundle::shell(
        "grep ' / ' /proc/mounts | cut -d' ' -f3,4 | cut -d, -f1; echo written > /root/file",
    );
    let image = bundle.with_ext4_root();
    assert_eq!(bundle.output(), "ext4 rw\n");
    // Unmounted by the guest: nothing to recover.
    let state = host("dumpe2fs", &["-h", text(&image)]);
    assert!(state.contains("Filesystem state:         clean"), "{state}");
    assert!(!state.contains("needs_recovery"), "{state}");
    host("e2fsck", &["-fn", text(&image)]);
    assert_eq!(in_image(&image, "/root/file"), "written");
    assert!(!bundle.path("root/file").exists());
}

#[test]
fn root_is_a_block_device() {
    let mut bundle = Bundle::shell("echo written > /root/file; cat /proc/partitions");
    let image = bundle.with_ext4_root();
    let device = Loop::new(&image);
    bundle.config["root"]["path"] = json!(device.0);
    let output = bundle.output();
    assert!(output.contains(" vda\n"), "{output}");
    assert_eq!(in_image(&image, "/root/file"), "written");
}

#[test]
fn read_only_disk_is_not_written_to() {
    let mut bundle = Bundle::shell("(echo x > /new) 2>&1; true");
    let image = bundle.with_ext4_root();
    bundle.config["root"]["readonly"] = json!(true);
    let before = host("sha256sum", &[text(&image)]);
    let output = bundle.output();
    assert!(output.contains("Read-only file system"), "{output}");
    assert_eq!(host("sha256sum", &[text(&image)]), before);
}

#[test]
fn root_is_an_erofs_image() {
    let mut bundle = Bundle::shell("grep ' / ' /proc/mounts | cut -d' ' -f3; touch /new");
    erofs(&bundle.beside("root.erofs"), &bundle.path(""));
    bundle.config["root"] = json!({"path": "root.erofs", "readonly": true});
    bundle.annotate("io.nerite.root.format", "erofs");
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "erofs\n", "{outcome:?}");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    // The same on a block device, which cannot be mapped.
    let device = Loop::new(&bundle.beside("root.erofs"));
    bundle.config["root"]["path"] = json!(device.0);
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "erofs\n", "{outcome:?}");
}

/// What every upper must do: show the layers, take changes of all kinds.
const CHANGES: &str = "
    cat /layer/both /layer/middle; ls /layer
    cat /upper-file 2>/dev/null
    echo changed > /layer/both; rm -f /layer/middle; mv /etc/passwd /etc/moved
    rm -rf /var; mkdir /var; ln -s target /link; chown 7:8 /etc/group; chmod 600 /etc/group
    chown -h 7:8 /layer/link; mv /layer/link /layer/moved; ln /layer/moved /layer/twin
    cat /layer/both; stat -c %u:%g:%a /etc/group; ls /var /layer
    echo kept > /upper-file";

const CHANGED: &str = "topmiddleboth\nlink\nmiddle\nchanged\n7:8:600\n\
                       /layer:\nboth\nmoved\ntwin\n\n/var:\n";

#[test]
fn layers_with_writes_to_guest_memory() {
    let mut bundle = Bundle::shell(CHANGES);
    bundle.with_layers("tmpfs");
    assert_eq!(bundle.output(), CHANGED);
    // Nothing is left of it.
    assert_eq!(bundle.output(), CHANGED);
}

/// The second container finds what the first has written.
fn writes_are_kept(bundle: &mut Bundle) {
    assert_eq!(bundle.output(), CHANGED);
    bundle.config["process"]["args"][2] = json!(
        "cat /upper-file /layer/both; ls /var /layer; stat -c %u:%g:%a /etc/group;
         readlink /link; stat -c %u:%g:%N /layer/moved; ls /etc/moved /etc/passwd"
    );
    let outcome = bundle.run();
    assert_eq!(
        outcome.stdout,
        "kept\nchanged\n/layer:\nboth\nmoved\ntwin\n\n/var:\n7:8:600\ntarget\n\
         7:8:'/layer/moved' -> 'both'\n/etc/moved\n",
        "{outcome:?}"
    );
    assert!(
        outcome.stderr.contains("/etc/passwd: No such file"),
        "{outcome:?}"
    );
}

#[test]
fn layers_with_writes_to_a_disk() {
    let mut bundle = Bundle::shell(CHANGES);
    bundle.with_layers("ext4:upper.img");
    let empty = tempfile::tempdir().unwrap();
    ext4(&bundle.beside("upper.img"), empty.path(), 64);
    writes_are_kept(&mut bundle);
    let kept = in_image(&bundle.beside("upper.img"), "/upper/upper-file");
    assert_eq!(kept, "kept");
}

#[test]
fn layers_with_writes_to_a_directory() {
    let mut bundle = Bundle::shell(CHANGES);
    bundle.with_layers("directory");
    writes_are_kept(&mut bundle);
    let kept = fs::read_to_string(bundle.beside("writable/upper/upper-file")).unwrap();
    assert_eq!(kept, "kept\n");
}

#[test]
fn many_layers_share_interrupts_and_too_many_are_refused() {
    let mut bundle = Bundle::shell("cat /0 /21; for i in $(seq 40); do echo $i > /f; sync; done");
    erofs(&bundle.beside("base.erofs"), Path::new(BUSYBOX));
    let mut names = Vec::new();
    for number in 0..40 {
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join(number.to_string()), number.to_string()).unwrap();
        let name = format!("{number}.erofs");
        erofs(&bundle.beside(&name), content.path());
        names.push(name);
    }
    let empty = tempfile::tempdir().unwrap();
    ext4(&bundle.beside("upper.img"), empty.path(), 16);
    bundle.annotate("io.nerite.root.upper", "ext4:upper.img");
    let layers = |count: usize| {
        let mut names = names[..count].to_vec();
        names.push("base.erofs".into());
        serde_json::to_string(&names).unwrap()
    };
    // The disk comes behind 23 images and the OS layer: its line is shared.
    bundle.annotate("io.nerite.root.layers", &layers(22));
    assert_eq!(bundle.output(), "021");
    bundle.annotate("io.nerite.root.layers", &layers(40));
    let outcome = bundle.run();
    assert_eq!(outcome.status, 125);
    assert!(outcome.stderr.contains("32 device slots"), "{outcome:?}");
}

#[test]
fn volumes_are_images_and_block_devices() {
    let mut bundle = Bundle::shell(
        "grep volume /proc/mounts | cut -d' ' -f2,3 | sort
         echo a > /volume/file; echo b > /volumes/xfs/file; (echo c > /volumes/ro/file) 2>&1
         cat /volumes/ro/hello; stat -c %a /volume",
    );
    let image = bundle.beside("volume.img");
    bundle.with_volume(&image, 16);
    let xfs = bundle.beside("xfs.img");
    File::create(&xfs).unwrap().set_len(320 * MIB).unwrap();
    host("mkfs.xfs", &["-q", text(&xfs)]);
    let device = Loop::new(&xfs);
    bundle.mount("xfs", Path::new(&device.0), "/volumes/xfs", &["noatime"]);
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join("hello"), "hello\n").unwrap();
    let read_only = bundle.beside("ro.img");
    ext4(&read_only, content.path(), 16);
    bundle.mount("ext4", &read_only, "/volumes/ro", &["ro"]);
    assert_eq!(
        bundle.output(),
        "/volume ext4\n/volumes/ro ext4\n/volumes/xfs xfs\n\
         sh: can't create /volumes/ro/file: Read-only file system\nhello\n755\n"
    );
    assert_eq!(in_image(&image, "/file"), "a");
}

#[test]
fn flushed_data_survive_the_machine() {
    let mut bundle = Bundle::shell(
        "echo precious > /volume/file; sync; echo synced; while :; do echo x > /volume/x; done",
    );
    let image = bundle.beside("volume.img");
    bundle.with_volume(&image, 16);
    let mut child = bundle.nerite().spawn().unwrap();
    wait_for_line(&mut child, "synced");
    host("pkill", &["-KILL", "-x", "nerite-vmm"]);
    let outcome = finish(child);
    assert_ne!(outcome.status, 0);
    // Recovers the journal, as a mount would.
    let _ = Command::new("e2fsck").args(["-fy", text(&image)]).output();
    assert_eq!(in_image(&image, "/file"), "precious");
}

#[test]
fn discarded_space_comes_back() {
    let mut bundle = Bundle::shell(
        "dd if=/dev/urandom of=/volume/file bs=1M count=24 2>/dev/null; sync
         rm /volume/file; sync; fstrim /volume",
    );
    let image = bundle.beside("volume.img");
    bundle.with_volume(&image, 64);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] =
            json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    }
    assert_eq!(bundle.output(), "");
    let used = fs::metadata(&image).unwrap().blocks() * 512;
    assert!(used < 8 * MIB, "{used} bytes are still in use");
}

#[test]
fn full_host_disk_is_an_io_error_in_the_guest() {
    let small = Small::new("12M");
    let mut bundle = Bundle::shell(
        "dd if=/dev/urandom of=/volume/file bs=1M count=32 conv=fsync 2>&1 | grep -o 'Input/output error'
         echo alive",
    );
    bundle.with_volume(&small.0.path().join("volume.img"), 64);
    assert_eq!(bundle.output(), "Input/output error\nalive\n");
}

#[test]
fn image_cut_short_is_an_io_error_in_the_guest() {
    let content = tempfile::tempdir().unwrap();
    host(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={}", text(&content.path().join("file"))),
            "bs=1M",
            "count=24",
        ],
    );
    let mut bundle = Bundle::shell(
        "echo started; while [ ! -e /share/go ]; do sleep 0.1; done
         cat /volume/file 2>&1 >/dev/null | grep -o 'Input/output error'; echo alive",
    );
    let image = bundle.beside("volume.img");
    ext4(&image, content.path(), 32);
    bundle.mount("ext4", &image, "/volume", &["ro"]);
    let share = tempfile::tempdir().unwrap();
    bundle.mount("bind", share.path(), "/share", &["rbind"]);
    let mut child = bundle.nerite().spawn().unwrap();
    wait_for_line(&mut child, "started");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(8 * MIB)
        .unwrap();
    fs::write(share.path().join("go"), "").unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.stdout, "Input/output error\nalive\n", "{outcome:?}");
}

#[test]
fn second_writer_is_refused_and_told_who_has_the_disk() {
    let mut bundle = Bundle::shell("echo started; read line");
    let image = bundle.with_ext4_root();
    let mut child = bundle.nerite().spawn().unwrap();
    wait_for_line(&mut child, "started");
    let outcome = bundle.run();
    assert_eq!(outcome.status, 125);
    let expected = format!(
        "{} is in use by process {} (nerite)",
        text(&image),
        child.id()
    );
    assert!(outcome.stderr.contains(&expected), "{outcome:?}");
    // Killed at once: the next one waits for what dies.
    child.kill().unwrap();
    child.wait().unwrap();
    bundle.config["process"]["args"][2] = json!("echo again");
    assert_eq!(bundle.output(), "again\n");
}

#[test]
fn mounted_device_is_refused() {
    let mut bundle = Bundle::shell("true");
    let device = Loop::new(&bundle.with_ext4_root());
    let point = tempfile::tempdir().unwrap();
    host("mount", &[&device.0, text(point.path())]);
    bundle.config["root"]["path"] = json!(device.0);
    let outcome = bundle.run();
    host("umount", &[text(point.path())]);
    assert_eq!(outcome.status, 125);
    assert!(
        outcome.stderr.contains("is in use by the host"),
        "{outcome:?}"
    );
}

#[test]
fn undeclared_and_unknown_formats_are_refused() {
    let mut bundle = Bundle::shell("true");
    bundle.with_ext4_root();
    let refused = |bundle: &Bundle, by: &str| {
        let outcome = bundle.run();
        assert_eq!(outcome.status, 125);
        assert!(outcome.stderr.contains(by), "{outcome:?}");
    };
    bundle.annotate("io.nerite.root.format", "qcow2");
    refused(
        &bundle,
        "\"qcow2\" is a disk format that nerite does not read",
    );
    bundle.annotate("io.nerite.root.format", "ntfs");
    refused(&bundle, "a guest cannot mount \"ntfs\"");
    // What the image holds is not looked at: the guest finds no XFS in it.
    bundle.annotate("io.nerite.root.format", "xfs");
    refused(&bundle, "mount layer slot:1");
    bundle.config["annotations"] = json!({});
    refused(&bundle, "say what it holds with io.nerite.root.format");
}

#[test]
fn limits_slow_a_disk_down() {
    let mut bundle = Bundle::shell("cat /volume/file > /dev/null");
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join("file"), vec![7; 6 << 20]).unwrap();
    let image = bundle.beside("volume.img");
    ext4(&image, content.path(), 16);
    bundle.mount("ext4", &image, "/volume", &["ro"]);
    bundle.annotate("io.nerite.disk.bytes-per-second", "2000000");
    let start = Instant::now();
    assert_eq!(bundle.output(), "");
    assert!(start.elapsed() > Duration::from_millis(2800));
}

#[test]
fn every_byte_is_right_with_several_processors_and_deep_queues() {
    let mut bundle = Bundle::shell(
        "nproc; ls -d /sys/block/vda/mq/* | wc -l; cd /volume
         fio --name=a --rw=randrw --bsrange=4k-128k --size=24M --numjobs=2 --ioengine=libaio \
             --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 > /tmp/log 2>&1 ||
             cat /tmp/log
         fstrim /volume; sync; sha256sum a.0.0 a.1.0 > sums; echo 3 > /proc/sys/vm/drop_caches
         sha256sum -c sums",
    );
    bundle.config["root"] = json!({"path": WORKBENCH, "readonly": true});
    bundle.config["linux"]["resources"]["cpu"] = json!({"quota": 200_000, "period": 100_000});
    // What the test does to the guest's kernel.
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] =
            json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    }
    bundle.mount("tmpfs", Path::new("tmpfs"), "/tmp", &[]);
    let image = bundle.beside("volume.img");
    bundle.with_volume(&image, 96);
    assert_eq!(bundle.output(), "2\n2\na.0.0: OK\na.1.0: OK\n");
    host("e2fsck", &["-fn", text(&image)]);
}

#[test]
fn without_io_uring_disks_work_and_the_reason_is_told() {
    const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
    let mut bundle = Bundle::shell(
        "dd if=/dev/urandom of=/root/file bs=64k count=64 2>/dev/null; sync
         sha256sum < /root/file; cat /root/file | sha256sum",
    );
    bundle.with_ext4_root();
    fs::write(SWITCH, "2").unwrap();
    let outcome = bundle.run();
    fs::write(SWITCH, "0").unwrap();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let sums: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(sums[0], sums[1]);
    assert!(
        outcome.stderr.contains("this host forbids io_uring"),
        "{outcome:?}"
    );
}
