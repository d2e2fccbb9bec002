use super::*;
use crate::simulated::Virtual;

fn registry() -> Registry<Virtual> {
    let stopping = CancellationToken::new();
    Registry::new(Virtual, Arc::default(), Arc::new(Pusher::new(stopping.clone())), stopping)
}

fn model(name: &str) -> proto::DeviceModel {
    proto::DeviceModel { name: name.to_owned(), ..proto::DeviceModel::default() }
}

fn device(name: &str, method: &str) -> proto::Device {
    let methods = vec![proto::DeviceMethod { name: method.to_owned(), ..proto::DeviceMethod::default() }];
    let spec = proto::DeviceSpec { device_model_reference: "m".to_owned(), methods, ..proto::DeviceSpec::default() };
    proto::Device { name: name.to_owned(), spec: Some(spec), ..proto::Device::default() }
}

fn list(devices: &[proto::Device]) -> proto::MapperRegisterResponse {
    proto::MapperRegisterResponse { model_list: vec![model("m"); devices.len()], device_list: devices.to_vec() }
}

fn method(registry: &Registry<Virtual>, name: &str) -> Option<String> {
    let device = registry.device(&Id::new("", name)).ok()?;
    Some(device.spec?.methods[0].name.clone())
}

#[tokio::test]
async fn a_list_is_everything_there_is() {
    let registry = registry();
    registry.begin_listing().end(list(&[device("a", "1"), device("b", "1")]));
    registry.begin_listing().end(list(&[device("b", "2"), device("c", "1")]));
    assert_eq!(method(&registry, "a"), None);
    assert_eq!(method(&registry, "b").as_deref(), Some("2"));
    assert_eq!(method(&registry, "c").as_deref(), Some("1"));
}

#[tokio::test]
async fn what_is_said_while_a_list_is_on_its_way_is_newer() {
    let registry = registry();
    registry.begin_listing().end(list(&[device("changed", "1"), device("gone", "1")]));
    let listing = registry.begin_listing();
    registry.put_device(Some(device("changed", "2"))).expect("changed");
    registry.put_device(Some(device("new", "1"))).expect("new");
    registry.remove_device(&Id::new("", "gone"));
    listing.end(list(&[device("changed", "1"), device("gone", "1")]));
    assert_eq!(method(&registry, "changed").as_deref(), Some("2"));
    assert_eq!(method(&registry, "new").as_deref(), Some("1"));
    assert_eq!(method(&registry, "gone"), None);
    // A list that never came leaves nothing behind.
    drop(registry.begin_listing());
    registry.put_device(Some(device("new", "2"))).expect("changed");
    registry.begin_listing().end(list(&[]));
    assert_eq!(method(&registry, "new"), None);
}

#[tokio::test]
async fn models_make_room_for_others_unless_devices_are_of_them() {
    let registry = registry();
    registry.put_model(Some(model("m"))).expect("room");
    registry.put_device(Some(device("a", "1"))).expect("its model is there");
    for number in 0..MAX_MODELS {
        registry.put_model(Some(model(&format!("m{number}")))).expect("others go");
    }
    registry.put_device(Some(device("b", "1"))).expect("a kept its model here");
}

#[tokio::test]
async fn a_stopped_mapper_stops_its_devices() {
    let registry = registry();
    registry.begin_listing().end(list(&[device("a", "1"), device("b", "1")]));
    registry.stopping.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(5), registry.ended()).await.expect("all have ended");
}
