//! Custom resources in versions other than the one that their objects are kept in.
//!
//! An object says itself which version it is in. Whoever asks for that version is served without any of this; for others the
//! definition's conversion decides, and what the other version's schema does not know is dropped, as upstream.

use serde_json::{Value, json};

use super::{Api, ResourceRef};
use crate::catalog::CustomResource;
use crate::webhook::Conversion;
use crate::{ApiError, schema};

/// Objects in one question to a webhook.
const MAX_OBJECTS: usize = 500;
/// Bytes of objects in one question to a webhook; a longer object has one of its own.
const MAX_BYTES: usize = 2 << 20;
/// What of its metadata a webhook may change.
const CHANGEABLE: [&str; 2] = ["labels", "annotations"];

impl Api {
    /// Objects in the version that was asked for. Those of built-in resources have no other.
    ///
    /// # Errors
    /// 500 when the webhook of the definition does not answer, or refuses.
    pub async fn convert(&self, what: &ResourceRef, objects: Vec<Value>) -> Result<Vec<Value>, ApiError> {
        match &what.resource.custom {
            None => Ok(objects),
            Some(custom) => self.bring(what, &what.resource.api_version(), &custom.schema, objects).await,
        }
    }

    pub(super) async fn convert_one(&self, what: &ResourceRef, object: Value) -> Result<Value, ApiError> {
        if what.resource.custom.is_none() {
            return Ok(object);
        }
        Ok(self.convert(what, vec![object]).await?.pop().unwrap_or_default())
    }

    /// An object that is to be stored, in the version that objects are kept in; and as whoever wrote it will read it. Asked before
    /// anything is written: what cannot be read back is not stored.
    pub(super) async fn as_kept(&self, what: &ResourceRef, object: Value) -> Result<(Value, Value), ApiError> {
        match &what.resource.custom {
            Some(custom) if !what.resource.is_as_kept() => {
                let versions = &custom.versions;
                let mut kept = self.bring(what, &versions.kept, &versions.kept_schema, vec![object]).await?;
                let kept = kept.pop().unwrap_or_default();
                let read = self.convert_one(what, kept.clone()).await?;
                Ok((kept, read))
            }
            _ => Ok((object.clone(), object)),
        }
    }

    async fn bring(
        &self,
        what: &ResourceRef,
        wanted: &str,
        wanted_schema: &Value,
        mut objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let other: Vec<usize> = (0..objects.len()).filter(|at| objects[*at]["apiVersion"] != wanted).collect();
        if other.is_empty() {
            return Ok(objects);
        }
        let definition = self.definition_now(what)?;
        match &definition.versions.conversion {
            Conversion::None => other.iter().for_each(|at| objects[*at]["apiVersion"] = json!(wanted)),
            Conversion::Webhook(webhook) => {
                let fail = |why: String| {
                    let kept = &definition.versions.kept;
                    let (kind, name) = (&what.resource.kind, what.resource.storage_name());
                    ApiError::internal(format!(
                        "conversion webhook for {wanted}, Kind={kind} failed: {why} (spec.conversion of CustomResourceDefinition {name}; {kept} needs no conversion)"
                    ))
                };
                let mut rest = other.as_slice();
                while !rest.is_empty() {
                    let (chunk, later) = rest.split_at(chunk(&objects, rest));
                    let asked: Vec<&Value> = chunk.iter().map(|at| &objects[*at]).collect();
                    let converted = webhook.convert(wanted, &asked).await.map_err(fail)?;
                    for (at, new) in chunk.iter().zip(converted) {
                        objects[*at] = accepted(&objects[*at], new, wanted).map_err(fail)?;
                    }
                    rest = later;
                }
            }
        }
        other.into_iter().for_each(|at| schema::prune(wanted_schema, &mut objects[at]));
        Ok(objects)
    }

    /// What the definition says now: a watch may have begun under an older one.
    fn definition_now(&self, what: &ResourceRef) -> Result<std::sync::Arc<CustomResource>, ApiError> {
        let resource = &what.resource;
        let now = self.catalog().find(&resource.group, &resource.version, &resource.plural)?;
        now.custom.clone().ok_or_else(ApiError::no_such_path)
    }
}

/// How many of these go into one question: one at least.
fn chunk(objects: &[Value], which: &[usize]) -> usize {
    let mut bytes = 0;
    let fits = |at: &&usize| {
        bytes += objects[**at].to_string().len();
        bytes <= MAX_BYTES
    };
    which.iter().take(MAX_OBJECTS).take_while(fits).count().max(1)
}

/// The object as the webhook has it, with the metadata that is not the webhook's to change.
fn accepted(before: &Value, mut new: Value, wanted: &str) -> Result<Value, String> {
    let name = before["metadata"]["name"].as_str().unwrap_or_default();
    for (field, expected) in [("apiVersion", &json!(wanted)), ("kind", &before["kind"])] {
        if new[field] != *expected {
            return Err(format!("it answered for {name:?} with {field} {} instead of {expected}", new[field]));
        }
    }
    for field in ["name", "namespace", "uid"] {
        if new["metadata"][field] != before["metadata"][field] {
            return Err(format!("it changed metadata.{field} of {name:?}"));
        }
    }
    let mut metadata = before["metadata"].as_object().cloned().unwrap_or_default();
    for field in CHANGEABLE {
        match new["metadata"].get(field).filter(|value| !value.is_null()) {
            Some(value) if is_map_of_texts(value) => metadata.insert(field.to_owned(), value.clone()),
            Some(_) => return Err(format!("metadata.{field} of {name:?} is no map of texts")),
            None => metadata.remove(field),
        };
    }
    new["metadata"] = Value::Object(metadata);
    Ok(new)
}

fn is_map_of_texts(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.values().all(Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_changes_nothing_that_is_not_its_business() {
        let before = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"x": "y"}}, "spec": {"a": 1}});
        let new = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "a", "uid": "u", "annotations": {"k": "v"}}, "spec": {"b": 1}});
        let good = accepted(&before, new.clone(), "g/v2").expect("good");
        assert_eq!(good["metadata"], json!({"name": "a", "uid": "u", "finalizers": ["f"], "annotations": {"k": "v"}}));
        assert_eq!(good["spec"], json!({"b": 1}));
        for (path, value) in [
            ("/apiVersion", json!("g/v1")),
            ("/kind", json!("L")),
            ("/metadata/name", json!("b")),
            ("/metadata/uid", json!("w")),
            ("/metadata/annotations", json!({"k": 1})),
        ] {
            let mut bad = new.clone();
            *bad.pointer_mut(path).expect("path") = value;
            assert!(accepted(&before, bad, "g/v2").is_err(), "{path}");
        }
        assert!(accepted(&before, json!("x"), "g/v2").is_err());
    }

    #[test]
    fn questions_are_of_bounded_size() {
        let objects: Vec<Value> = (0..4).map(|_| json!("x".repeat(MAX_BYTES / 2 - 100))).collect();
        assert_eq!(chunk(&objects, &[0, 1, 2, 3]), 2);
        assert_eq!(chunk(&[json!("x".repeat(MAX_BYTES))], &[0]), 1, "one that is too long is asked alone");
        let many: Vec<Value> = (0..MAX_OBJECTS + 1).map(|_| json!(1)).collect();
        assert_eq!(chunk(&many, &(0..many.len()).collect::<Vec<_>>()), MAX_OBJECTS);
    }
}
