use super::Rng;
use crate::virtio::testing::Rig;

#[test]
fn entropy_differs_each_time_and_fits() {
    let mut rig = Rig::new(Rng::new());
    rig.offer(0, &[], 32);
    rig.offer(0, &[], 32);
    assert!(rig.drain());
    let first = rig.used(0).unwrap().bytes;
    let second = rig.used(0).unwrap().bytes;
    assert_eq!((first.len(), second.len()), (32, 32));
    assert_ne!(first, second);
    assert_eq!(rig.used(0), None);
}
