//! v1alpha2 of the kinds of `devices.kubeedge.io`, for clients that know nothing newer: converted both ways by a webhook.
//!
//! The API server keeps v1beta1. [`convert`] is pure: `device`, `model` and `status` know the kinds, `protocol` what devices and
//! properties have to say about protocols, `parts` how something that only one version can say survives the other, `schemas` what
//! may come back of it. [`webhook`] answers the API server, [`install`] tells it whom to ask. Read `parts` and `device` first.
//!
//! What the wanted version has no field for is kept in an annotation that is named after the version that it is of. Coming back, a
//! kept part counts if the other version was not changed in that part; what the other version cannot say at all always counts.

mod device;
pub mod install;
mod model;
mod parts;
mod protocol;
mod schemas;
mod status;
#[cfg(test)]
mod tests;
pub mod webhook;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use parts::{Fields, is_same, normal};

/// The version that old clients know.
pub const ALPHA: &str = "devices.kubeedge.io/v1alpha2";
/// The version that is kept.
pub const BETA: &str = "devices.kubeedge.io/v1beta1";
/// The API server takes 256 KiB of annotations; the user's own need room too.
const MAX_KEPT: usize = 192 << 10;
/// The whole object in the other version, for when its parts alone do not bring it back.
const WHOLE: &str = "whole";
const BODY: &str = "body";
const DIGEST: &str = "digest";
/// In the place of parts that are too long to be kept: how many bytes.
const TOO_LONG: &str = "tooLong";
/// The parts that can be kept, the one that counts for all others last.
const PARTS: [&str; 9] =
    ["spec", "status", "object", "nodeName", "nodeSelector", "protocol", "properties", "propertyVisitors", WHOLE];

/// An object has no counterpart in the other version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {reason}: {cure}")]
pub struct CannotConvert {
    field: String,
    reason: String,
    cure: String,
}

impl CannotConvert {
    fn new(field: &str, reason: &str, cure: &str) -> Self {
        Self { field: field.to_owned(), reason: reason.to_owned(), cure: cure.to_owned() }
    }

    fn shape(field: &str, expected: &str) -> Self {
        Self::new(field, "it is of another type than its schema says", &format!("it must be {expected}"))
    }

    fn at_property(mut self, name: &str) -> Self {
        self.field = format!("{} (of property {name:?})", self.field);
        self
    }
}

type Translate = fn(&Fields, &Fields) -> Result<(Fields, Fields), CannotConvert>;

/// An object of `devices.kubeedge.io` in this version.
///
/// # Errors
/// Names the field that has no counterpart, why, and what to do.
pub fn convert(object: Value, wanted: &str) -> Result<Value, CannotConvert> {
    let version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
    if version == wanted {
        return Ok(object);
    }
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let ways: [Translate; 2] = match kind.as_str() {
        "Device" => [device::up, device::down],
        "DeviceModel" => [model::up, model::down],
        "DeviceStatus" => [status::up, status::down],
        _ => {
            let why = format!("{kind:?} is none of the kinds that are converted here");
            return Err(CannotConvert::new("kind", &why, "Device, DeviceModel and DeviceStatus are"));
        }
    };
    let [there, back] = match (version.as_str(), wanted) {
        (ALPHA, BETA) => ways,
        (BETA, ALPHA) => [ways[1], ways[0]],
        _ => {
            let why = format!("there is no way from {version:?} to {wanted:?}");
            return Err(CannotConvert::new("apiVersion", &why, &format!("use {ALPHA} or {BETA}")));
        }
    };
    let Value::Object(mut body) = object else { return Err(CannotConvert::shape("<object>", "an object")) };
    let mut metadata = body.remove("metadata").unwrap_or_else(|| json!({}));
    body.remove("apiVersion");
    body.remove("kind");
    let kept = take(&mut metadata, wanted);
    if let Some(bytes) = kept.get(TOO_LONG) {
        let why = format!("{bytes} bytes that only {wanted} can say were too long to be kept in {version}");
        return Err(CannotConvert::new("metadata.annotations", &why, &format!("write it as {wanted}")));
    }
    let misfits = |new: &Fields| schemas::misfits(wanted, &kind, new);
    let (new, left) = fitting(&kept, misfits, |kept| translate(there, back, &body, kept))?;
    keep(&mut metadata, &version, left)?;
    let mut converted = new;
    converted.insert("apiVersion".to_owned(), json!(wanted));
    converted.insert("kind".to_owned(), json!(kind));
    converted.insert("metadata".to_owned(), metadata);
    Ok(Value::Object(converted))
}

