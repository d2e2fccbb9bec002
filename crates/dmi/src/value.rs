//! Free configuration: JSON values as wrapped well-known types, and back.

use std::collections::BTreeMap;

use prost::{Message, Name};
use prost_types::Any;
use serde_json::{Map, Value};

use crate::v1beta1::CustomizedValue;

/// A JSON value that has no place in a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{key:?} is {is}: a mapper can be given texts, numbers and booleans only; write its parts as keys of their own"
)]
pub struct NoPlace {
    /// Its key.
    pub key: String,
    /// What it is.
    pub is: &'static str,
}

/// Free configuration as mappers get it.
///
/// A whole number beyond 2^24 that a 32-bit float would change goes as `Int64Value`, all other numbers as `FloatValue` (KubeEdge v1.23 has
/// `FloatValue` for all, and loses digits).
///
/// # Errors
/// A value is an object, a list or null.
pub fn customized(data: &Map<String, Value>) -> Result<CustomizedValue, NoPlace> {
    let wrapped = data.iter().map(|(key, value)| {
        let refuse = |is| NoPlace { key: key.clone(), is };
        let any = match value {
            Value::String(text) => wrap(text),
            Value::Bool(flag) => wrap(flag),
            Value::Number(number) => match number.as_i64() {
                Some(whole) if (whole as f32) as i64 != whole => wrap(&whole),
                _ => wrap(&(number.as_f64().unwrap_or_default() as f32)),
            },
            Value::Null => return Err(refuse("null")),
            Value::Array(_) => return Err(refuse("a list")),
            Value::Object(_) => return Err(refuse("an object")),
        };
        Ok((key.clone(), any))
    });
    Ok(CustomizedValue { data: wrapped.collect::<Result<BTreeMap<_, _>, _>>()? })
}

/// The same as JSON again. What is of another type than edgecore sends is left out.
pub fn plain(data: &CustomizedValue) -> Map<String, Value> {
    data.data.iter().filter_map(|(key, any)| Some((key.clone(), unwrap(any)?))).collect()
}

fn wrap<M: Message + Name>(value: &M) -> Any {
    Any { type_url: M::type_url(), value: value.encode_to_vec() }
}

fn unwrap(any: &Any) -> Option<Value> {
    let name = any.type_url.rsplit('/').next()?;
    let bytes = any.value.as_slice();
    Some(match name.strip_prefix("google.protobuf.")? {
        "StringValue" => String::decode(bytes).ok()?.into(),
        "BoolValue" => bool::decode(bytes).ok()?.into(),
        // By its shortest text: 0.1 stays 0.1. A whole number has no point.
        "FloatValue" => number(f32::decode(bytes).ok()?.to_string().parse().ok()?),
        "DoubleValue" => number(f64::decode(bytes).ok()?),
        "Int32Value" => i32::decode(bytes).ok()?.into(),
        "Int64Value" => i64::decode(bytes).ok()?.into(),
        _ => return None,
    })
}

fn number(value: f64) -> Value {
    let whole = value as i64;
    if whole as f64 == value { whole.into() } else { value.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn what_goes_comes_back() {
        let data = map(
            json!({"ip": "127.0.0.1", "port": 502, "ratio": 0.1, "big": 16_777_217, "on": true, "less": -3, "": ""}),
        );
        let sent = customized(&data).expect("plain values");
        assert_eq!(plain(&sent), data);
        let kinds: Vec<&str> = sent.data.values().map(|any| any.type_url.as_str()).collect();
        assert_eq!(kinds[1], "type.googleapis.com/google.protobuf.Int64Value");
        assert_eq!(kinds[5], "type.googleapis.com/google.protobuf.FloatValue");
    }

    #[test]
    fn what_has_no_place_is_named() {
        for (value, is) in
            [(json!({"a": {"b": 1}}), "an object"), (json!({"a": [1]}), "a list"), (json!({"a": null}), "null")]
        {
            assert_eq!(customized(&map(value)), Err(NoPlace { key: "a".to_owned(), is }));
        }
    }

    #[test]
    fn what_is_broken_is_left_out() {
        let any =
            |name: &str, value: &[u8]| Any { type_url: format!("x/google.protobuf.{name}"), value: value.to_vec() };
        let data = [("a", any("StringValue", &[0xff])), ("b", any("Struct", &[])), ("c", any("Int32Value", &[8, 7]))];
        let data = data.map(|(key, any)| (key.to_owned(), any)).into();
        assert_eq!(plain(&CustomizedValue { data }), map(json!({"c": 7})));
    }
}
