//! The examples of the repository can be used as they are.

use std::path::Path;

use api::mapper::Config;
use dmi::convert;

use crate::Device;

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("example")).expect("an example")
}

/// Of a file with a model and a device.
fn device(text: &str, protocol: &str) -> Device {
    let (model, device) = text.split_once("\n---\n").expect("two documents");
    let parse = |text: &str| api::document::parse(text).expect("YAML");
    let model: convert::DeviceModel = serde_json::from_value(parse(model)).expect("a model");
    let device: convert::Device = serde_json::from_value(parse(device)).expect("a device");
    let message = device.message(&model).expect("a message");
    let named = message.spec.as_ref().and_then(|spec| spec.protocol.as_ref()).map(|named| named.protocol_name.as_str());
    assert_eq!(named, Some(protocol));
    let device = Device::new(&message, &model.message()).expect("a device");
    assert!(device.unusable.is_empty(), "{:?}", device.unusable);
    for property in device.properties.iter().filter(|property| !property.desired.is_empty()) {
        property.value_to_write(&property.desired).expect("a good wish");
    }
    device
}

#[test]
fn modbus() {
    let config = config(include_str!("../../../examples/mapper-modbus.yaml"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let device = device(include_str!("../../../examples/boiler-modbus.yaml"), &config.protocol);
    crate::modbus::check(&device).expect("all of it has a place");
    assert_eq!(device.properties.len(), 4);
}

#[test]
fn simulated() {
    let config = config(include_str!("../../../examples/mapper-virtual.yaml"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(device(include_str!("../../../examples/room-virtual.yaml"), &config.protocol).properties.len(), 2);
}
