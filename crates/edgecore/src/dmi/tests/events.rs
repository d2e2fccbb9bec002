//! What users hear of devices and their mappers.

use super::*;

#[tokio::test]
async fn a_device_without_a_mapper_is_named_once() {
    let world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    for (name, protocol) in [("d1", "stub"), ("d2", "stub"), ("d3", "driven"), ("d4", "")] {
        world.put(kind::DEVICE, &device(name, protocol, "1")).await;
    }
    world.tells("d2", "t", "1").await.expect("it speaks for itself");
    let (database, mut missing) = (world.database(), missing::Missing::default());
    let mut news = || {
        let news = missing.news(&database, |protocol| protocol == "driven").expect("read");
        news.into_iter().map(|(device, protocol)| format!("{} {protocol}", device.name)).collect::<Vec<_>>()
    };
    assert_eq!(news(), ["d1 stub"]);
    assert!(news().is_empty());
    world.delete(kind::DEVICE, "d1").await;
    assert!(news().is_empty());
    world.put(kind::DEVICE, &device("d1", "stub", "1")).await;
    assert_eq!(news(), ["d1 stub"]);
}
