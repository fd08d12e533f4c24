//! Mounts of a bundle: what a container sees of them is what it sees under
//! runc, which is the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::bundle::Bundle;

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, Eq, PartialEq)]
struct Line {
    options: BTreeSet<String>,
    /// `shared` and its like, without numbers.
    propagation: BTreeSet<String>,
    kind: String,
    /// Options of the file system, but for `rw` and `ro`, which are decided
    /// per mount in a guest.
    system: BTreeSet<String>,
}

/// All mounts, in order; one that hides another has the same point.
fn mountinfo(text: &str) -> Vec<(String, Line)> {
    text.lines()
        .map(|line| {
            let (mount, system) = line.split_once(" - ").expect("a separator");
            let mount: Vec<_> = mount.split(' ').collect();
            let system: Vec<_> = system.split(' ').collect();
            let words = |text: &str| -> BTreeSet<String> {
                text.split(',')
                    .filter(|word| !["rw", "ro"].contains(word))
                    .map(Into::into)
                    .collect()
            };
            let line = Line {
                options: mount[5].split(',').map(Into::into).collect(),
                propagation: mount[6..]
                    .iter()
                    .map(|tag| tag.split(':').next().unwrap().into())
                    .collect(),
                kind: system[0].into(),
                system: words(system[2]),
            };
            (mount[4].into(), line)
        })
        // What is masked there depends on the kernel's configuration.
        .filter(|(point, _): &(String, _)| !point.starts_with("/proc/"))
        .collect()
}

/// Runs a script under both; the outcomes.
fn both(bundle: &mut Bundle, script: &str) -> (String, String) {
    bundle.script(script);
    let oracle = bundle.runc();
    assert_eq!((oracle.status, &*oracle.stderr), (0, ""), "{oracle:?}");
    (oracle.stdout, bundle.output())
}

/// Both print the same.
#[track_caller]
fn same(bundle: &mut Bundle, script: &str) -> String {
    let (oracle, ours) = both(bundle, script);
    assert_eq!(ours, oracle);
    ours
}

/// Both see the same mounts, but for the host's file systems being virtiofs.
#[track_caller]
fn same_mounts(bundle: &mut Bundle) {
    let (oracle, ours) = both(bundle, "cat /proc/self/mountinfo");
    let (mut oracle, ours) = (mountinfo(&oracle), mountinfo(&ours));
    for ((_, theirs), (_, ours)) in oracle.iter_mut().zip(&ours) {
        if ours.kind == "virtiofs" {
            theirs.kind.clone_from(&ours.kind);
            theirs.system.clone_from(&ours.system);
        }
        if ours.kind == "devtmpfs" || ours.system.contains("nr_inodes=1") {
            // What hides something is stricter than runc's.
            theirs.clone_from(ours);
        }
        if ours.kind == "cgroup2" {
            // The hierarchy is the guest's own.
            theirs.system.clone_from(&ours.system);
        }
    }
    let points = |lines: &[(String, Line)]| -> Vec<String> {
        lines.iter().map(|(point, _)| point.clone()).collect()
    };
    assert_eq!(points(&ours), points(&oracle));
    let differ: BTreeMap<_, _> = ours
        .iter()
        .zip(&oracle)
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| (&ours.0, (&ours.1, &theirs.1)))
        .collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