/// The translation with those kept parts that fit the schema: with them it has no misfit that it would not have without any.
fn fitting(
    kept: &Fields,
    misfits: impl Fn(&Fields) -> Vec<String>,
    translate: impl Fn(&Fields) -> Result<(Fields, Fields), CannotConvert>,
) -> Result<(Fields, Fields), CannotConvert> {
    let all = translate(kept)?;
    if kept.is_empty() || misfits(&all.0).is_empty() {
        return Ok(all);
    }
    let mut best = translate(&Fields::new())?;
    let own = misfits(&best.0);
    let mut good = Fields::new();
    for (name, part) in PARTS.iter().filter_map(|name| Some((*name, kept.get(*name)?))) {
        good.insert(name.to_owned(), part.clone());
        match translate(&good) {
            Ok(with) if misfits(&with.0).iter().all(|misfit| own.contains(misfit)) => best = with,
            _ => {
                good.remove(name);
            }
        }
    }
    Ok(best)
}

fn translate(
    there: Translate,
    back: Translate,
    body: &Fields,
    kept: &Fields,
) -> Result<(Fields, Fields), CannotConvert> {
    let (mut new, mut left) = there(body, kept)?;
    let whole = kept.get(WHOLE).filter(|whole| whole[DIGEST] == digest(body));
    let body = Value::Object(body.clone());
    let returns = |new: &Fields, left: &Fields| {
        back(new, left).is_ok_and(|(returned, _)| is_same(Some(&Value::Object(returned)), Some(&body)))
    };
    if let Some(Value::Object(whole)) = whole.and_then(|whole| whole.get(BODY)) {
        new = whole.clone();
        // What is left was found out for another one.
        if returns(&new, &Fields::new()) {
            left.clear();
        }
    }
    if !returns(&new, &left) {
        left.insert(WHOLE.to_owned(), json!({DIGEST: digest(&new), BODY: body}));
    }
    Ok((new, left))
}

/// Tells objects apart; what the API server does to an object on its way changes nothing in it.
fn digest(body: &Fields) -> String {
    let text = normal(&Value::Object(body.clone())).to_string();
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What was kept of an earlier life in the wanted version. One that cannot be read is not ours, or was spoilt: nothing is kept.
fn take(metadata: &mut Value, wanted: &str) -> Fields {
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else {
        return Fields::new();
    };
    let text = annotations.remove(wanted);
    let kept = text.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str::<Value>(text).ok());
    match kept {
        Some(Value::Object(kept)) => kept,
        _ => Fields::new(),
    }
}

/// What is too long is left out on the way to the old version, which is mostly for reading: a list must not fail because of one
/// object. That it was is kept instead, so that nothing is lost by writing the object back. What the old version alone can say is
/// refused when it is written.
fn keep(metadata: &mut Value, version: &str, left: Fields) -> Result<(), CannotConvert> {
    let mut text = (!left.is_empty()).then(|| Value::Object(left).to_string());
    if version == BETA
        && let Some(text) = text.as_mut().filter(|text| text.len() > MAX_KEPT)
    {
        *text = json!({TOO_LONG: text.len()}).to_string();
    }
    if let Some(text) = text.as_ref().filter(|text| text.len() > MAX_KEPT) {
        let why = format!("what only {version} can say takes {} bytes, {MAX_KEPT} can be kept", text.len());
        return Err(CannotConvert::new("metadata.annotations", &why, &format!("read and write it as {version}")));
    }
    if !metadata.is_object() {
        return Err(CannotConvert::shape("metadata", "an object"));
    }
    let annotations = &mut metadata["annotations"];
    match (text, annotations.as_object_mut()) {
        (Some(text), Some(annotations)) => {
            annotations.insert(version.to_owned(), json!(text));
        }
        (Some(text), None) => *annotations = json!({version: text}),
        (None, Some(annotations)) => {
            annotations.remove(version);
        }
        (None, None) => {}
    }
    if annotations.as_object().is_none_or(Fields::is_empty) {
        metadata.as_object_mut().map(|metadata| metadata.remove("annotations"));
    }
    Ok(())
}
