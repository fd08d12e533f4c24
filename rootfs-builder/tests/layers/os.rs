//! The OS layer.

use super::common;

use std::fs;
use std::path::Path;

use rootfs_builder::os;

fn agent(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("agent");
    let data: Vec<u8> = (0..2_000_123_u32)
        .map(|i| i.to_le_bytes()[i as usize % 3] | 1)
        .collect();
    fs::write(&path, data).unwrap();
    path
}

#[test]
fn two_builds_give_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = agent(scratch.path());
    let (one, two) = (scratch.path().join("1"), scratch.path().join("2"));
    os::build(&agent, &one).unwrap();
    fs::write(&two, "an older image").unwrap();
    os::build(&agent, &two).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    assert_eq!(fs::metadata(&one).unwrap().len() % 4096, 0);
    assert_eq!(
        fs::read_dir(&scratch).unwrap().count(),
        3,
        "a temporary file was left"
    );
}

#[test]
fn layer_holds_the_agent_and_mount_points_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = agent(scratch.path());
    let layer = scratch.path().join("os.erofs");
    os::build(&agent, &layer).unwrap();
    let init = format!("file 755 0 {}", common::digest(&fs::read(agent).unwrap()));
    let expected = [
        ("/dev", "dir 755 0"),
        ("/init", &init),
        ("/proc", "dir 555 0"),
        ("/run", "dir 755 0"),
        ("/shares", "dir 755 0"),
        ("/shares/exclusive", "dir 755 0"),
        ("/shares/shared", "dir 755 0"),
        ("/sockets", "dir 755 0"),
        ("/sys", "dir 555 0"),
        ("/tmp", "dir 1777 0"),
    ];
    let expected = expected.map(|(path, text)| (path.to_owned(), text.to_owned()));
    assert_eq!(common::listing(&layer), expected.into());
}

#[test]
fn agent_is_one_run_of_whole_blocks_so_that_dax_maps_it() {
    let scratch = tempfile::tempdir().unwrap();
    let layer = scratch.path().join("os.erofs");
    os::build(&agent(scratch.path()), &layer).unwrap();
    let init = common::dump(&layer, "/init");
    assert!(init.contains("Layout: 0"), "{init}");
    assert!(init.contains("1 extents found"), "{init}");
    assert!(init.contains("Uid: 0   Gid: 0  Access: 0755"), "{init}");
}

#[test]
fn missing_or_empty_agent_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("os.erofs");
    let error = os::build(Path::new("/nowhere/agent"), &output).unwrap_err();
    assert_eq!(error.to_string(), "read the agent /nowhere/agent");
    let empty = scratch.path().join("empty");
    fs::write(&empty, "").unwrap();
    let error = os::build(&empty, &output).unwrap_err();
    let expected = format!("the agent {} is not a file with contents", empty.display());
    assert_eq!(error.to_string(), expected);
    assert!(!output.exists());
}