/// Files of the root that a run has made.
fn made(bundle: &Bundle) -> String {
    let output = Command::new("find")
        .args([".", "-newer", "../config.json", "!", "-path", "./dev/*"])
        .args(["-printf", "%p %y %m %U %G\\n"])
        .current_dir(bundle.path("."))
        .output()
        .unwrap();
    let mut lines: Vec<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(String::from)
        .collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn mounts_of_runc_spec_are_the_same() {
    let mut bundle = Bundle::new(&[]);
    same_mounts(&mut bundle);
    same(
        &mut bundle,
        "stat -c '%n %F %a %u %g %t %T' / /proc /dev /dev/* /sys | grep -v /dev/core
         stat -f -c '%n %T %b' /dev /dev/shm
         touch /dev/mqueue/q && ls /dev/mqueue
         mkdir /sys/fs/cgroup/x 2>&1; wc -c < /proc/keys
         (echo 1 > /proc/sys/kernel/pid_max) 2>&1
         test -c /dev/ptmx && ls -d /dev/pts/ptmx",
    );
}

#[test]
fn options_of_mounts_are_the_same() {
    let volume = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new(&[]);
    for words in [
        &[][..],
        &["nosuid", "nodev", "noexec"],
        &["ro"],
        &["noatime"],
        &["strictatime", "nodiratime"],
        &["relatime", "nosuid", "suid", "noexec", "exec"],
        &["mode=0711", "size=3m", "uid=3", "gid=4"],
        &["nr_inodes=100", "private"],
        &["rshared"],
        &["shared"],
        &["slave"],
        &["unbindable"],
    ] {
        let number = bundle.mounts().len();
        bundle.mount("tmpfs", "tmpfs", &format!("/t/{number}"), words);
    }
    for words in [
        &["rbind"][..],
        &["bind"],
        &["rbind", "rprivate"],
        &["rbind", "ro"],
        &["rbind", "rro"],
        &["rbind", "rw", "nosuid", "nodev", "noexec", "noatime"],
        &["bind", "rnosuid", "rnoexec"],
        &["bind", "nodiratime", "strictatime"],
    ] {
        let number = bundle.mounts().len();
        bundle.bind(volume.path(), &format!("/b/{number}"), words);
    }
    same_mounts(&mut bundle);
    let output = same(
        &mut bundle,
        "stat -c '%n %a %u %g' /t/*; for m in /t/* /b/*; do
             rm -f $m/busybox 2>/dev/null
             cp /bin/busybox $m/busybox 2>/dev/null || echo $m refuses writes
             $m/busybox true 2>/dev/null || echo $m refuses programs
         done",
    );
    assert!(output.contains("refuses programs"), "{output}");
}

#[test]
fn mount_points_are_made_as_by_runc() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "content").unwrap();
    let lists: Vec<_> = [(); 2]
        .iter()
        .enumerate()
        .map(|(number, ())| {
            let mut bundle = Bundle::shell("true");
            std::os::unix::fs::symlink("/var/real", bundle.path("link")).unwrap();
            fs::create_dir(bundle.path("var/real")).unwrap();
            bundle.bind(volume.path(), "/new/directory", &["rbind"]);
            bundle.bind(&volume.path().join("file"), "/new/file", &["rbind"]);
            bundle.bind(volume.path(), "/link/below", &["rbind"]);
            bundle.mount("tmpfs", "tmpfs", "/new/tmpfs", &[]);
            bundle.config["process"]["cwd"] = json!("/made/directory");
            let outcome = if number == 0 {
                bundle.runc()
            } else {
                bundle.run()
            };
            assert_eq!(outcome.status, 0, "{outcome:?}");
            made(&bundle)
        })
        .collect();
    assert!(lists[0].contains("./var/real/below d 755"), "{}", lists[0]);
    assert!(lists[0].contains("./new/file f"), "{}", lists[0]);
    assert_eq!(lists[1], lists[0]);
}

#[test]
fn mounts_nest_in_their_order() {
    let volume = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(volume.path().join("inner/deep")).unwrap();
    fs::write(volume.path().join("inner/hidden"), "hidden").unwrap();
    fs::write(other.path().join("other"), "other").unwrap();
    let mut bundle = Bundle::new(&[]);
    // A bind in a bind, a tmpfs over a part of it, a bind below that, a file
    // over a file, and the same point twice.
    bundle.bind(volume.path(), "/v", &["rbind"]);
    bundle.bind(other.path(), "/v/inner/deep", &["rbind"]);
    bundle.bind(volume.path(), "/w", &["rbind"]);
    bundle.mount("tmpfs", "tmpfs", "/w/inner", &["mode=755"]);
    bundle.bind(other.path(), "/w/inner/below", &["rbind", "ro"]);
    bundle.bind(&other.path().join("other"), "/etc/passwd", &["bind"]);
    bundle.mount("tmpfs", "tmpfs", "/twice", &["size=1m"]);
    bundle.bind(other.path(), "/twice", &["rbind"]);
    // Read-only over a mount that needs a directory in it.
    bundle.mount("tmpfs", "tmpfs", "/ro", &["ro"]);
    bundle.bind(other.path(), "/ro/in", &["rbind"]);
    same_mounts(&mut bundle);
    same(
        &mut bundle,
        "find /v /w /twice /ro | sort; cat /etc/passwd /twice/other
         touch /ro/x 2>&1; touch /ro/in/x && rm /ro/in/x",
    );
}

