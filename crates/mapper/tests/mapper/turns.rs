//! The turns of a device: whoever is silent, slow or wrong delays no other property.

use std::time::{Duration, Instant};

use dmi::v1beta1 as proto;
use mapper::{Fault, Value};
use serde_json::json;

use crate::script::Script;
use crate::stub::Stub;
use crate::support::{CYCLE, Running, configuration, device, model, property, until, wish};

/// A mapper whose device `a` has `target`, `n` and `s`, in this order.
async fn start(target: &str, prepare: impl FnOnce(&mut crate::script::State)) -> Site {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), Script::default());
    script.of("a", |state| {
        let values = [("target", Value::Int(0)), ("n", Value::Int(3)), ("s", Value::Int(4))];
        state.values = values.map(|(name, value)| (name.to_owned(), value)).into();
        prepare(state);
    });
    let names = ["target", "n", "s"];
    let mut a = device("a", vec![property("target", target), property("n", ""), property("s", "")]);
    a.status = Some(proto::DeviceStatus { report_to_cloud: true, report_cycle: CYCLE, twins: Vec::new() });
    edgecore.known().models = vec![model(&names.map(|name| (name, "INT", "ReadWrite", "", "")))];
    edgecore.known().devices = vec![a.clone()];
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    Site { _folder: folder, edgecore, script, mapper, a }
}

struct Site {
    _folder: tempfile::TempDir,
    edgecore: Stub,
    script: Script,
    mapper: Running,
    a: proto::Device,
}

impl Site {
    fn asked(&self, property: &str) -> usize {
        self.script.ask("a", |state| state.asked.get(property).copied().unwrap_or_default())
    }

    fn writes(&self) -> Vec<String> {
        self.script.ask("a", |state| state.writes.iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    fn states(&self) -> Vec<String> {
        let mut states: Vec<_> = self.edgecore.known().states.iter().map(|(_, state)| state.clone()).collect();
        states.dedup();
        states
    }
}

#[tokio::test]
async fn a_silent_property_silences_no_other() {
    let silent = Fault::Silent("its gateway says nothing".to_owned());
    let site = start("7", |state| drop(state.faults.insert("n".to_owned(), silent))).await;
    until("the one after it is told", || site.edgecore.known().reported("a", "s") == Some("4")).await;
    until("it is asked again and again", || site.asked("n") > 2).await;
    assert!(site.asked("s") > 3 * site.asked("n"), "others do not wait for it");
    assert_eq!(site.writes(), ["target=7"], "the device has forgotten nothing");
    assert_eq!(site.states(), ["online"]);
    site.script.of("a", |state| state.faults.clear());
    until("it speaks again", || site.edgecore.known().reported("a", "n") == Some("3")).await;
    site.mapper.stop().await;
}

#[tokio::test]
async fn a_property_that_breaks_the_connection_does_so_seldom() {
    let broken = Fault::Unreachable("connection reset".to_owned());
    let site = start("7", |state| drop(state.faults.insert("n".to_owned(), broken))).await;
    until("the one after it is told", || site.edgecore.known().reported("a", "s") == Some("4")).await;
    until("it is asked again and again", || site.asked("n") > 3).await;
    // The first time it might have been the device.
    assert_eq!(site.writes(), ["target=7", "target=7"]);
    let states = site.states();
    assert_eq!(states.last().map(String::as_str), Some("online"));
    assert_eq!(states.iter().filter(|state| *state == "offline").count(), 1, "{states:?}");
    site.mapper.stop().await;
}

#[tokio::test]
async fn a_device_of_which_all_is_silent_is_offline() {
    let silent = Fault::Silent("nothing".to_owned());
    let all = || ["target", "n", "s"].map(|name| (name.to_owned(), silent.clone())).into();
    let site = start("7", |_| {}).await;
    until("it is online", || site.states() == ["online"]).await;
    site.script.of("a", |state| state.faults = all());
    until("it is offline", || site.states() == ["online", "offline"]).await;
    site.script.of("a", |state| {
        state.writes.clear();
        state.faults.clear();
    });
    until("it is online again", || site.states() == ["online", "offline", "online"]).await;
    until("and told again what it shall be", || site.writes() == ["target=7"]).await;
    site.edgecore.known().reports.clear();
    for name in ["target", "n", "s"] {
        until(name, || site.edgecore.known().reported("a", name).is_some()).await;
    }
    site.mapper.stop().await;
}

#[tokio::test]
async fn what_is_due_is_told_while_another_property_takes_its_time() {
    let slow = |state: &mut crate::script::State| {
        state.slow.insert("n".to_owned(), Duration::from_millis(200));
        state.slow.insert("s".to_owned(), Duration::from_secs(3600));
    };
    let site = start("", slow).await;
    until("the last is read", || site.asked("s") > 0).await;
    let asked = Instant::now();
    until("the first is told", || site.edgecore.known().reported("a", "target").is_some()).await;
    assert!(asked.elapsed() < mapper::CALL_LIMIT / 2, "the last had to be given up before");
    site.mapper.stop().await;
}

#[tokio::test]
async fn changes_that_never_end_do_not_keep_the_last_property_from_being_read() {
    let slow = |state: &mut crate::script::State| {
        state.slow = ["target", "n", "s"].map(|name| (name.to_owned(), Duration::from_millis(60))).into();
    };
    let mut site = start("", slow).await;
    let mut client = site.mapper.client().await;
    until("the device is there", || site.asked("target") > 0).await;
    let end = Instant::now() + Duration::from_secs(20);
    for number in 1.. {
        if site.edgecore.known().reported("a", "s").is_some() {
            break;
        }
        assert!(Instant::now() < end, "s is never read");
        client.update_device(wish(&mut site.a, "target", &number.to_string())).await.unwrap();
    }
    site.mapper.stop().await;
}

#[tokio::test]
async fn a_wish_that_was_taken_back_during_another_write_is_not_written() {
    let mut site = start("", |state| state.slow_write = Duration::from_millis(500)).await;
    let mut client = site.mapper.client().await;
    until("the device is there", || site.script.ask("a", |state| state.reads > 3)).await;
    wish(&mut site.a, "target", "1");
    client.update_device(wish(&mut site.a, "n", "1")).await.unwrap();
    until("the first write has begun", || site.script.ask("a", |state| state.begun_writes > 0)).await;
    client.update_device(wish(&mut site.a, "n", "2")).await.unwrap();
    until("both are written", || site.writes().len() > 1).await;
    assert_eq!(site.writes(), ["target=1", "n=2"]);
    site.mapper.stop().await;
}

#[tokio::test]
async fn a_corrected_configuration_of_the_device_is_tried() {
    let mut site = start("7", |state| state.needs = Some("ip")).await;
    until("all have failed", || site.asked("target") > 1 && site.asked("s") > 0).await;
    let protocol = proto::ProtocolConfig {
        protocol_name: "stub".to_owned(),
        config_data: configuration(&json!({"ip": "10.0.0.2"})),
    };
    site.a.spec.as_mut().unwrap().protocol = Some(protocol);
    let mut client = site.mapper.client().await;
    client.update_device(proto::UpdateDeviceRequest { device: Some(site.a) }).await.unwrap();
    until("it is written", || site.edgecore.known().reported("a", "target") == Some("7")).await;
    until("and read", || site.edgecore.known().reported("a", "s") == Some("4")).await;
    site.mapper.stop().await;
}
