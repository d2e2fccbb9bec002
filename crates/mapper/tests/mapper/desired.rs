//! What devices shall be.

use dmi::v1beta1 as proto;
use mapper::Value;

use crate::script::{Mood, Script};
use crate::stub::Stub;
use crate::support::{Running, device, model, property, until, wish};

fn machine() -> proto::DeviceModel {
    model(&[
        ("target", "FLOAT", "ReadWrite", "-50", "150"),
        ("on", "BOOLEAN", "ReadWrite", "", ""),
        ("count", "INT", "ReadOnly", "", ""),
    ])
}

/// A mapper whose device `a` has these wishes.
async fn start(wishes: &[(&str, &str)]) -> (tempfile::TempDir, Stub, Script, Running, proto::Device) {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), Script::default());
    script.of("a", |state| {
        state.values = [("target", Value::Number(0.0)), ("on", Value::Boolean(false)), ("count", Value::Int(3))]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
    });
    let a = device("a", wishes.iter().map(|(name, value)| property(name, value)).collect());
    edgecore.known().models = vec![machine()];
    edgecore.known().devices = vec![a.clone()];
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    until("a is reported", || edgecore.known().reported("a", wishes[0].0).is_some()).await;
    (folder, edgecore, script, mapper, a)
}

fn writes(script: &Script) -> Vec<(String, String)> {
    script.ask("a", |state| state.writes.iter().map(|(name, value)| (name.clone(), value.to_string())).collect())
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_wish_reaches_the_device_once_and_is_reported() {
    let (_folder, edgecore, script, mapper, mut a) = start(&[("target", "21"), ("on", "true")]).await;
    until("both are written", || writes(&script) == pairs(&[("target", "21"), ("on", "true")])).await;
    let mut client = mapper.client().await;
    client.update_device(wish(&mut a, "target", "22.5")).await.unwrap();
    until("it is reported", || {
        let known = edgecore.known();
        let observed = known.twin("a", "target").and_then(|twin| twin.observed_desired.clone());
        known.reported("a", "target") == Some("22.5") && observed.is_some_and(|observed| observed.value == "22.5")
    })
    .await;
    assert_eq!(writes(&script), pairs(&[("target", "21"), ("on", "true"), ("target", "22.5")]));
    mapper.stop().await;
}

#[tokio::test]
async fn what_the_model_forbids_is_not_written() {
    let (_folder, edgecore, script, mapper, mut a) = start(&[("target", "151"), ("on", "maybe"), ("count", "4")]).await;
    let mut client = mapper.client().await;
    // Turns have passed with these wishes.
    let reads = script.ask("a", |state| state.reads);
    until("it is read", || script.ask("a", |state| state.reads > reads + 9)).await;
    assert_eq!(writes(&script), []);
    assert_eq!(edgecore.known().reported("a", "count"), Some("3"));
    for name in ["target", "on"] {
        let twin = edgecore.known().twin("a", name).cloned().unwrap();
        assert_eq!(twin.observed_desired.unwrap().value, "", "{name} is not taken, so it is not said to be observed");
        assert!(!twin.reported.unwrap().value.is_empty());
    }
    client.update_device(wish(&mut a, "target", "150")).await.unwrap();
    until("a good one is written", || writes(&script) == pairs(&[("target", "150")])).await;
    // The model now allows more, and less for others.
    let wider = model(&[("target", "FLOAT", "ReadWrite", "-50", "149"), ("count", "INT", "ReadWrite", "", "")]);
    client.update_device_model(proto::UpdateDeviceModelRequest { model: Some(wider) }).await.unwrap();
    until("count may be written", || writes(&script) == pairs(&[("target", "150"), ("count", "4")])).await;
    mapper.stop().await;
}

#[tokio::test]
async fn what_the_device_refuses_is_written_again() {
    let (_folder, _edgecore, script, mapper, mut a) = start(&[("target", "")]).await;
    script.of("a", |state| state.refuse_writes = 1);
    mapper.client().await.update_device(wish(&mut a, "target", "30")).await.unwrap();
    until("written twice", || writes(&script) == pairs(&[("target", "30"), ("target", "30")])).await;
    mapper.stop().await;
}

#[tokio::test]
async fn a_device_that_was_away_is_told_again() {
    let (_folder, _edgecore, script, mapper, mut a) = start(&[("target", "20")]).await;
    script.of("a", |state| state.mood = Mood::Dead);
    let opened = script.ask("a", |state| state.opened);
    until("it is tried", || script.ask("a", |state| state.opened > opened)).await;
    mapper.client().await.update_device(wish(&mut a, "target", "25")).await.unwrap();
    script.of("a", |state| {
        state.mood = Mood::Good;
        state.writes.clear();
    });
    until("told", || writes(&script) == pairs(&[("target", "25")])).await;
    mapper.stop().await;
}

#[tokio::test]
async fn other_cycles_write_nothing_again() {
    let (_folder, edgecore, script, mapper, mut a) = start(&[("target", "20")]).await;
    until("it is written", || writes(&script) == pairs(&[("target", "20")])).await;
    a.spec.as_mut().unwrap().properties[0].report_cycle = 10;
    let mut client = mapper.client().await;
    client.update_device(proto::UpdateDeviceRequest { device: Some(a) }).await.unwrap();
    edgecore.known().reports.clear();
    until("reported in the new cycle", || edgecore.known().reports.len() > 5).await;
    assert_eq!(writes(&script), pairs(&[("target", "20")]));
    mapper.stop().await;
}