#[test]
fn tmpfs_takes_the_mode_of_what_it_covers_and_its_content_if_asked() {
    let mut bundle = Bundle::new(&[]);
    let path = bundle.path("srv/full");
    fs::create_dir_all(path.join("sub/empty")).unwrap();
    fs::write(path.join("sub/file"), "content").unwrap();
    fs::write(path.join("program"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::symlink("sub/file", path.join("link")).unwrap();
    for (mode, file) in [("2750", "sub"), ("4711", "program"), ("1773", ".")] {
        tests::bundle::command("chmod", &[mode, path.join(file).to_str().unwrap()]);
    }
    tests::bundle::command(
        "chown",
        &["-h", "5:6", path.join("sub/file").to_str().unwrap()],
    );
    bundle.mount("tmpfs", "tmpfs", "/srv/full", &["tmpcopyup"]);
    let script = "find /srv -exec stat -c '%n %F %a %u %g %s' {} + | sed 's/directory .*//' | sort
        stat -c %a /srv/full; cat /srv/full/link; md5sum /srv/full/program
        echo changed > /srv/full/sub/file";
    same(&mut bundle, script);
    assert_eq!(fs::read(path.join("sub/file")).unwrap(), b"content");
    bundle.mounts().pop();
    bundle.mount("tmpfs", "tmpfs", "/srv/full", &[]);
    same(&mut bundle, "stat -c %a /srv/full; ls /srv/full");
}

#[test]
fn masked_and_read_only_paths_are_the_same() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("secret"), "secret").unwrap();
    fs::create_dir(volume.path().join("secrets")).unwrap();
    let mut bundle = Bundle::new(&[]);
    bundle.bind(volume.path(), "/v", &["rbind"]);
    let linux = &mut bundle.config["linux"];
    for path in ["/v/secret", "/v/secrets", "/v/absent"] {
        linux["maskedPaths"]
            .as_array_mut()
            .unwrap()
            .push(json!(path));
    }
    linux["readonlyPaths"]
        .as_array_mut()
        .unwrap()
        .push(json!("/var"));
    same_mounts(&mut bundle);
    same(
        &mut bundle,
        "cat /v/secret; ls /v/secrets; touch /v/secrets/x 2>&1; touch /var/x 2>&1; ls /v",
    );
}

#[test]
fn remount_changes_what_is_mounted_already() {
    let volume = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new(&[]);
    bundle.bind(volume.path(), "/v", &["rbind"]);
    bundle.bind(Path::new("/"), "/v", &["bind", "remount", "ro", "nosuid"]);
    same(
        &mut bundle,
        "touch /v/x 2>&1; awk '$5 == \"/v\" {print $6}' /proc/self/mountinfo",
    );
}

#[test]
fn source_keeps_its_own_flags_unless_the_mount_has_some() {
    let volume = tempfile::tempdir().unwrap();
    let point = volume.path().to_str().unwrap();
    tests::bundle::command(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "nosuid,nodev,noexec,noatime",
            "t",
            point,
        ],
    );
    let mut bundle = Bundle::new(&[]);
    bundle.bind(volume.path(), "/inherits", &["rbind"]);
    bundle.bind(volume.path(), "/own", &["rbind", "nosuid"]);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| same_mounts(&mut bundle)));
    tests::bundle::command("umount", &[point]);
    seen.unwrap();
}

