//! Kubernetes' strategic merge patch: a merge patch that knows which lists merge by which key.
//!
//! Directives: `$patch: replace | delete | merge`, `$retainKeys`, `$setElementOrder/FIELD`,
//! `$deleteFromPrimitiveList/FIELD`. Source: Kubernetes' description of strategic merge patch.

use serde_json::{Map, Value};

use crate::ApiError;
use crate::types::{Item, Merge, Type, TypeId};

const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// The object after the patch.
pub(super) fn merge(kind: TypeId, current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let patch = patch.as_object().ok_or_else(|| wrong("a strategic merge patch is an object"))?;
    let current = current.as_object().cloned().unwrap_or_default();
    Ok(object(Some(kind), current, patch)?.map_or(Value::Null, Value::Object))
}

/// An object after a patch; `None` when the patch deletes it.
fn object(
    kind: Option<TypeId>,
    mut current: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, ApiError> {
    match patch.get("$patch").map(|directive| directive.as_str().unwrap_or_default()) {
        Some("replace") => {
            return Ok(Some(without_directives(patch)));
        }
        Some("delete") => return Ok(None),
        None | Some("merge") => {}
        Some(other) => return Err(wrong(&format!("unknown $patch directive {other:?}"))),
    }
    if let Some(keep) = patch.get("$retainKeys") {
        let keep = keep.as_array().ok_or_else(|| wrong("$retainKeys is a list"))?;
        current.retain(|name, _| keep.iter().any(|kept| kept == name));
    }
    for (name, value) in patch {
        if name.starts_with('$') {
            if let Some(field) = name.strip_prefix(DELETE_FROM) {
                delete_from(&mut current, field, value)?;
            }
            continue;
        }
        if value.is_null() {
            current.remove(name);
            continue;
        }
        let old = current.remove(name);
        let field = kind.and_then(|kind| kind.field(name)).unwrap_or(Type::Any);
        let order = patch.get(&format!("{ORDER}{name}"));
        if let Some(new) = field_value(field, old, value, order)? {
            current.insert(name.clone(), new);
        }
    }
    // An order may come without a change of the list itself.
    for (name, order) in patch {
        let Some(field) = name.strip_prefix(ORDER).filter(|field| !patch.contains_key(*field)) else { continue };
        if let Some(Type::List(_, merge)) = kind.and_then(|kind| kind.field(field))
            && let Some(Value::Array(list)) = current.get_mut(field)
        {
            sort(list, order, merge);
        }
    }
    Ok(Some(current))
}

fn field_value(
    field: Type,
    old: Option<Value>,
    patch: &Value,
    order: Option<&Value>,
) -> Result<Option<Value>, ApiError> {
    Ok(match (field, patch) {
        (Type::List(item, how), Value::Array(changes)) => {
            let old = match old {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            };
            Some(Value::Array(list(item, how, old, changes, order)?))
        }
        (Type::Object(kind), Value::Object(patch)) => object(Some(kind), into_map(old), patch)?.map(Value::Object),
        (Type::Map(item), Value::Object(patch)) => {
            let kind = if let Item::Object(kind) = item { Some(kind) } else { None };
            map(kind, into_map(old), patch)?.map(Value::Object)
        }
        (Type::Any, Value::Object(patch)) => object(None, into_map(old), patch)?.map(Value::Object),
        (_, value) => Some(value.clone()),
    })
}

fn map(
    kind: Option<TypeId>,
    mut current: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, ApiError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => return Ok(Some(without_directives(patch))),
        Some("delete") => return Ok(None),
        _ => {}
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        match (value, kind) {
            (Value::Null, _) => {
                current.remove(key);
            }
            (Value::Object(change), Some(kind)) => {
                let old = into_map(current.remove(key));
                if let Some(new) = object(Some(kind), old, change)? {
                    current.insert(key.clone(), Value::Object(new));
                }
            }
            (value, _) => {
                current.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(Some(current))
}

fn list(
    item: Item,
    how: Merge,
    mut current: Vec<Value>,
    changes: &[Value],
    order: Option<&Value>,
) -> Result<Vec<Value>, ApiError> {
    let replaces = changes.iter().any(|change| change["$patch"] == "replace");
    match how {
        Merge::Replace => return Ok(changes.iter().filter(|change| change["$patch"].is_null()).cloned().collect()),
        _ if replaces => return Ok(changes.iter().filter(|change| change["$patch"].is_null()).cloned().collect()),
        Merge::Set => {
            for change in changes {
                if !current.contains(change) {
                    current.push(change.clone());
                }
            }
        }
        Merge::ByKey(key) => {
            let kind = if let Item::Object(kind) = item { Some(kind) } else { None };
            for change in changes {
                merge_element(kind, key, &mut current, change)?;
            }
        }
    }
    if let Some(order) = order {
        sort(&mut current, order, how);
    }
    Ok(current)
}

fn merge_element(kind: Option<TypeId>, key: &str, current: &mut Vec<Value>, change: &Value) -> Result<(), ApiError> {
    let map = change.as_object().ok_or_else(|| wrong(&format!("a list that merges by {key} holds objects")))?;
    let id = map.get(key).ok_or_else(|| wrong(&format!("map does not contain the merge key {key:?}")))?;
    let place = current.iter().position(|element| element.get(key) == Some(id));
    let old = place.map(|at| into_map(Some(current[at].take())));
    let new = object(kind, old.unwrap_or_default(), map)?.map(Value::Object);
    match (place, new) {
        (Some(at), Some(new)) => current[at] = new,
        (Some(at), None) => {
            current.remove(at);
        }
        (None, Some(new)) => current.push(new),
        (None, None) => {}
    }
    Ok(())
}

/// Elements that the order names come in that order; each of the others keeps its place behind the element it stood behind.
fn sort(list: &mut Vec<Value>, order: &Value, how: Merge) {
    let Some(order) = order.as_array() else { return };
    let rank = |element: &Value| {
        order.iter().position(|wanted| match how {
            Merge::ByKey(key) => element.get(key).is_some() && element.get(key) == wanted.get(key),
            _ => element == wanted,
        })
    };
    let mut ranked: Vec<(usize, Vec<Value>)> = Vec::new();
    let mut leading = Vec::new();
    for element in std::mem::take(list) {
        match (rank(&element), ranked.last_mut()) {
            (Some(rank), _) => ranked.push((rank, vec![element])),
            (None, Some((_, followers))) => followers.push(element),
            (None, None) => leading.push(element),
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    list.extend(leading);
    list.extend(ranked.into_iter().flat_map(|(_, elements)| elements));
}

fn delete_from(current: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), ApiError> {
    let values = values.as_array().ok_or_else(|| wrong(&format!("{DELETE_FROM}{field} is a list")))?;
    if let Some(Value::Array(list)) = current.get_mut(field) {
        list.retain(|element| !values.contains(element));
    }
    Ok(())
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

fn into_map(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn wrong(why: &str) -> ApiError {
    ApiError::bad_request(format!("error decoding patch: {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::{PatchType, apply};
    use serde_json::{Value, json};

    fn patch(current: &Value, patch: &Value) -> Value {
        apply("v1", "Pod", current, patch, PatchType::Strategic).expect("patched")
    }

    #[test]
    fn containers_merge_by_name_and_keep_what_the_patch_does_not_name() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "b:1"}]}});
        let change = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "a", "image": "a:2"}]}});
        let expected = json!({"spec": {"containers": [{"name": "a", "image": "a:2", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "b:1"}]}});
        assert_eq!(patch(&pod, &change), expected);
    }

    #[test]
    fn elements_are_added_deleted_and_sorted() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        let change = json!({"spec": {"containers": [{"name": "b", "$patch": "delete"}, {"name": "d"}],
            "$setElementOrder/containers": [{"name": "d"}, {"name": "c"}, {"name": "a"}]}});
        let expected = json!({"spec": {"containers": [{"name": "d"}, {"name": "c"}, {"name": "a"}]}});
        assert_eq!(patch(&pod, &change), expected);
    }

    #[test]
    fn null_deletes_and_replace_replaces() {
        let pod = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}, "spec": {"nodeName": "n", "tolerations": [{"key": "k"}]}});
        let change = json!({"metadata": {"labels": {"a": null, "c": "3"}, "finalizers": ["z"], "$deleteFromPrimitiveList/finalizers": ["x"]},
            "spec": {"nodeName": null, "tolerations": [{"key": "l"}]}});
        let expected = json!({"metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["y", "z"]}, "spec": {"tolerations": [{"key": "l"}]}});
        let patched = patch(&pod, &change);
        assert_eq!(patched["metadata"]["labels"], expected["metadata"]["labels"]);
        assert_eq!(patched["spec"], expected["spec"]);
        let replaced = patch(&pod, &json!({"metadata": {"labels": {"$patch": "replace", "only": "1"}}}));
        assert_eq!(replaced["metadata"]["labels"], json!({"only": "1"}));
    }

    #[test]
    fn retain_keys_drops_the_other_volume_source() {
        let pod = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let change = json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}});
        assert_eq!(patch(&pod, &change), json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}));
    }

    #[test]
    fn a_status_patch_of_an_edge_merges_conditions_by_type() {
        let pod = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}});
        let change = json!({"metadata": {"uid": "u"}, "status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "PodScheduled"}],
            "conditions": [{"type": "Ready", "status": "True", "message": null, "reason": null}],
            "containerStatuses": [{"name": "c", "ready": true}], "phase": "Running"}});
        let patched = patch(&pod, &change);
        assert_eq!(
            patched["status"]["conditions"],
            json!([{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}])
        );
        assert_eq!(patched["status"]["phase"], "Running");
    }

    #[test]
    fn custom_kinds_and_malformed_patches_are_refused() {
        let error = apply("x.io/v1", "Thing", &json!({}), &json!({}), PatchType::Strategic).expect_err("custom kind");
        assert_eq!(error.code, 415);
        for wrong in [json!([]), json!({"spec": {"containers": [{"image": "x"}]}}), json!({"spec": {"$patch": "x"}})] {
            assert_eq!(
                apply("v1", "Pod", &json!({}), &wrong, PatchType::Strategic).expect_err("malformed").code,
                400,
                "{wrong}"
            );
        }
    }
}
