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

/// The next event of this reason; its message and the uid of its device.
async fn told(world: &mut World, reason: &str) -> (String, String) {
    let (verb, event) = world.event().await;
    assert_eq!((verb.as_str(), &event["reason"]), (operation::INSERT, &json!(reason)), "{event}");
    assert_eq!((&event["type"], &event["involvedObject"]["kind"]), (&json!("Warning"), &json!("Device")));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&event["message"]), text(&event["involvedObject"]["uid"]))
}

#[tokio::test]
async fn a_device_that_waits_for_its_mapper_is_told() {
    let mut world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("quiet", "", "1")).await;
    world.put(kind::DEVICE, &device("d", "stub", "1")).await;
    let socket = world.dir().join("dmi.sock");
    let expected = format!(
        "no mapper for protocol \"stub\" has registered at {} of this node: start one; a device that speaks MQTT itself needs none",
        socket.display()
    );
    assert_eq!(told(&mut world, "NoMapper").await, (expected, "uid of d".to_owned()));
    // Once, whatever else changes.
    world.put(kind::DEVICE, &device("e", "other", "1")).await;
    assert_eq!(told(&mut world, "NoMapper").await.1, "uid of e");
}

#[tokio::test]
async fn what_a_mapper_refuses_or_cannot_be_told_is_told_on_the_device() {
    let mut world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    mapper.refuse("refused", true);
    world.register(&mapper, "stub").await;
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("refused", "stub", "1")).await;
    let (message, uid) = told(&mut world, "MapperRefused").await;
    assert_eq!(message, "the mapper of \"stub\" does not take this device: stub refuses");
    assert_eq!(uid, "uid of refused");
    // It is tried again, and each call is told once.
    mapper.calls_until("UpdateDevice refused t=1").await;
    assert_eq!(told_again(&mut world).await, (message.clone(), 2));
    for _ in 0..2 {
        mapper.calls_until("UpdateDevice refused t=1").await;
    }
    let mut nested = device("nested", "stub", "1");
    nested["spec"]["protocol"]["configData"] = json!({"a": {"b": 1}});
    world.put(kind::DEVICE, &nested).await;
    let (message, uid) = told(&mut world, "NotForMapper").await;
    assert!(message.starts_with("the mapper of \"stub\" does not get this device: "), "{message}");
    assert!(message.contains("configData"), "{message}");
    assert_eq!(uid, "uid of nested");
    let mut alone = device("alone", "stub", "1");
    alone["spec"]["deviceModelRef"]["name"] = json!("none");
    world.put(kind::DEVICE, &alone).await;
    let (message, uid) = told(&mut world, "NotForMapper").await;
    let expected = "the mapper of \"stub\" does not get this device: its DeviceModel default/none is not on this node";
    assert_eq!((message.as_str(), uid.as_str()), (expected, "uid of alone"));
}

/// The event of before, once more: its message, and how often by now.
async fn told_again(world: &mut World) -> (String, u64) {
    let (verb, patch) = world.event().await;
    assert_eq!(verb, operation::PATCH, "{patch}");
    let event = &patch["event"];
    (event["message"].as_str().expect("a text").to_owned(), event["count"].as_u64().expect("a number"))
}
