//! Protobuf request bodies, read into JSON by a table of field numbers.
//!
//! kubectl sends `create SUBCOMMAND`, `drain`, `auth can-i` and the like in protobuf and does not fall back to JSON. Only
//! reading is needed: every answer may be JSON.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::catalog::unpack;

/// Dumped from a kube-apiserver 1.36.2 by `cargo xtask gen-kube`.
const MESSAGES: &[u8] = include_bytes!("data/protobuf.json.gz");
/// How a protobuf body of Kubernetes begins.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused.
const MAX_DEPTH: usize = 64;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Messages by full name, each a map of field numbers to (JSON name, type).
type Messages = HashMap<String, HashMap<u64, (String, String)>>;

/// The object in a body, with its apiVersion and kind.
///
/// # Errors
/// 400 for bytes that are no such message, and for kinds that are not served.
pub fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let rest =
        body.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not begin with the Kubernetes protobuf prefix"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(rest) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name =
        message_name(&api_version, &kind).ok_or_else(|| wrong(&format!("{api_version} {kind} is not known here")))?;
    let mut object = message(&name, raw, 0)?;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    Ok(object)
}

fn message_name(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let short = group.split('.').next().unwrap_or_default();
    let candidates = [
        format!("io.k8s.api.{short}.{version}.{kind}"),
        format!("io.k8s.apiextensions_apiserver.pkg.apis.{short}.{version}.{kind}"),
        format!("{META}.{kind}"),
    ];
    candidates.into_iter().find(|name| messages().contains_key(name))
}

fn messages() -> &'static Messages {
    static TABLE: OnceLock<Messages> = OnceLock::new();
    TABLE.get_or_init(|| {
        let data = unpack(MESSAGES);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let messages = data.as_object().into_iter().flatten().map(|(name, fields)| {
            let fields = fields.as_object().into_iter().flatten();
            let fields = fields.filter_map(|(n, field)| Some((n.parse().ok()?, (text(&field[0]), text(&field[1])))));
            (name.clone(), fields.collect())
        });
        messages.collect()
    })
}

/// One field on the wire.
enum Wire<'a> {
    Number(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), ApiError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u64, Wire<'a>), ApiError> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Wire::Number(varint(&mut self.0)?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?).map_err(|_| wrong("a length is too large"))?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(|| wrong("it ends within a field"))?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(wrong(&format!("wire type {other} is not known"))),
        };
        Ok((tag >> 3, value))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ApiError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or_else(|| wrong("it ends within a field"))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

fn varint(input: &mut &[u8]) -> Result<u64, ApiError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first().ok_or_else(|| wrong("it ends within a number"))?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(wrong("a number is too long"))
}

/// A message as JSON, with the forms that Kubernetes gives to some of its types.
fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, ApiError> {
    if depth > MAX_DEPTH {
        return Err(wrong("it is nested too deeply"));
    }
    let fields = messages().get(name).ok_or_else(|| wrong(&format!("{name} is not known here")))?;
    let mut object = Map::new();
    for field in Fields(bytes) {
        let (number, value) = field?;
        // Fields of newer versions are skipped.
        if let Some((field, kind)) = fields.get(&number) {
            put(&mut object, field, kind, value, depth)?;
        }
    }
    Ok(special(name, object))
}

fn special(name: &str, mut object: Map<String, Value>) -> Value {
    let number =
        |object: &Map<String, Value>, field: &str| object.get(field).and_then(Value::as_i64).unwrap_or_default();
    match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" => object.remove("string").unwrap_or_else(|| json!("0")),
        "IntOrString" if name.contains("intstr") => {
            if number(&object, "type") == 1 {
                object.remove("strVal").unwrap_or_else(|| json!(""))
            } else {
                json!(number(&object, "intVal"))
            }
        }
        "Time" | "MicroTime" if name.starts_with(META) => {
            let (seconds, nanos) = (number(&object, "seconds"), number(&object, "nanos"));
            // A zero time is written as an empty message and means that there is none.
            match Timestamp::new(seconds, i32::try_from(nanos).unwrap_or_default()) {
                Ok(_) if seconds == 0 && nanos == 0 => Value::Null,
                Ok(at) if name.ends_with("MicroTime") => json!(at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()),
                Ok(at) => json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
                Err(_) => Value::Null,
            }
        }
        "Duration" if name.starts_with(META) => json!(format!("{}s", number(&object, "duration") as f64 / 1e9)),
        "RawExtension" | "JSON" | "FieldsV1" => {
            let raw = object.remove("raw").or_else(|| object.remove("Raw"));
            let bytes = raw.as_ref().and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
        }
        "Verbs" | "ExtraValue" => object.remove("items").unwrap_or_else(|| json!([])),
        "JSONSchemaPropsOrBool" => {
            object.remove("schema").unwrap_or_else(|| object.remove("allows").unwrap_or(json!(false)))
        }
        "JSONSchemaPropsOrArray" => {
            object.remove("schema").or_else(|| object.remove("jSONSchemas")).unwrap_or(Value::Null)
        }
        "JSONSchemaProps" => {
            let names: Vec<String> = object.keys().filter(|key| key.starts_with("xKubernetes")).cloned().collect();
            for name in names {
                let dashed = name.chars().fold(String::new(), |mut text, letter| {
                    if letter.is_ascii_uppercase() {
                        text.push('-');
                    }
                    text.push(letter.to_ascii_lowercase());
                    text
                });
                if let Some(value) = object.remove(&name) {
                    object.insert(dashed, value);
                }
            }
            if let Some(reference) = object.remove("ref") {
                object.insert("$ref".to_owned(), reference);
            }
            Value::Object(object)
        }
        _ => Value::Object(object),
    }
}

