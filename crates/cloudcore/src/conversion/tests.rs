//! Objects as people write them, and whatever else the schemas allow, there and back.

use serde_json::{Value, json};

mod devices;
mod generated;
mod models;
mod refusals;
mod reviews;

use super::{ALPHA, BETA, convert};

fn object(version: &str, kind: &str, body: Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "d", "namespace": "default", "labels": {"a": "b"}}});
    object.as_object_mut().expect("object").extend(body.as_object().expect("body").clone());
    object
}

fn to(object: &Value, version: &str) -> Value {
    convert(object.clone(), version).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn kept(object: &Value, version: &str) -> Value {
    object["metadata"]["annotations"][version]
        .as_str()
        .map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON"))
}

/// The device of KubeEdge's documents of that time.
fn sensor_tag() -> Value {
    object(
        ALPHA,
        "Device",
        json!({
            "spec": {
                "deviceModelRef": {"name": "sensor-tag-model"},
                "protocol": {
                    "modbus": {"slaveID": 1},
                    "common": {"com": {"serialPort": "/dev/ttyS0", "baudRate": 9600, "dataBits": 8, "parity": "even", "stopBits": 1},
                        "collectTimeout": 50, "customizedValues": {"def1": "def1-val"}},
                },
                "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "", "operator": "In", "values": ["node1"]}]}]},
                "propertyVisitors": [
                    {"propertyName": "temperature", "collectCycle": 500, "reportCycle": 1000,
                        "modbus": {"register": "CoilRegister", "offset": 2, "limit": 1, "scale": 1.5, "isSwap": true, "isRegisterSwap": true}},
                    {"propertyName": "temperature-enable", "modbus": {"register": "DiscreteInputRegister", "offset": 3, "limit": 1},
                        "customizedValues": {"x": 1}},
                ],
                "data": {"dataTopic": "$ke/events/device/+/data/update", "dataProperties": [{"propertyName": "pressure", "metadata": {"type": "int"}}]},
            },
            "status": {"twins": [{"propertyName": "temperature-enable", "desired": {"value": "OFF", "metadata": {"type": "string"}},
                "reported": {"value": "unknown", "metadata": {"timestamp": "1550049403598", "type": "string"}}}]},
        }),
    )
}

/// One with all that only v1beta1 has.
fn thermometer() -> Value {
    object(
        BETA,
        "Device",
        json!({
            "spec": {
                "deviceModelRef": {"name": "thermometer"},
                "nodeName": "edge-1",
                "protocol": {"protocolName": "modbus", "configData": {"communicateMode": "rtu", "baudRate": 9600, "slaveID": 1, "serialPort": "/dev/ttyS0", "protocolID": 1, "isSwap": true}},
                "properties": [
                    {"name": "temperature", "collectCycle": 1000, "reportCycle": 2000, "reportToCloud": true,
                        "desired": {"value": "21", "metadata": {"type": "int"}},
                        "visitors": {"protocolName": "modbus", "configData": {"register": "CoilRegister", "offset": 2, "scale": 1, "unitOfOurOwn": "K", "serialPort": "/dev/ttyS9"}},
                        "pushMethod": {"mqtt": {"address": "tcp://127.0.0.1:1883", "topic": "t", "qos": 0, "retained": false}}},
                    {"name": "humidity", "desired": {"value": "1"}},
                    {"name": "plain"},
                ],
                "methods": [{"name": "set", "description": "sets", "propertyNames": ["temperature"]}],
                "stateReport": {"reportToCloud": true, "reportCycle": 5},
            },
            "status": {"reportToCloud": true, "reportCycle": 7},
        }),
    )
}
