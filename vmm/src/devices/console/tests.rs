use std::io::{Read, Seek};

use super::Console;
use crate::virtio::testing::Rig;

#[test]
fn output_goes_to_the_log_and_to_the_tail() {
    let mut log = tempfile::tempfile().unwrap();
    let mut rig = Rig::new(Console::new(Some(log.try_clone().unwrap())));
    rig.offer(1, b"one\ntw", 0);
    rig.offer(1, b"o\n", 0);
    rig.drain();
    assert!(rig.used(1).unwrap().bytes.is_empty());
    assert_eq!(rig.device.tail().lines(), ["one", "two"]);
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n");
}

#[test]
fn input_queue_is_left_alone() {
    let mut rig = Rig::new(Console::new(None));
    rig.offer(0, &[], 64);
    rig.drain();
    assert_eq!(rig.used(0), None);
}

#[test]
fn long_request_is_cut_at_its_limit() {
    let mut rig = Rig::new(Console::new(None));
    rig.offer(1, &[b'x'; 64 << 10], 0);
    rig.drain();
    assert_eq!(
        rig.device.tail().lines().concat().len(),
        0,
        "one line of 64 KiB is no report"
    );
    rig.offer(1, b"\nshort\n", 0);
    rig.drain();
    assert_eq!(rig.device.tail().lines(), ["short"]);
}