#[test]
fn parts_of_a_volume_are_mounted_as_what_they_are() {
    // A volume in memory, of which a pod has a directory, a file and a link.
    let volume = tempfile::tempdir().unwrap();
    let point = volume.path().to_str().unwrap();
    tests::bundle::command("mount", &["-t", "tmpfs", "-o", "size=1m", "t", point]);
    fs::create_dir(volume.path().join("directory")).unwrap();
    fs::write(volume.path().join("directory/file"), "file\n").unwrap();
    std::os::unix::fs::symlink("directory", volume.path().join("link")).unwrap();
    let mut bundle = Bundle::shell(
        "ls /d /l; cat /f; stat -f -c %b /d; dd if=/dev/zero of=/d/big bs=64k 2>&1 | grep -o 'No space.*'",
    );
    bundle.bind(&volume.path().join("directory"), "/d", &["rbind"]);
    bundle.bind(&volume.path().join("directory/file"), "/f", &["rbind"]);
    bundle.bind(&volume.path().join("link"), "/l", &["rbind"]);
    let outcome = bundle.run();
    tests::bundle::command("umount", &[point]);
    let expected = "/d:\nfile\n\n/l:\nfile\nfile\n256\nNo space left on device\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

#[test]
fn mounts_that_the_host_makes_later_are_seen_unless_private() {
    let volume = tempfile::tempdir().unwrap();
    let point = volume.path().to_str().unwrap();
    let path = |name: &str| volume.path().join(name);
    tests::bundle::command("mount", &["--bind", point, point]);
    tests::bundle::command("mount", &["--make-shared", point]);
    fs::create_dir(path("inner")).unwrap();
    let mut bundle = Bundle::shell(
        "touch /slave/ready; while test -e /slave/ready; do sleep 0.2; done; sleep 2
         cat /slave/inner/file; ls /private/inner | wc -l",
    );
    bundle.bind(volume.path(), "/slave", &["rbind", "rslave"]);
    bundle.bind(volume.path(), "/private", &["rbind", "rprivate"]);
    let child = bundle.nerite().spawn().unwrap();
    let ready = tests::eventually(std::time::Duration::from_secs(30), || {
        path("ready").exists()
    });
    let inner = path("inner");
    let inner = inner.to_str().unwrap();
    tests::bundle::command("mount", &["-t", "tmpfs", "t", inner]);
    fs::write(path("inner/file"), "later\n").unwrap();
    let _ = fs::remove_file(path("ready"));
    let outcome = tests::Outcome::from(child.wait_with_output().unwrap());
    tests::bundle::command("umount", &[inner]);
    tests::bundle::command("umount", &[point]);
    assert!(ready);
    assert_eq!(outcome.stdout, "later\n0\n", "{outcome:?}");
}

#[test]
fn what_a_guest_cannot_do_is_refused_by_name() {
    let volume = tempfile::tempdir().unwrap();
    for (words, named) in [
        (&["rbind", "rshared"][..], "rshared"),
        (&["rbind", "nonsense"], "nonsense"),
        (&["rbind", "idmap"], "idmap"),
    ] {
        let mut bundle = Bundle::shell("true");
        bundle.bind(volume.path(), "/v", words);
        let outcome = bundle.run();
        assert_eq!(outcome.status, 125, "{outcome:?}");
        assert!(outcome.stderr.contains(named), "{outcome:?}");
        assert!(outcome.stderr.contains("/v"), "{outcome:?}");
    }
    let mut bundle = Bundle::shell("true");
    bundle.mount("tmpfs", "tmpfs", "/t", &["nonsense=1"]);
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("mount /t"), "{outcome:?}");
}

#[test]
fn hugetlbfs_can_be_mounted() {
    let mut bundle =
        Bundle::shell("awk '$9 == \"hugetlbfs\" {print $5, $10}' /proc/self/mountinfo");
    bundle.mount("hugetlbfs", "hugetlbfs", "/huge", &["pagesize=2M"]);
    assert_eq!(bundle.output(), "/huge rw,pagesize=2M\n");
}

