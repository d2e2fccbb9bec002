//! What edgecore is told.

use dmi::v1beta1 as proto;
use mapper::Value;
use tonic::Status;

use crate::script::{Mood, Script};
use crate::stub::Stub;
use crate::support::{CYCLE, Running, device, model, property, until};

fn machine() -> proto::DeviceModel {
    model(&[("t", "FLOAT", "ReadOnly", "", ""), ("n", "INT", "ReadOnly", "", ""), ("s", "STRING", "ReadOnly", "", "")])
}

fn script(devices: &[&str]) -> Script {
    let script = Script::default();
    for device in devices {
        script.of(device, |state| {
            let values = [("t", Value::Number(20.5)), ("n", Value::Int(3)), ("s", Value::Text("ok".to_owned()))];
            state.values = values.map(|(name, value)| (name.to_owned(), value)).into();
        });
    }
    script
}

fn of(name: &str) -> proto::Device {
    let mut device = device(name, vec![property("t", "21"), property("n", ""), property("s", "")]);
    device.status = Some(proto::DeviceStatus { report_to_cloud: true, report_cycle: CYCLE, twins: Vec::new() });
    device
}

fn set(script: &Script, device: &str, property: &str, value: Value) {
    script.of(device, |state| drop(state.values.insert(property.to_owned(), value)));
}

#[tokio::test]
async fn a_report_has_all_that_is_due_and_both_sides_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(&["a"]));
    let mut a = of("a");
    a.spec.as_mut().unwrap().properties[2].report_to_cloud = false;
    edgecore.known().models = vec![machine()];
    edgecore.known().devices = vec![a];
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    until("reported", || edgecore.known().reports.len() > 4).await;
    let reports = edgecore.known().reports.clone();
    for report in &reports {
        assert_eq!((report.device_name.as_str(), report.device_namespace.as_str()), ("a", "default"));
        let twins = &report.reported_device.as_ref().unwrap().twins;
        assert_eq!(twins.iter().map(|twin| twin.property_name.as_str()).collect::<Vec<_>>(), ["n", "t"]);
        for (twin, (desired, value, kind)) in twins.iter().zip([("", "3", "int"), ("21", "20.5", "float")]) {
            let (observed, reported) = (twin.observed_desired.as_ref().unwrap(), twin.reported.as_ref().unwrap());
            assert_eq!((observed.value.as_str(), reported.value.as_str()), (desired, value));
            for side in [observed, reported] {
                assert_eq!(side.metadata["type"], kind);
                // Unix time in milliseconds, of this century.
                assert!(side.metadata["timestamp"].parse::<u64>().unwrap() > 1_700_000_000_000);
            }
        }
    }
    mapper.stop().await;
}

#[tokio::test]
async fn what_edgecore_has_stored_beside_what_it_refuses_is_not_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(&["a"]));
    edgecore.known().models = vec![machine()];
    edgecore.known().devices = vec![of("a")];
    let (tell, mut calls) = tokio::sync::mpsc::channel::<Vec<String>>(64);
    edgecore.known().judge = Some(Box::new(move |report| {
        let twins = &report.reported_device.as_ref().unwrap().twins;
        let names = twins.iter().map(|twin| twin.property_name.clone()).collect();
        // When it has heard enough, nobody counts any more.
        drop(tell.try_send(names));
        let bad = twins.iter().any(|twin| twin.property_name == "s");
        bad.then(|| Status::invalid_argument("property \"s\": the value has a space"))
    }));
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    for _ in 0..10 {
        let call = tokio::time::timeout(std::time::Duration::from_secs(30), calls.recv()).await.unwrap().unwrap();
        assert_eq!(call, ["n", "s", "t"], "each cycle is one call, and nothing follows it");
    }
    assert_eq!(edgecore.known().registrations.len(), 1, "a refusal is no lost edgecore");
    mapper.stop().await;
}

#[tokio::test]
async fn what_edgecore_cannot_take_now_it_gets_later_and_others_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(&["a", "b"]));
    edgecore.known().models = vec![machine(), machine()];
    edgecore.known().devices = vec![of("a"), of("b")];
    edgecore.known().judge =
        Some(Box::new(|report| (report.device_name == "a").then(|| Status::unavailable("its disk is full"))));
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    until("b goes on", || edgecore.known().reports.len() > 4).await;
    assert_eq!(edgecore.known().reported("a", "t"), None);
    // Of a there is nothing newer than this when edgecore can take it.
    set(&script, "a", "t", Value::Number(23.0));
    let reads = script.ask("a", |state| state.reads);
    until("it is read", || script.ask("a", |state| state.reads > reads + 6)).await;
    script.of("a", |state| state.mood = Mood::Dead);
    edgecore.known().judge = None;
    until("the latest is told", || edgecore.known().reported("a", "t") == Some("23")).await;
    assert_eq!(edgecore.known().registrations.len(), 1);
    mapper.stop().await;
}

#[tokio::test]
async fn states_are_told_and_a_device_that_hangs_delays_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(&["a", "b"]));
    let mut silent = of("b");
    silent.status.as_mut().unwrap().report_to_cloud = false;
    edgecore.known().models = vec![machine(), machine()];
    edgecore.known().devices = vec![of("a"), silent];
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    let last = |edgecore: &Stub| edgecore.known().states.last().cloned();
    let state = |state: &str| Some(("a".to_owned(), state.to_owned()));
    until("a is online", || last(&edgecore) == state("online")).await;
    script.of("a", |state| state.mood = Mood::Hangs);
    let reads = script.ask("b", |state| state.reads);
    until("b is read on", || script.ask("b", |state| state.reads > reads + 30)).await;
    assert_eq!(last(&edgecore), state("online"), "a has not failed yet");
    until("a is offline", || last(&edgecore) == state("offline")).await;
    script.of("a", |state| state.mood = Mood::Good);
    until("a is online again", || last(&edgecore) == state("online")).await;
    assert!(edgecore.known().states.iter().all(|(device, _)| device == "a"));
    mapper.stop().await;
}

#[tokio::test]
async fn a_state_that_cannot_be_told_keeps_no_value_away() {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), script(&["a"]));
    edgecore.known().models = vec![machine()];
    edgecore.known().devices = vec![of("a")];
    edgecore.known().no_states = true;
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    until("values are told", || edgecore.known().reported("a", "t") == Some("20.5")).await;
    edgecore.known().no_states = false;
    until("and the state later", || !edgecore.known().states.is_empty()).await;
    assert_eq!(edgecore.known().registrations.len(), 1);
    mapper.stop().await;
}
