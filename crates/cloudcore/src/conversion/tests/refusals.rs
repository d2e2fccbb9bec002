//! What has no counterpart, and annotations that are spoilt or too long.

use super::super::{Fields, MAX_KEPT, digest, schemas};
use super::*;

#[test]
fn what_has_no_counterpart_is_named_with_its_cure() {
    let device = |spec: Value| object(ALPHA, "Device", json!({"spec": spec}));
    let selector = |expressions: Value| {
        device(json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}))
    };
    for (object, texts) in [
        (
            selector(json!([{"key": "", "operator": "In", "values": ["a", "b"]}])),
            ["spec.nodeSelector", "exactly one node", "one value"],
        ),
        (
            selector(json!([{"key": "", "operator": "NotIn", "values": ["a"]}])),
            ["spec.nodeSelector", "exactly one node", "operator In"],
        ),
        (
            selector(json!([{"key": "zone", "operator": "In", "values": ["a"]}])),
            ["spec.nodeSelector", "label", "kubernetes.io/hostname"],
        ),
        (
            device(json!({"protocol": {"modbus": {}, "opcua": {}}})),
            ["spec.protocol", "opcua and modbus are both set", "remove one"],
        ),
        (
            device(json!({"propertyVisitors": [{"propertyName": "t", "modbus": {}, "bluetooth": {}}]})),
            ["spec.propertyVisitors (of property \"t\")", "modbus and bluetooth", "remove one"],
        ),
        (device(json!({"propertyVisitors": "x"})), ["spec.propertyVisitors", "another type", "must be a list"]),
        (
            object(
                ALPHA,
                "DeviceModel",
                json!({"spec": {"properties": [{"name": "p", "type": {"int": {}, "float": {}}}]}}),
            ),
            ["property \"p\"", "both int and float", "remove one"],
        ),
        (object(ALPHA, "Pod", json!({})), ["kind", "Pod", "DeviceModel"]),
        (object("devices.kubeedge.io/v1alpha1", "Device", json!({})), ["apiVersion", "v1alpha1", "use devices"]),
        (
            device(json!({"data": {"x": "y".repeat(300 << 10)}})),
            ["metadata.annotations", "takes", "read and write it as"],
        ),
    ] {
        let error = convert(object, BETA).expect_err(texts[1]).to_string();
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    }
}

#[test]
fn a_spoilt_annotation_is_nothing() {
    for spoilt in [
        json!("{"),
        json!("[]"),
        json!(r#"{"properties":7,"spec":[]}"#),
        json!(r#"{"spec":{"nodeName":"evil"},"whole":{"digest":"x","body":{}}}"#),
    ] {
        let mut old = sensor_tag();
        old["metadata"]["annotations"] = json!({BETA: spoilt});
        assert_eq!(to(&old, BETA)["spec"], to(&sensor_tag(), BETA)["spec"], "{spoilt}");
    }
}

#[test]
fn a_kept_part_of_a_wrong_shape_is_ignored_and_the_others_count() {
    let methods = json!([{"name": "reset"}]);
    for (spoilt, good) in [
        (json!({"spec": {"stateReport": "x"}, "status": {"state": "ok"}}), ("/status/state", json!("ok"))),
        (json!({"spec": {"methods": methods}, "status": {"reportCycle": "x"}}), ("/spec/methods", methods.clone())),
        (json!({"spec": {"methods": methods}, "status": 7}), ("/spec/methods", methods.clone())),
        (
            json!({"spec": {"methods": methods}, "properties": {"temperature": {"pushMethod": [1]}}}),
            ("/spec/methods", methods.clone()),
        ),
        (
            json!({"spec": {"methods": methods}, "properties": {"temperature": {"visitors": {"protocolName": "modbus", "configData": {"x": 1}}, "reportToCloud": "yes"}}}),
            ("/spec/methods", methods.clone()),
        ),
    ] {
        let mut old = sensor_tag();
        old["metadata"]["annotations"] = json!({BETA: spoilt.to_string()});
        let new = to(&old, BETA);
        assert_eq!(new.pointer(good.0), Some(&good.1), "{spoilt}: {new}");
        let misfits = schemas::misfits(BETA, "Device", new.as_object().expect("object"));
        assert!(misfits.is_empty(), "{spoilt}: {misfits:?}");
    }
    // The whole, with a digest that anybody can find out.
    let mut old = sensor_tag();
    let body = json!({"spec": {"nodeName": 7}});
    let digest = digest(&Fields::from_iter(["spec", "status"].map(|field| (field.to_owned(), old[field].clone()))));
    old["metadata"]["annotations"] = json!({BETA: json!({"whole": {"digest": digest, "body": body}}).to_string()});
    assert_eq!(to(&old, BETA)["spec"], to(&sensor_tag(), BETA)["spec"]);
    // The same the other way.
    let mut new = thermometer();
    new["metadata"]["annotations"] = json!({ALPHA: json!({"spec": {"data": 7}}).to_string()});
    assert_eq!(to(&new, ALPHA)["spec"], to(&thermometer(), ALPHA)["spec"]);
}

#[test]
fn what_is_too_long_to_be_kept_can_be_read_and_is_not_written_back() {
    let mut new = thermometer();
    new["spec"]["methods"] = json!([{"name": "m", "description": "x".repeat(MAX_KEPT)}]);
    let old = to(&new, ALPHA);
    assert_eq!(old["spec"], to(&thermometer(), ALPHA)["spec"]);
    let error = convert(old, BETA).expect_err("its methods would be lost").to_string();
    assert!(error.contains("bytes that only") && error.contains("write it as devices.kubeedge.io/v1beta1"), "{error}");
}
