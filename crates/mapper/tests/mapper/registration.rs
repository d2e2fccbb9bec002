//! Who starts first, who starts again, and what is known then.

use dmi::v1beta1 as proto;
use mapper::Value;
use tonic::Code;

use crate::script::Script;
use crate::stub::Stub;
use crate::support::{Running, configuration, device, model, property, until, wish};

fn counter() -> proto::DeviceModel {
    model(&[("count", "INT", "ReadWrite", "0", "1000")])
}

fn script(count: i64) -> Script {
    let script = Script::default();
    script.of("a", |state| drop(state.values.insert("count".to_owned(), Value::Int(count))));
    script.of("b", |state| drop(state.values.insert("count".to_owned(), Value::Int(count))));
    script
}

#[tokio::test]
async fn edgecore_may_come_later_and_start_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(7));
    let mapper = Running::start(folder.path(), script.clone());
    let mut client = mapper.client().await;
    let model = counter();
    // Edgecore that knows a mapper from before calls it also before that has registered.
    client.create_device_model(proto::CreateDeviceModelRequest { model: Some(model.clone()) }).await.unwrap();
    let (a, b) = (device("a", vec![property("count", "")]), device("b", vec![property("count", "")]));
    client.register_device(proto::RegisterDeviceRequest { device: Some(a.clone()) }).await.unwrap();
    until("a is read without edgecore", || script.ask("a", |state| state.reads > 0)).await;

    edgecore.known().models = vec![model.clone(), model.clone()];
    edgecore.known().devices = vec![a.clone(), b];
    edgecore.start();
    until("both are reported", || {
        edgecore.known().reported("a", "count") == Some("7") && edgecore.known().reported("b", "count") == Some("7")
    })
    .await;
    let registration = edgecore.known().registrations[0].clone();
    assert!(registration.with_data);
    let said = registration.mapper.unwrap();
    assert_eq!((said.name.as_str(), said.protocol.as_str(), said.state.as_str()), ("stub-mapper", "stub", "ok"));
    assert_eq!(said.address, folder.path().join("stub.sock").to_str().unwrap().as_bytes());

    edgecore.stop().await;
    script.of("a", |state| drop(state.values.insert("count".to_owned(), Value::Int(8))));
    edgecore.known().reports.clear();
    // Meanwhile b was taken from this node.
    edgecore.known().models = vec![model];
    edgecore.known().devices = vec![a];
    edgecore.start();
    until("registered again", || edgecore.known().registrations.len() >= 2).await;
    until("what has changed is told", || edgecore.known().reported("a", "count") == Some("8")).await;
    let get = |name: &str| proto::GetDeviceRequest { device_name: name.to_owned(), device_namespace: String::new() };
    assert_eq!(client.get_device(get("b")).await.unwrap_err().code(), Code::NotFound);
    let found = client.get_device(get("a")).await.unwrap().into_inner().device.unwrap();
    assert_eq!(found.status.unwrap().twins[0].reported.as_ref().unwrap().value, "8");
    mapper.stop().await;
}

#[tokio::test]
async fn an_edgecore_that_was_replaced_unnoticed_is_registered_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut edgecore = Stub::new(folder.path());
    edgecore.start();
    // Without a device nothing is ever reported, so no call can fail.
    let mapper = Running::start(folder.path(), Script::default());
    until("registered", || edgecore.known().registrations.len() == 1).await;
    edgecore.stop().await;
    edgecore.start();
    until("registered again", || edgecore.known().registrations.len() == 2).await;
    mapper.stop().await;
}

#[tokio::test]
async fn a_mapper_that_starts_again_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut edgecore = Stub::new(folder.path());
    edgecore.known().models = vec![counter()];
    edgecore.known().devices = vec![device("a", vec![property("count", "5")])];
    edgecore.start();
    for start in 1..=2 {
        let script = script(0);
        let mapper = Running::start(folder.path(), script.clone());
        until("registered", || edgecore.known().registrations.len() == start).await;
        until("what it shall be is written", || script.ask("a", |state| !state.writes.is_empty())).await;
        until("and reported", || edgecore.known().reported("a", "count") == Some("5")).await;
        edgecore.known().reports.clear();
        mapper.stop().await;
    }
}

#[tokio::test]
async fn calls_may_repeat_and_what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mapper = Running::start(folder.path(), script(0));
    let mut client = mapper.client().await;
    let mut a = device("a", vec![property("count", "1")]);
    let register = proto::RegisterDeviceRequest { device: Some(a.clone()) };
    let refused = client.register_device(register.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("device default/a is of model default/machine"), "{}", refused.message());
    for _ in 0..2 {
        client.create_device_model(proto::CreateDeviceModelRequest { model: Some(counter()) }).await.unwrap();
        client.register_device(register.clone()).await.unwrap();
        client.update_device(wish(&mut a, "count", "2")).await.unwrap();
    }
    let remove_model =
        proto::RemoveDeviceModelRequest { model_name: "machine".to_owned(), model_namespace: "default".to_owned() };
    let remove = proto::RemoveDeviceRequest { device_name: "a".to_owned(), device_namespace: "default".to_owned() };
    for _ in 0..2 {
        client.remove_device_model(remove_model.clone()).await.unwrap();
        client.remove_device(remove.clone()).await.unwrap();
    }
    let nothing = client.register_device(proto::RegisterDeviceRequest { device: None }).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    mapper.stop().await;
}

#[tokio::test]
async fn devices_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let mapper = Running::start(folder.path(), Script::default());
    let mut client = mapper.client().await;
    client.create_device_model(proto::CreateDeviceModelRequest { model: Some(model(&[])) }).await.unwrap();
    for number in 0..1000 {
        let device = Some(device(&format!("d{number}"), Vec::new()));
        client.register_device(proto::RegisterDeviceRequest { device }).await.unwrap();
    }
    let one_more = proto::RegisterDeviceRequest { device: Some(device("more", Vec::new())) };
    assert_eq!(client.register_device(one_more).await.unwrap_err().code(), Code::ResourceExhausted);
    mapper.stop().await;
}

#[tokio::test]
async fn a_device_that_is_elsewhere_now_is_opened_there() {
    let folder = tempfile::tempdir().unwrap();
    let script = script(0);
    let mapper = Running::start(folder.path(), script.clone());
    let mut client = mapper.client().await;
    client.create_device_model(proto::CreateDeviceModelRequest { model: Some(counter()) }).await.unwrap();
    let mut a = device("a", vec![property("count", "")]);
    client.register_device(proto::RegisterDeviceRequest { device: Some(a.clone()) }).await.unwrap();
    until("a is open", || script.ask("a", |state| state.reads > 0)).await;
    a.spec.as_mut().unwrap().protocol = Some(proto::ProtocolConfig {
        protocol_name: "stub".to_owned(),
        config_data: configuration(&serde_json::json!({"ip": "10.0.0.2"})),
    });
    client.update_device(proto::UpdateDeviceRequest { device: Some(a) }).await.unwrap();
    until("a is opened again", || script.ask("a", |state| state.opened) == 2).await;
    mapper.stop().await;
}
