use std::io::Write;

use vm_memory::GuestAddress;

use super::{ImageError, Pmem};
use crate::virtio::Device;
use crate::virtio::testing::Rig;

const START: GuestAddress = GuestAddress(1 << 32);

fn pmem(bytes: usize) -> Result<Pmem, ImageError> {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(&vec![1; bytes]).unwrap();
    Pmem::new(&image, START)
}

fn answer(request: &[u8], room: u32) -> Vec<u8> {
    let mut rig = Rig::new(pmem(4096).unwrap());
    rig.offer(0, request, room);
    rig.drain();
    rig.used(0).unwrap().bytes
}

#[test]
fn flush_succeeds_and_anything_else_fails() {
    assert_eq!(answer(&[0; 4], 4), [0, 0, 0, 0]);
    assert_eq!(answer(&[1, 0, 0, 0], 4), [1, 0, 0, 0]);
    assert_eq!(answer(&[0; 3], 4), [1, 0, 0, 0], "half a request");
    assert!(answer(&[0; 4], 3).is_empty(), "no room for an answer");
}

#[test]
fn window_is_whole_huge_pages_and_told_to_the_guest() {
    let pmem = pmem(5000).unwrap();
    assert_eq!(pmem.end(), GuestAddress((1 << 32) + (2 << 20)));
    let mut config = START.0.to_le_bytes().to_vec();
    config.extend((2u64 << 20).to_le_bytes());
    assert_eq!(pmem.config(), config);
}

#[test]
fn empty_image_is_refused() {
    assert!(matches!(pmem(0), Err(ImageError::Size { bytes: 0 })));
}