fn put(
    object: &mut Map<String, Value>,
    field: &str,
    kind: &str,
    value: Wire<'_>,
    depth: usize,
) -> Result<(), ApiError> {
    if let Some(inner) = kind.strip_prefix("repeated ") {
        let list = object.entry(field).or_insert_with(|| json!([]));
        let list = list.as_array_mut().ok_or_else(|| wrong("a list is none"))?;
        return match (value, inner) {
            (Wire::Bytes(mut packed), "int32" | "int64" | "bool") => {
                while !packed.is_empty() {
                    list.push(scalar(inner, Wire::Number(varint(&mut packed)?), depth)?);
                }
                Ok(())
            }
            (value, inner) => {
                list.push(scalar(inner, value, depth)?);
                Ok(())
            }
        };
    }
    if let Some(inner) = kind.strip_prefix("map<string,").and_then(|inner| inner.strip_suffix('>')) {
        let Wire::Bytes(entry) = value else { return Err(wrong("a map entry is no message")) };
        let (mut key, mut item) = (String::new(), None);
        for field in Fields(entry) {
            match field? {
                (1, Wire::Bytes(text)) => key = utf8(text)?,
                (2, value) => item = Some(scalar(inner, value, depth)?),
                _ => {}
            }
        }
        let empty = || if inner.contains('.') { message(inner, &[], depth + 1) } else { Ok(json!("")) };
        let item = item.map_or_else(empty, Ok)?;
        let map = object.entry(field).or_insert_with(|| json!({}));
        map.as_object_mut().ok_or_else(|| wrong("a map is none"))?.insert(key, item);
        return Ok(());
    }
    let new = scalar(kind, value, depth)?;
    if !is_unset(field, &new) {
        object.insert(field.to_owned(), new);
    }
    Ok(())
}

/// Flags that are no pointers in Go: unset, they are written as false.
const PLAIN_FLAGS: [&str; 10] = [
    "stdin",
    "stdinOnce",
    "tty",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "readOnly",
    "paused",
    "unschedulable",
    "publishNotReadyAddresses",
];
/// Numbers that are no pointers in Go: unset, they are written as 0.
const PLAIN_NUMBERS: [&str; 9] = [
    "hostPort",
    "generation",
    "observedGeneration",
    "minReadySeconds",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
];

/// Whether a value says that there is nothing. Go writes fields that are no pointers even when they are unset, for example as
/// an empty text; in JSON it leaves them out. `storageClassName` is a pointer, and empty has a meaning there.
fn is_unset(field: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() && field != "storageClassName",
        Value::Number(number) => number.as_i64() == Some(0) && PLAIN_NUMBERS.contains(&field),
        Value::Bool(flag) => !flag && PLAIN_FLAGS.contains(&field),
        _ => false,
    }
}

fn scalar(kind: &str, value: Wire<'_>, depth: usize) -> Result<Value, ApiError> {
    Ok(match (kind, value) {
        ("string", Wire::Bytes(text)) => Value::String(utf8(text)?),
        ("bytes", Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        ("bool", Wire::Number(number)) => Value::Bool(number != 0),
        // Two's complement, as protobuf has it.
        ("int32" | "int64", Wire::Number(number)) => json!(number as i64),
        ("double", Wire::Fixed64(bits)) => json!(f64::from_bits(bits)),
        ("float", Wire::Fixed32(bits)) => json!(f32::from_bits(bits)),
        (name, Wire::Bytes(bytes)) if name.contains('.') => message(name, bytes, depth + 1)?,
        (kind, _) => return Err(wrong(&format!("a field is no {kind}"))),
    })
}

fn utf8(bytes: &[u8]) -> Result<String, ApiError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| wrong("a text is not UTF-8"))
}

fn wrong(why: &str) -> ApiError {
    ApiError::bad_request(format!("the protobuf body cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_as_kubectl_sends_it() {
        // metadata{name, creationTimestamp: empty}, data{k: v}
        let metadata = [field(1, b"cm"), field(8, b"")].concat();
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &entry)].concat();
        let object = decode(&body("v1", "ConfigMap", &raw)).expect("ConfigMap");
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"k": "v"}})
        );
    }

    #[test]
    fn texts_that_go_writes_empty_are_unset_but_values_of_maps_stay() {
        // metadata{name, generateName: ""}, data{k: ""}
        let metadata = [field(1, b"cm"), field(2, b"")].concat();
        let raw = [field(1, &metadata), field(2, &[field(1, b"k"), field(2, b"")].concat())].concat();
        let object = decode(&body("v1", "ConfigMap", &raw)).expect("ConfigMap");
        assert_eq!(object["metadata"], json!({"name": "cm"}));
        assert_eq!(object["data"], json!({"k": ""}));
    }

    #[test]
    fn numbers_and_quantities() {
        // DeleteOptions{gracePeriodSeconds: 0}
        let object = decode(&body("v1", "DeleteOptions", &[0x08, 0x00])).expect("DeleteOptions");
        assert_eq!(object["gracePeriodSeconds"], 0);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in
            [&b""[..], b"k8s\0\xff", b"{}", &body("v1", "Nothing", b""), &body("v1", "ConfigMap", &[0x0a, 0x50, 1])]
        {
            assert_eq!(decode(bytes).expect_err("garbage").code, 400, "{bytes:?}");
        }
    }

    #[test]
    fn fuzz_decode() {
        bolero::check!().for_each(|input: &[u8]| {
            let _ = decode(input);
            let _ = decode(&[MAGIC, input].concat());
            let _ = decode(&body("v1", "Pod", &input[..input.len().min(200)]));
        });
    }
}
