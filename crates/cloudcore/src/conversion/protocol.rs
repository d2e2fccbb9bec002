//! Protocols of devices and visitors of properties. v1alpha2 has a field with fields for each protocol that it knows; v1beta1 has the
//! protocol's name and its settings as mappers want them, in `configData`.

use serde_json::{Value, json};

use super::CannotConvert;
use super::parts::{Fields, Way, put, put_all};

/// What v1alpha2 allows in a field.
enum Shape {
    Text,
    Integer,
    Number,
    Flag,
    TextOf(&'static [&'static str]),
    IntegerOf(&'static [i64]),
    Free,
    Texts,
    Fields(Table),
    List(&'static Shape),
}

type Table = &'static [(&'static str, Shape)];

/// Protocols that have their own fields.
type Protocols = [(&'static str, Table); 3];

const PROTOCOLS: Protocols = [
    (
        "opcua",
        &[
            ("url", Shape::Text),
            ("userName", Shape::Text),
            ("password", Shape::Text),
            ("securityPolicy", Shape::Text),
            ("securityMode", Shape::Text),
            ("certificate", Shape::Text),
            ("privateKey", Shape::Text),
            ("timeout", Shape::Integer),
        ],
    ),
    ("modbus", &[("slaveID", Shape::Integer)]),
    ("bluetooth", &[("macAddress", Shape::Text)]),
];

/// `protocol.common`, in the places that it has there.
const COM: Table = &[
    ("serialPort", Shape::Text),
    (
        "baudRate",
        Shape::IntegerOf(&[
            115_200, 57_600, 38_400, 19_200, 9600, 4800, 2400, 1800, 1200, 600, 300, 200, 150, 134, 110, 75, 50,
        ]),
    ),
    ("dataBits", Shape::IntegerOf(&[8, 7, 6, 5])),
    ("parity", Shape::TextOf(&["none", "even", "odd"])),
    ("stopBits", Shape::IntegerOf(&[1, 2])),
];
const TCP: Table = &[("ip", Shape::Text), ("port", Shape::Integer)];
const COMMON: Table = &[
    ("commType", Shape::Text),
    ("reconnTimeout", Shape::Integer),
    ("reconnRetryTimes", Shape::Integer),
    ("collectTimeout", Shape::Integer),
    ("collectRetryTimes", Shape::Integer),
    ("collectType", Shape::TextOf(&["sync", "async"])),
    ("customizedValues", Shape::Free),
];

const VISITORS: Protocols = [
    ("opcua", &[("nodeID", Shape::Text), ("browseName", Shape::Text)]),
    (
        "modbus",
        &[
            ("register", Shape::TextOf(&["CoilRegister", "DiscreteInputRegister", "InputRegister", "HoldingRegister"])),
            ("offset", Shape::Integer),
            ("limit", Shape::Integer),
            ("scale", Shape::Number),
            ("isSwap", Shape::Flag),
            ("isRegisterSwap", Shape::Flag),
        ],
    ),
    (
        "bluetooth",
        &[
            ("characteristicUUID", Shape::Text),
            ("dataWrite", Shape::Texts),
            (
                "dataConverter",
                Shape::Fields(&[
                    ("startIndex", Shape::Integer),
                    ("endIndex", Shape::Integer),
                    ("shiftLeft", Shape::Integer),
                    ("shiftRight", Shape::Integer),
                    (
                        "orderOfOperations",
                        Shape::List(&Shape::Fields(&[
                            ("operationType", Shape::Text),
                            ("operationValue", Shape::Number),
                        ])),
                    ),
                ]),
            ),
        ],
    ),
];
const CUSTOM: &str = "customizedProtocol";
const CUSTOM_VALUES: &str = "customizedValues";

/// `spec.protocol` of a v1alpha2 device in v1beta1.
pub fn up(protocol: &Value) -> Result<Option<Value>, CannotConvert> {
    let (name, mut config) = named("spec.protocol", protocol)?;
    let common = &protocol["common"];
    let is_flat = |field: &str| !matches!(field, "com" | "tcp");
    let flat = common.as_object().into_iter().flatten().filter(|(field, _)| is_flat(field));
    let inner = ["com", "tcp"].into_iter().filter_map(|part| common[part].as_object()).flatten();
    // A protocol of one's own may have settings of these names; they come first.
    flat.chain(inner).for_each(|(field, value)| {
        config.entry(field.clone()).or_insert_with(|| value.clone());
    });
    Ok(Some(beta(name, config)))
}

/// `spec.protocol` of a v1beta1 device in v1alpha2, as far as that has fields for it.
pub fn down(protocol: &Value) -> Result<Option<Value>, CannotConvert> {
    let Some((name, own)) = own(&PROTOCOLS, protocol) else { return Ok(Some(custom(protocol))) };
    let config = protocol["configData"].as_object();
    let pick = |table: Table| -> Fields {
        let fields = config.into_iter().flatten().filter(|(field, value)| fits_in(table, field, value));
        fields.map(|(field, value)| (field.clone(), value.clone())).collect()
    };
    let mut common = pick(COMMON);
    put_all(&mut common, "com", pick(COM));
    put_all(&mut common, "tcp", pick(TCP));
    let mut new = Fields::new();
    new.insert(name.to_owned(), Value::Object(pick(own)));
    put_all(&mut new, "common", common);
    Ok(Some(Value::Object(new)))
}

/// The visitor of a v1alpha2 property, without its name and cycles, in v1beta1.
pub fn visitor_up(visitor: &Value) -> Result<Option<Value>, CannotConvert> {
    let (name, mut config) = named("spec.propertyVisitors", visitor)?;
    if let Some(values) = visitor.get(CUSTOM_VALUES) {
        config.entry(CUSTOM_VALUES).or_insert_with(|| values.clone());
    }
    Ok(Some(beta(name, config)))
}

/// `visitors` of a v1beta1 property in v1alpha2, as far as that has fields for it.
pub fn visitor_down(visitors: &Value) -> Result<Option<Value>, CannotConvert> {
    let Some((name, own)) = own(&VISITORS, visitors) else { return Ok(Some(custom(visitors))) };
    let config = visitors["configData"].as_object();
    let fields = config.into_iter().flatten().filter(|(field, value)| fits_in(own, field, value));
    let fields: Fields = fields.map(|(field, value)| (field.clone(), value.clone())).collect();
    let mut new = Fields::new();
    new.insert(name.to_owned(), Value::Object(fields));
    put(
        &mut new,
        CUSTOM_VALUES,
        config.and_then(|config| config.get(CUSTOM_VALUES)).filter(|v| v.is_object()).cloned(),
    );
    Ok(Some(Value::Object(new)))
}

/// Gives settings back that do not survive the way to v1alpha2, whatever was changed there meanwhile, if the protocol is still the same.
pub fn give_back(kept: Option<&Value>, new: &mut Option<Value>, [down, up]: [Way; 2]) {
    let (Some(kept), Some(new)) = (kept, new) else { return };
    let Ok(Some(returned)) = down(kept).and_then(|old| old.as_ref().map_or(Ok(None), up)) else { return };
    if new["protocolName"] != kept["protocolName"] {
        return;
    }
    let is_lost = |field: &str, value: &Value| returned["configData"].get(field) != Some(value);
    let lost = kept["configData"].as_object().into_iter().flatten().filter(|(field, value)| is_lost(field, value));
    let mut config = new["configData"].as_object().cloned().unwrap_or_default();
    lost.for_each(|(field, value)| {
        config.entry(field.clone()).or_insert_with(|| value.clone());
    });
    if let Some(new) = new.as_object_mut() {
        put_all(new, "configData", config);
    }
}

fn beta(name: Option<Value>, config: Fields) -> Value {
    let mut new = Fields::new();
    put(&mut new, "protocolName", name);
    put_all(&mut new, "configData", config);
    Value::Object(new)
}

/// Name and settings of the one protocol that v1alpha2 names.
fn named(path: &str, from: &Value) -> Result<(Option<Value>, Fields), CannotConvert> {
    let fields = from.as_object().ok_or_else(|| CannotConvert::shape(path, "an object"))?;
    let known = ["opcua", "modbus", "bluetooth", CUSTOM];
    let mut found = known.into_iter().filter(|name| fields.get(*name).is_some_and(|value| !value.is_null()));
    let Some(name) = found.next() else { return Ok((None, Fields::new())) };
    if let Some(second) = found.next() {
        return Err(CannotConvert::new(
            path,
            &format!("{name} and {second} are both set, and v1beta1 has one protocol"),
            "remove one of them",
        ));
    }
    let own = fields[name].as_object().ok_or_else(|| CannotConvert::shape(&format!("{path}.{name}"), "an object"))?;
    if name != CUSTOM {
        return Ok((Some(json!(name)), own.clone()));
    }
    let config = match own.get("configData") {
        None | Some(Value::Null) => Fields::new(),
        Some(config) => {
            let wrong = || CannotConvert::shape(&format!("{path}.{name}.configData"), "an object");
            config.as_object().ok_or_else(wrong)?.clone()
        }
    };
    Ok((own.get("protocolName").filter(|name| !name.is_null()).cloned(), config))
}

/// The protocol if it is one with fields of its own, and those.
fn own(all: &Protocols, protocol: &Value) -> Option<(&'static str, Table)> {
    all.iter().find(|(name, _)| protocol["protocolName"] == *name).copied()
}

fn custom(protocol: &Value) -> Value {
    // Settings without one are none, and would be no protocol on the way back.
    let is_there = |value: &&Value| !value.is_null() && value.as_object().is_none_or(|settings| !settings.is_empty());
    let mut own = Fields::new();
    for field in ["protocolName", "configData"] {
        put(&mut own, field, protocol.get(field).filter(is_there).cloned());
    }
    if own.is_empty() { json!({}) } else { json!({CUSTOM: own}) }
}

fn fits_in(table: Table, field: &str, value: &Value) -> bool {
    table.iter().any(|(name, shape)| *name == field && shape.fits(value))
}

impl Shape {
    fn fits(&self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Integer => value.is_i64(),
            Self::Number => value.is_number(),
            Self::Flag => value.is_boolean(),
            Self::TextOf(allowed) => value.as_str().is_some_and(|text| allowed.contains(&text)),
            Self::IntegerOf(allowed) => value.as_i64().is_some_and(|number| allowed.contains(&number)),
            Self::Free => value.is_object(),
            Self::Texts => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
            Self::Fields(table) => {
                value.as_object().is_some_and(|fields| fields.iter().all(|(name, value)| fits_in(table, name, value)))
            }
            Self::List(item) => value.as_array().is_some_and(|list| list.iter().all(|value| item.fits(value))),
        }
    }
}
