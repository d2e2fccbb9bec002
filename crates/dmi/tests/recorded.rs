//! What KubeEdge v1.23.1 made of objects, recorded between its edgecore and a mapper (`recorded.jsonl`: the object, its model, and the
//! request in base64), and what is made of them here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dmi::convert::{Device, DeviceModel};
use dmi::v1beta1 as proto;
use prost::Message;
use serde_json::Value;

#[test]
fn objects_become_what_was_recorded() {
    let mut devices = 0;
    for line in include_str!("recorded.jsonl").lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        let request = STANDARD.decode(record["request"].as_str().expect("recorded")).expect("base64");
        if record["model"].is_null() {
            let object: DeviceModel = serde_json::from_value(record["object"].clone()).expect("a model");
            let recorded = proto::CreateDeviceModelRequest::decode(request.as_slice()).expect("decoded");
            assert_eq!(Some(object.message()), recorded.model);
            continue;
        }
        let object: Device = serde_json::from_value(record["object"].clone()).expect("a device");
        let model: DeviceModel = serde_json::from_value(record["model"].clone()).expect("a model");
        let recorded = proto::RegisterDeviceRequest::decode(request.as_slice()).expect("decoded");
        let mut recorded = recorded.device.expect("a device");
        // The one difference: KubeEdge rounds this number to 16777216.
        let of_device = |device: &mut proto::Device| {
            let protocol = device.spec.as_mut().and_then(|spec| spec.protocol.as_mut()).expect("a protocol");
            protocol.config_data.as_mut().expect("configuration").data.remove("big")
        };
        let mut made = object.message(&model).expect("converted");
        let (ours, theirs) = (of_device(&mut made), of_device(&mut recorded));
        assert_eq!(ours.map(|any| i64::decode(any.value.as_slice())), Some(Ok(16_777_217)));
        assert!(theirs.is_some_and(|any| any.type_url.ends_with("FloatValue")));
        assert_eq!(made, recorded);
        devices += 1;
    }
    assert!(devices > 4, "{devices}");
}
