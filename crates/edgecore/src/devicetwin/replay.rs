//! States and membership as KubeEdge v1.23.1 answers them, from a recording; twins are replayed in crate `twin`, reports of mappers in `dmi`.
//!
//! On purpose differs: what KubeEdge does not answer (a state that there is not, a device that is not here, no JSON) is refused on the
//! topic's own result; texts of refusals say what is wrong.

use serde_json::{Value, json};
use twin::topic::DeviceId;

use super::device::{About, Devices};
use super::requests::carry_out;
use crate::eventbus::Arrived;

const NODE: &str = "go-edge";

#[test]
fn states_and_membership_get_the_recorded_answers() {
    let mut devices = Devices::default();
    for name in ["machine-1", "thermo-2"] {
        devices.add(&DeviceId::parse(name).expect("id"), About::default());
    }
    let lines: Vec<(&str, &str)> = include_str!("recorded.txt")
        .lines()
        .skip(1)
        .map(|line| line.split_once(' ').expect("topic and payload"))
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for (at, (topic, payload)) in lines.iter().enumerate().filter(|(_, (topic, _))| !topic.ends_with("/result")) {
        let recorded = lines.get(at + 1).filter(|(topic, _)| topic.ends_with("/result"));
        let told =
            carry_out(&mut devices, NODE, &Arrived::of_test(topic, payload.to_owned().into())).expect("a request").told;
        assert_eq!(told.len(), 1, "{topic} {payload}");
        let own: Value = serde_json::from_slice(&told[0].payload).expect("JSON");
        match recorded {
            Some((result, recorded)) => {
                let recorded: Value = serde_json::from_str(recorded).expect("JSON");
                assert_eq!((told[0].topic.as_str(), normal(own)), (*result, normal(recorded)), "{topic} {payload}");
                answered += 1;
            }
            None => {
                let code = own["code"].as_u64();
                assert_eq!(code, Some(if topic.contains("nobody") { 404 } else { 400 }), "{topic} {payload}");
                assert_eq!(told[0].topic, format!("{topic}/result"));
                refused += 1;
            }
        }
    }
    assert_eq!((answered, refused), (8, 5));
}

/// Without what differs from run to run, and without the texts of refusals.
fn normal(mut value: Value) -> Value {
    value["timestamp"] = 0.into();
    if let Some(device) = value.get_mut("device") {
        device["lastOnlineTime"] = device.get("lastOnlineTime").is_some().into();
        value["event_id"] = "".into();
    }
    if value.get("code").is_some() {
        value["reason"] = "".into();
    }
    if let Some(devices) = value.get_mut("devices").and_then(Value::as_array_mut) {
        devices.sort_by_key(|device| device["id"].to_string());
    }
    json!(value)
}
