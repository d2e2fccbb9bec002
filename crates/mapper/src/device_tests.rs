use dmi::convert;
use serde_json::{Value as Object, json};

use super::*;

/// A property as drivers get it.
pub(crate) fn property(kind: Kind, visitor: Object) -> Property {
    Property {
        name: "p".to_owned(),
        kind,
        read_only: false,
        minimum: None,
        maximum: None,
        visitor: visitor.as_object().cloned().expect("an object"),
        desired: String::new(),
        collect_cycle: Duration::from_secs(1),
        report_cycle: Duration::from_secs(1),
        report_to_cloud: true,
        push: None,
    }
}

fn model(properties: &Object) -> proto::DeviceModel {
    let object =
        json!({"metadata": {"name": "m", "namespace": "default"}, "spec": {"protocol": "p", "properties": properties}});
    serde_json::from_value::<convert::DeviceModel>(object).expect("a model").message()
}

fn device(of: &Object, properties: &Object) -> Device {
    let name = |property: &Object| proto::DeviceProperty {
        name: property["name"].as_str().unwrap_or_default().to_owned(),
        collect_cycle: property["collect"].as_i64().unwrap_or_default(),
        report_cycle: property["report"].as_i64().unwrap_or_default(),
        ..proto::DeviceProperty::default()
    };
    let properties = properties.as_array().into_iter().flatten().map(name).collect();
    let message = proto::Device {
        name: "d".to_owned(),
        spec: Some(proto::DeviceSpec { properties, ..proto::DeviceSpec::default() }),
        ..proto::Device::default()
    };
    Device::new(&message, &model(of)).expect("a device")
}

#[test]
fn what_cannot_be_driven_is_named_and_the_rest_is_driven() {
    let of = json!([
        {"name": "good", "type": "INT", "accessMode": "ReadWrite"},
        {"name": "film", "type": "STREAM", "accessMode": "ReadOnly"},
        {"name": "odd", "type": "INT", "accessMode": "ReadOnly", "minimum": "low"},
    ]);
    let listed = json!([{"name": "good"}, {"name": "good"}, {"name": "film"}, {"name": "odd"}, {"name": "lost"}]);
    let device = device(&of, &listed);
    assert_eq!(device.id.to_string(), "default/d");
    assert_eq!(device.properties.len(), 1);
    let unusable = device.unusable.join("; ");
    for part in ["good is listed twice", "\"STREAM\"", "\"low\"", "lost is not in model m"] {
        assert!(unusable.contains(part), "{part}: {unusable}");
    }
}

#[test]
fn cycles_are_milliseconds_within_bounds() {
    let of = json!([{"name": "a", "type": "INT"}, {"name": "b", "type": "INT"}, {"name": "c", "type": "INT"}]);
    let listed = json!([{"name": "a"}, {"name": "b", "collect": 250, "report": 1}, {"name": "c", "collect": -5, "report": i64::MAX}]);
    let cycles: Vec<_> = device(&of, &listed)
        .properties
        .iter()
        .map(|property| (property.collect_cycle, property.report_cycle))
        .collect();
    let (second, quarter) = (Duration::from_secs(1), Duration::from_millis(250));
    assert_eq!(cycles, [(second, second), (quarter, SHORTEST_CYCLE), (second, LONGEST_CYCLE)]);
}

#[test]
fn a_device_is_bounded() {
    let properties = vec![proto::DeviceProperty::default(); MAX_PROPERTIES + 1];
    let spec = Some(proto::DeviceSpec { properties, ..proto::DeviceSpec::default() });
    let message = proto::Device { name: "d".to_owned(), spec, ..proto::Device::default() };
    let refused = Device::new(&message, &proto::DeviceModel::default());
    assert_eq!(refused, Err(DeviceError::TooManyProperties(Id::new("", "d"), MAX_PROPERTIES + 1)));
    let nameless = Device::new(&proto::Device::default(), &proto::DeviceModel::default());
    assert_eq!(nameless, Err(DeviceError::NoName));
}

#[test]
fn what_is_out_of_bounds_never_reaches_a_device() {
    let of = json!([
        {"name": "t", "type": "FLOAT", "accessMode": "ReadWrite", "minimum": "-50", "maximum": "150"},
        {"name": "n", "type": "INT", "accessMode": "ReadWrite", "maximum": "9"},
        {"name": "r", "type": "INT", "accessMode": "ReadOnly"},
        {"name": "b", "type": "BYTES", "accessMode": "ReadWrite"},
    ]);
    let device = device(&of, &json!([{"name": "t"}, {"name": "n"}, {"name": "r"}, {"name": "b"}]));
    let [t, n, r, b] = device.properties.as_slice() else { panic!("four properties") };
    assert_eq!(t.value_to_write("150"), Ok(Value::Number(150.0)));
    assert_eq!(t.value_to_write("-50"), Ok(Value::Number(-50.0)));
    assert_eq!(n.value_to_write("-99"), Ok(Value::Int(-99)));
    let said = |refused: Result<Value, ValueError>| refused.expect_err("refused").to_string();
    assert_eq!(said(t.value_to_write("150.5")), "150.5 is out of bounds for property t: its model allows -50 to 150");
    assert_eq!(said(t.value_to_write("-51")), "-51 is out of bounds for property t: its model allows -50 to 150");
    assert_eq!(said(n.value_to_write("10")), "10 is out of bounds for property n: its model allows anything to 9");
    assert!(said(n.value_to_write("1.5")).contains("no value of property n, which is of type int"));
    assert!(said(r.value_to_write("1")).contains("property r is ReadOnly"));
    assert!(said(b.value_to_write("xyz")).contains("hexadecimal"));
}
