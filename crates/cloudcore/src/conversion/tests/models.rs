//! DeviceModels and DeviceStatuses there and back.

use super::super::parts::is_same;
use super::*;

#[test]
fn models_there_and_back() {
    let old = object(
        ALPHA,
        "DeviceModel",
        json!({"spec": {"protocol": "modbus", "properties": [
            {"name": "t", "description": "temperature", "type": {"int": {"accessMode": "ReadWrite", "defaultValue": 1, "minimum": -5, "maximum": 100, "unit": "K"}}},
            {"name": "f", "type": {"double": {"accessMode": "ReadOnly", "minimum": 0.5, "maximum": 10.0}}},
            {"name": "s", "type": {"string": {"accessMode": "ReadWrite", "defaultValue": "OFF"}}},
            {"name": "b", "type": {"boolean": {"accessMode": "ReadOnly"}}},
        ]}}),
    );
    let mut new = to(&old, BETA);
    assert_eq!(
        new["spec"]["properties"],
        json!([
            {"name": "t", "description": "temperature", "type": "INT", "accessMode": "ReadWrite", "minimum": "-5", "maximum": "100", "unit": "K"},
            {"name": "f", "type": "DOUBLE", "accessMode": "ReadOnly", "minimum": "0.5", "maximum": "10"},
            {"name": "s", "type": "STRING", "accessMode": "ReadWrite"},
            {"name": "b", "type": "BOOLEAN", "accessMode": "ReadOnly"},
        ])
    );
    assert!(is_same(Some(&to(&new, ALPHA)), Some(&old)));
    new["spec"]["properties"][0]["maximum"] = json!("200");
    let changed = to(&new, ALPHA);
    assert_eq!(
        changed["spec"]["properties"][0]["type"]["int"],
        json!({"accessMode": "ReadWrite", "defaultValue": 1, "minimum": -5, "maximum": 200, "unit": "K"})
    );

    let new = object(
        BETA,
        "DeviceModel",
        json!({"spec": {"protocol": "p", "protocolConfigData": {"x": 1}, "properties": [
            {"name": "video", "type": "STREAM", "accessMode": "ReadOnly"},
            {"name": "odd", "type": "INT", "minimum": "lots", "maximum": "10", "visitors": {"protocolName": "p"}},
            {"name": "fine", "type": "FLOAT", "minimum": "10.0"},
        ]}}),
    );
    let mut old = to(&new, ALPHA);
    assert_eq!(
        old["spec"]["properties"],
        json!([{"name": "video"}, {"name": "odd", "type": {"int": {"maximum": 10}}}, {"name": "fine", "type": {"float": {"minimum": 10.0}}}])
    );
    assert_eq!(to(&old, BETA), new);
    old["spec"]["properties"][1]["type"]["int"]["maximum"] = json!(11);
    let changed = to(&old, BETA);
    assert_eq!(changed["spec"]["properties"][0], new["spec"]["properties"][0], "v1alpha2 has no streams");
    assert_eq!(changed["spec"]["properties"][1]["maximum"], "11");
    assert_eq!(changed["spec"]["properties"][1]["visitors"], json!({"protocolName": "p"}));
}

#[test]
fn statuses_there_and_back() {
    let new = object(
        BETA,
        "DeviceStatus",
        json!({"status": {"state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z", "twins": [
            {"propertyName": "t", "reported": {"value": "1"}, "observedDesired": {"value": "2"}}]}}),
    );
    let old = to(&new, ALPHA);
    assert_eq!(old["twins"], json!([{"propertyName": "t", "reported": {"value": "1"}, "desired": {"value": "2"}}]));
    assert_eq!((&old["status"], &old["spec"]), (&Value::Null, &Value::Null));
    assert_eq!(to(&old, BETA), new);
}
