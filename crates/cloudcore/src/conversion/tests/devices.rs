//! Devices there and back, and what either side changes.

use super::*;

#[test]
fn an_old_device_means_the_same_in_v1beta1() {
    let old = sensor_tag();
    let new = to(&old, BETA);
    assert_eq!(
        new["spec"],
        json!({
            "deviceModelRef": {"name": "sensor-tag-model"},
            "nodeName": "node1",
            "protocol": {"protocolName": "modbus", "configData": {"slaveID": 1, "serialPort": "/dev/ttyS0", "baudRate": 9600, "dataBits": 8, "parity": "even",
                "stopBits": 1, "collectTimeout": 50, "customizedValues": {"def1": "def1-val"}}},
            "properties": [
                {"name": "temperature", "collectCycle": 500, "reportCycle": 1000, "reportToCloud": true, "visitors": {"protocolName": "modbus", "configData":
                    {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.5, "isSwap": true, "isRegisterSwap": true}}},
                {"name": "temperature-enable", "reportToCloud": true, "desired": {"value": "OFF", "metadata": {"type": "string"}}, "visitors": {"protocolName": "modbus", "configData":
                    {"register": "DiscreteInputRegister", "offset": 3, "limit": 1, "customizedValues": {"x": 1}}}},
            ],
        })
    );
    assert_eq!(kept(&new, ALPHA), json!({"spec": {"data": old["spec"]["data"]}}), "what has no place, and no more");
    assert_eq!(new["status"]["twins"][0]["reported"]["value"], "unknown");
    assert_eq!(to(&new, ALPHA), old);
}

#[test]
fn a_new_device_can_be_seen_and_changed_by_old_clients() {
    let new = thermometer();
    let mut old = to(&new, ALPHA);
    assert_eq!(
        old["spec"]["protocol"],
        json!({"modbus": {"slaveID": 1}, "common": {"com": {"baudRate": 9600, "serialPort": "/dev/ttyS0"}}})
    );
    assert_eq!(old["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"], json!(["edge-1"]));
    assert_eq!(
        old["spec"]["propertyVisitors"][0],
        json!({"propertyName": "temperature", "collectCycle": 1000, "reportCycle": 2000,
        "modbus": {"register": "CoilRegister", "offset": 2, "scale": 1}})
    );
    assert_eq!(old["status"]["twins"][1], json!({"propertyName": "humidity", "desired": {"value": "1"}}));
    assert_eq!(to(&old, BETA), new);

    // Somebody changes what both can say; the rest stays.
    old["spec"]["protocol"]["modbus"]["slaveID"] = json!(9);
    old["spec"]["propertyVisitors"][0]["modbus"]["offset"] = json!(4);
    old["status"]["twins"][0]["desired"]["value"] = json!("25");
    old["spec"]["propertyVisitors"].as_array_mut().expect("list").remove(2);
    let mut expected = new.clone();
    expected["spec"]["protocol"]["configData"]["slaveID"] = json!(9);
    expected["spec"]["properties"][0]["visitors"]["configData"]["offset"] = json!(4);
    expected["spec"]["properties"][0]["desired"]["value"] = json!("25");
    expected["spec"]["properties"].as_array_mut().expect("list").remove(2);
    assert_eq!(to(&old, BETA), expected);

    // Another protocol: what was kept of the first contradicts it.
    old["spec"]["protocol"] = json!({"opcua": {"url": "opc.tcp://x"}});
    assert_eq!(
        to(&old, BETA)["spec"]["protocol"],
        json!({"protocolName": "opcua", "configData": {"url": "opc.tcp://x"}})
    );
}

#[test]
fn what_new_clients_change_counts_for_old_ones() {
    let mut old = sensor_tag();
    old["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["key"] = json!("kubernetes.io/hostname");
    let mut new = to(&old, BETA);
    assert_eq!(new["spec"]["nodeName"], "node1");
    assert_eq!(kept(&new, ALPHA)["nodeSelector"], old["spec"]["nodeSelector"]);
    assert_eq!(to(&new, ALPHA), old);
    new["spec"]["nodeName"] = json!("node2");
    new["spec"]["properties"][0]["desired"] = json!({"value": "3"});
    let changed = to(&new, ALPHA);
    let expressions = &changed["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"];
    assert_eq!(*expressions, json!([{"key": "", "operator": "In", "values": ["node2"]}]));
    assert_eq!(changed["spec"]["data"], old["spec"]["data"]);
    assert_eq!(changed["status"]["twins"][0], json!({"propertyName": "temperature", "desired": {"value": "3"}}));
    assert_eq!(to(&changed, BETA)["spec"], new["spec"]);
}

#[test]
fn the_cloud_hears_of_every_property_of_an_old_device() {
    let mut old = sensor_tag();
    let twin = json!({"propertyName": "without-visitor", "desired": {"value": "1"}});
    old["status"]["twins"].as_array_mut().expect("list").push(twin);
    let mut new = to(&old, BETA);
    for property in new["spec"]["properties"].as_array().expect("list") {
        assert_eq!(property["reportToCloud"], true, "{property}");
    }
    assert_eq!(to(&new, ALPHA), old);
    new["spec"]["properties"][0]["reportToCloud"] = json!(false);
    assert_eq!(to(&to(&new, ALPHA), BETA)["spec"]["properties"][0]["reportToCloud"], false);

    // What the new version says counts, also if it says nothing; a property that an old client adds is reported.
    let beta = |properties: Value| object(BETA, "Device", json!({"spec": {"properties": properties}}));
    let new = beta(
        json!([{"name": "yes", "reportToCloud": true}, {"name": "no", "reportToCloud": false}, {"name": "nothing"}]),
    );
    let mut old = to(&new, ALPHA);
    assert_eq!(
        kept(&old, BETA),
        json!({"properties": {"no": {"reportToCloud": false}, "nothing": {"reportToCloud": null}}})
    );
    assert_eq!(to(&old, BETA), new);
    old["spec"]["propertyVisitors"].as_array_mut().expect("list").push(json!({"propertyName": "added"}));
    let changed = to(&old, BETA);
    let reported: Vec<&Value> =
        changed["spec"]["properties"].as_array().expect("list").iter().map(|p| &p["reportToCloud"]).collect();
    assert_eq!(reported, [&json!(true), &json!(false), &Value::Null, &json!(true)]);
    // A twin is left of a property whose visitor an old client took away.
    let new = beta(json!([{"name": "quiet", "desired": {"value": "1"}}]));
    let mut old = to(&new, ALPHA);
    old["spec"]["propertyVisitors"] = json!([]);
    assert_eq!(to(&old, BETA)["spec"]["properties"], json!([{"name": "quiet", "desired": {"value": "1"}}]));
}

#[test]
fn settings_without_one_leave_nothing_behind() {
    for protocol in [json!({"configData": {}}), json!({"protocolName": "own", "configData": {}})] {
        let properties = json!([{"name": "t", "reportToCloud": true, "visitors": protocol}]);
        let new = object(BETA, "Device", json!({"spec": {"protocol": protocol, "properties": properties}}));
        let back = to(&to(&new, ALPHA), BETA);
        assert!(back["metadata"].get("annotations").is_none(), "{back}");
        assert_eq!(back["spec"]["protocol"]["protocolName"], new["spec"]["protocol"]["protocolName"]);
    }
}