#[test]
fn owners_are_mapped_where_asked() {
    let volume = tempfile::tempdir().unwrap();
    let file = volume.path().join("file");
    fs::write(&file, "content").unwrap();
    for path in [&file, volume.path()] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    }
    let mut bundle = Bundle::shell(
        "stat -c '%u %g' /v/file; echo more >> /v/file; touch /v/new; chown 5:6 /v/new
         chown 99999 /v/new 2>/dev/null || echo no such owner",
    );
    bundle.bind(volume.path(), "/v", &["rbind", "idmap"]);
    let maps = json!([
        {"containerID": 1000, "hostID": 0, "size": 1},
        {"containerID": 2000, "hostID": 1, "size": 10},
    ]);
    let mount = bundle.mounts().last_mut().unwrap();
    mount["uidMappings"] = maps.clone();
    mount["gidMappings"] = maps;
    assert_eq!(bundle.output(), "0 0\nno such owner\n");
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(volume.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (2004, 2005));
    assert_eq!(fs::metadata(&file).unwrap().uid(), 1000);
}

/// Runs the usual things on a root below `directory`.
fn root_works(directory: &Path) {
    tests::bundle::command(
        "cp",
        &[
            "-a",
            tests::BUSYBOX,
            &format!("{}/root", directory.display()),
        ],
    );
    let root = directory.join("root");
    let script =
        "set -e; mkdir /tmp/a; echo x > /tmp/a/f; ln /tmp/a/f /tmp/a/g; mv /tmp/a/f /tmp/a/h
        ln -s h /tmp/a/l; cat /tmp/a/l; chown 3:4 /tmp/a/g; stat -c '%h %u %g' /tmp/a/h
        rm /etc/passwd; dd if=/dev/zero of=/tmp/big bs=1M count=3 2>/dev/null; stat -c %s /tmp/big
        ls /tmp/a; test ! -e /etc/passwd";
    let bundle = Bundle::on(&root, &["sh", "-c", script]);
    assert_eq!(bundle.output(), "x\n2 3 4\n3145728\ng\nh\nl\n");
    assert_eq!(fs::metadata(root.join("tmp/big")).unwrap().len(), 3 << 20);
    assert!(!root.join("etc/passwd").exists());
}

/// A root on a file system in an image.
fn root_on(kind: &str, megabytes: u32) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let point = directory.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let (image, point) = (image.to_str().unwrap(), point.to_str().unwrap());
    tests::bundle::command("truncate", &["-s", &format!("{megabytes}M"), image]);
    tests::bundle::command(&format!("mkfs.{kind}"), &["-q", image]);
    tests::bundle::command("mount", &["-o", "loop", image, point]);
    let result = std::panic::catch_unwind(|| root_works(Path::new(point)));
    // Nothing of the sandbox keeps it busy.
    tests::bundle::command("umount", &[point]);
    result.unwrap();
}

#[test]
fn root_on_ext4() {
    root_on("ext4", 64);
}

#[test]
fn root_on_xfs() {
    root_on("xfs", 320);
}

#[test]
fn root_on_btrfs() {
    root_on("btrfs", 256);
}

#[test]
fn root_on_tmpfs() {
    // /tmp is one in the machine; said aloud here in case that changes.
    let directory = tempfile::tempdir().unwrap();
    let point = directory.path().to_str().unwrap();
    tests::bundle::command("mount", &["-t", "tmpfs", "t", point]);
    let result = std::panic::catch_unwind(|| root_works(Path::new(point)));
    tests::bundle::command("umount", &[point]);
    result.unwrap();
}

#[test]
fn root_on_overlayfs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for name in ["upper", "work", "merged"] {
        fs::create_dir(path(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        tests::BUSYBOX,
        path("upper"),
        path("work")
    );
    tests::bundle::command(
        "mount",
        &["-t", "overlay", "-o", &options, "o", &path("merged")],
    );
    let bundle = Bundle::on(
        Path::new(&path("merged")),
        &[
            "sh",
            "-c",
            "echo x > /etc/new; rm /etc/passwd; mv /home/app /home/moved; ls /home",
        ],
    );
    let outcome = bundle.run();
    tests::bundle::command("umount", &[&path("merged")]);
    assert_eq!(
        (outcome.status, &*outcome.stdout),
        (0, "moved\n"),
        "{outcome:?}"
    );
    assert_eq!(fs::read(path("upper/etc/new")).unwrap(), b"x\n");
    // Removed below an overlay: a character device 0:0 hides it.
    use std::os::unix::fs::FileTypeExt;
    let hidden = fs::symlink_metadata(path("upper/etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device());
}
