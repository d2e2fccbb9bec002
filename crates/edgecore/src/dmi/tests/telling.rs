//! What mappers are told of devices and models.

use super::*;

#[tokio::test]
async fn a_mapper_hears_of_every_change_of_its_devices() {
    let world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    assert_eq!(world.register(&mapper, "stub").await, proto::MapperRegisterResponse::default());
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("d", "stub", "1")).await;
    world.put(kind::DEVICE, &device("other", "another", "1")).await;
    mapper.hears("CreateDeviceModel m").await;
    mapper.hears("RegisterDevice d t=1").await;
    world.put(kind::DEVICE, &device("d", "stub", "2")).await;
    mapper.hears("UpdateDevice d t=2").await;
    // A model alone, which KubeEdge never tells.
    world.put(kind::DEVICE_MODEL, &model("m", "F")).await;
    mapper.hears("UpdateDeviceModel m").await;
    let mut relabelled = device("d", "stub", "2");
    relabelled["metadata"]["labels"] = json!({"a": "b"});
    world.put(kind::DEVICE, &relabelled).await;
    world.put(kind::DEVICE, &device("d", "another", "2")).await;
    mapper.hears("RemoveDevice d").await;
    mapper.hears("RemoveDeviceModel m").await;
    world.put(kind::DEVICE, &device("d", "stub", "3")).await;
    mapper.hears("CreateDeviceModel m").await;
    mapper.hears("RegisterDevice d t=3").await;
}

#[tokio::test]
async fn what_a_device_is_is_not_told_to_its_mapper() {
    let world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    world.register(&mapper, "stub").await;
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    let mut device = device("d", "stub", "1");
    world.put(kind::DEVICE, &device).await;
    mapper.hears("CreateDeviceModel m").await;
    mapper.hears("RegisterDevice d t=1").await;
    world.tells("d", "t", "7").await.expect("stored");
    // What came of it in the cluster: in a DeviceStatus, and, as older clouds have it, in the Device.
    let twins = json!({"twins": [{"propertyName": "t", "reported": {"value": "7"}}], "state": "online"});
    let status = json!({"metadata": {"name": "d", "namespace": "default"}, "status": twins});
    world.put("devicestatus", &status).await;
    device["status"] = twins;
    for version in ["2", "3"] {
        device["metadata"]["resourceVersion"] = json!(version);
        world.put(kind::DEVICE, &device).await;
        // It has looked at that when it has told of this.
        let model_of_version = model("m", version);
        world.put(kind::DEVICE_MODEL, &model_of_version).await;
        mapper.hears("UpdateDeviceModel m").await;
    }
}

#[tokio::test]
async fn either_side_may_be_started_again_without_the_other() {
    let mut world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    for name in ["d1", "d2", "d3"] {
        world.put(kind::DEVICE, &device(name, "stub", "1")).await;
    }
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    world.register(&mapper, "stub").await;
    world.kill().await;
    world.delete(kind::DEVICE, "d1").await;
    world.put(kind::DEVICE, &device("d2", "stub", "2")).await;
    world.put(kind::DEVICE, &device("d4", "stub", "4")).await;
    world.run();
    // What has not changed is not said again.
    mapper.hears("UpdateDevice d2 t=2").await;
    mapper.hears("RegisterDevice d4 t=4").await;
    mapper.hears("RemoveDevice d1").await;
    mapper.end().await;
    world.put(kind::DEVICE, &device("d5", "stub", "5")).await;
    world.put(kind::DEVICE, &device("d3", "stub", "3")).await;
    mapper.serve();
    let mut heard = BTreeSet::new();
    while heard.len() < 2 {
        let call = mapper.next().await;
        // It is not known whether the first try got there: then it is told once more what the device is.
        if call != "UpdateDevice d5 t=5" {
            heard.insert(call);
        }
    }
    assert_eq!(heard, BTreeSet::from(["RegisterDevice d5 t=5".to_owned(), "UpdateDevice d3 t=3".to_owned()]));
}

#[tokio::test]
async fn what_a_mapper_may_have_taken_is_said_again_when_it_is_otherwise() {
    let world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    for name in ["d", "e"] {
        world.put(kind::DEVICE, &device(name, "stub", "20")).await;
    }
    world.register(&mapper, "stub").await;
    mapper.hang("d", true);
    mapper.hang("e", true);
    world.put(kind::DEVICE, &device("d", "stub", "25")).await;
    mapper.hears("UpdateDevice d t=25").await;
    world.delete(kind::DEVICE, "e").await;
    mapper.calls_until("RemoveDevice e").await;
    world.put(kind::DEVICE, &device("d", "stub", "20")).await;
    world.put(kind::DEVICE, &device("e", "stub", "20")).await;
    mapper.hang("d", false);
    mapper.hang("e", false);
    let mut left = BTreeSet::from(["UpdateDevice d t=20", "UpdateDevice e t=20"]);
    while !left.is_empty() {
        let call = mapper.next().await;
        left.remove(call.as_str());
    }
}
