//! Mappers that register, and those that may not.

use super::*;

#[tokio::test]
async fn a_registration_says_what_is_there_and_the_last_one_counts() {
    let world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    for name in ["d1", "d2"] {
        world.put(kind::DEVICE, &device(name, "stub", "1")).await;
    }
    let mut first = Mapper::serving(world.dir(), "1.sock");
    let answer = world.register(&first, "stub").await;
    let names: Vec<_> = answer.device_list.iter().map(|device| device.name.as_str()).collect();
    assert_eq!((names, answer.model_list.len()), (vec!["d1", "d2"], 2));
    assert!(answer.model_list.iter().all(|model| model.name == "m"));
    let mut second = Mapper::serving(world.dir(), "2.sock");
    assert_eq!(world.register(&second, "stub").await, answer);
    world.put(kind::DEVICE, &device("d1", "stub", "5")).await;
    second.hears("UpdateDevice d1 t=5").await;
    world.register(&first, "stub").await;
    world.put(kind::DEVICE, &device("d1", "stub", "6")).await;
    first.hears("UpdateDevice d1 t=6").await;
    // One that does not want to hear of devices is not called.
    let request = proto::MapperRegisterRequest { with_data: false, mapper: Some(second.info("stub")) };
    let answer = world.client().await.mapper_register(request).await.expect("registered").into_inner();
    assert!(answer.device_list.is_empty());
    world.put(kind::DEVICE, &device("d1", "stub", "7")).await;
    world.register(&second, "stub").await;
    world.put(kind::DEVICE, &device("d1", "stub", "8")).await;
    second.hears("UpdateDevice d1 t=8").await;
}
