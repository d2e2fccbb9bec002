//! Mappers that refuse or hang.

use super::*;

#[tokio::test]
async fn what_a_mapper_refuses_holds_up_nothing_and_is_tried_again() {
    let world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    mapper.refuse("d1", true);
    world.register(&mapper, "stub").await;
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    let mut nested = device("d0", "stub", "1");
    nested["spec"]["protocol"]["configData"] = json!({"a": {"b": 1}});
    world.put(kind::DEVICE, &nested).await;
    world.put(kind::DEVICE, &device("d1", "stub", "1")).await;
    mapper.hears("CreateDeviceModel m").await;
    mapper.hears("RegisterDevice d1 t=1").await;
    world.put(kind::DEVICE, &device("d2", "stub", "1")).await;
    let mut tries = 0;
    loop {
        let call = mapper.next().await;
        match call.as_str() {
            "RegisterDevice d2 t=1" => break,
            _ => assert!(call.ends_with("Device d1 t=1"), "{call}"),
        }
        tries += 1;
        assert!(tries < 40);
    }
    mapper.refuse("d1", false);
    mapper.calls_until("UpdateDevice d1 t=1").await;
    // It may know of it, whatever it said first.
    mapper.refuse("d1", true);
    world.delete(kind::DEVICE, "d1").await;
    mapper.calls_until("RemoveDevice d1").await;
    mapper.calls_until("RemoveDevice d1").await;
}

#[tokio::test]
async fn a_mapper_that_hangs_holds_up_no_other() {
    let world = World::start();
    let mut hanging = Mapper::serving(world.dir(), "h.sock");
    hanging.hang("m", true);
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    world.register(&hanging, "slow").await;
    world.register(&mapper, "stub").await;
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("s", "slow", "1")).await;
    hanging.hears("CreateDeviceModel m").await;
    for number in 0..100 {
        world.put(kind::DEVICE, &device(&format!("d{number}"), "stub", "1")).await;
    }
    mapper.calls_until("RegisterDevice d99 t=1").await;
    world.tells("s", "t", "7").await.expect("stored");
}

#[tokio::test]
async fn a_device_about_which_the_mapper_does_not_answer_holds_up_no_other() {
    let world = World::start();
    let mut mapper = Mapper::serving(world.dir(), "m.sock");
    mapper.hang("a", true);
    world.register(&mapper, "stub").await;
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    for name in ["a", "b", "c"] {
        world.put(kind::DEVICE, &device(name, "stub", "1")).await;
    }
    mapper.calls_until("RegisterDevice c t=1").await;
    mapper.hang("a", false);
    mapper.calls_until("UpdateDevice a t=1").await;
}
