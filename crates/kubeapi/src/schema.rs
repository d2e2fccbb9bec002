//! Structural schemas of CustomResourceDefinitions: what is unknown is dropped, what is absent gets its default, what is
//! wrong is named.

use serde_json::{Value, json};

use crate::error::Cause;

/// Deeper objects are refused, so that nobody can make the server run out of stack.
const MAX_DEPTH: usize = 100;
/// Fields that every object has, whatever its schema says.
const ROOT: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The paths of fields that the schema does not know.
pub fn unknown_fields(schema: &Value, object: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    walk_unknown(schema, object, "", 0, &mut |path| unknown.push(path));
    unknown
}

/// Removes fields that the schema does not know.
pub fn prune(schema: &Value, object: &mut Value) {
    prune_at(schema, object, 0);
}

/// Sets the schema's defaults where fields are absent.
pub fn set_defaults(schema: &Value, object: &mut Value) {
    defaults_at(schema, object, 0);
}

/// Names every value that the schema does not allow.
pub fn validate(schema: &Value, object: &Value, causes: &mut Vec<Cause>) {
    validate_at(schema, object, "", 0, causes);
}

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// The schema of a field: named, or for any name. `None` when the field is not known.
fn field_schema<'a>(schema: &'a Value, name: &str, depth: usize) -> Option<&'a Value> {
    static ANY: Value = Value::Null;
    if depth == 0 && ROOT.contains(&name) {
        return Some(&ANY);
    }
    if let Some(found) = schema["properties"].get(name) {
        return Some(found);
    }
    match &schema["additionalProperties"] {
        Value::Object(_) => Some(&schema["additionalProperties"]),
        Value::Bool(true) => Some(&ANY),
        _ if preserves(schema) || schema.is_null() => Some(&ANY),
        _ if schema["x-kubernetes-embedded-resource"] == true && ROOT.contains(&name) => Some(&ANY),
        _ => None,
    }
}

fn walk_unknown(schema: &Value, value: &Value, path: &str, depth: usize, report: &mut impl FnMut(String)) {
    if depth > MAX_DEPTH {
        return;
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match field_schema(schema, name, depth) {
            Some(schema) => walk_unknown(schema, inner, &path, depth + 1, report),
            None => report(path),
        }
    }
    if schema["items"].is_object() {
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            walk_unknown(&schema["items"], item, &format!("{path}[{at}]"), depth + 1, report);
        }
    }
}

fn prune_at(schema: &Value, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| field_schema(schema, name, depth).is_some());
        for (name, inner) in fields {
            if let Some(schema) = field_schema(schema, name, depth) {
                prune_at(schema, inner, depth + 1);
            }
        }
    } else if schema["items"].is_object() {
        for item in value.as_array_mut().into_iter().flatten() {
            prune_at(&schema["items"], item, depth + 1);
        }
    }
}

fn defaults_at(schema: &Value, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    if let Some(fields) = value.as_object_mut() {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let absent = fields.get(name).is_none_or(|value| value.is_null() && inner["nullable"] != true);
            if absent && let Some(default) = inner.get("default") {
                fields.insert(name.clone(), default.clone());
            }
        }
        for (name, value) in fields {
            if let Some(schema) = field_schema(schema, name, depth) {
                defaults_at(schema, value, depth + 1);
            }
        }
    } else if schema["items"].is_object() {
        for item in value.as_array_mut().into_iter().flatten() {
            defaults_at(&schema["items"], item, depth + 1);
        }
    }
}

fn validate_at(schema: &Value, value: &Value, path: &str, depth: usize, causes: &mut Vec<Cause>) {
    let shown = if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
    if depth > MAX_DEPTH {
        causes.push(Cause::invalid(shown, &json!("…"), "nested too deeply"));
        return;
    }
    if value.is_null() {
        if depth > 0 && schema["nullable"] != true && schema["type"].is_string() {
            causes.push(wrong_type(&shown, value, &schema["type"]));
        }
        return;
    }
    if !has_type(schema, value) {
        causes.push(wrong_type(&shown, value, &schema["type"]));
        return;
    }
    limits(schema, value, &shown, causes);
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(name).is_none() {
            let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            causes.push(Cause::required(field, ""));
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if let Some(schema) = field_schema(schema, name, depth) {
            validate_at(schema, inner, &field, depth + 1, causes);
        }
    }
    if schema["items"].is_object() {
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            validate_at(&schema["items"], item, &format!("{path}[{at}]"), depth + 1, causes);
        }
    }
    unique_keys(schema, value, path, causes);
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn wrong_type(path: &str, value: &Value, expected: &Value) -> Cause {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let why =
        format!("{path} in body must be of type {}: \"{found}\"", expected.as_str().unwrap_or("integer or string"));
    Cause {
        field: path.to_owned(),
        reason: "FieldValueTypeInvalid",
        message: format!("Invalid value: \"{found}\": {why}"),
    }
}

fn limits(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        causes.push(Cause::not_supported(path, value, &allowed));
    }
    let mut check = |holds: bool, why: String| {
        if !holds {
            causes.push(Cause::invalid(path, value, &format!("{path} in body {why}")));
        }
    };
    if let Some(number) = value.as_f64() {
        if let Some(minimum) = schema["minimum"].as_f64() {
            let exclusive = schema["exclusiveMinimum"] == true;
            check(
                number > minimum || (!exclusive && number == minimum),
                format!("should be greater than or equal to {minimum}"),
            );
        }
        if let Some(maximum) = schema["maximum"].as_f64() {
            let exclusive = schema["exclusiveMaximum"] == true;
            check(
                number < maximum || (!exclusive && number == maximum),
                format!("should be less than or equal to {maximum}"),
            );
        }
    }
    let (length, least, most) = match value {
        Value::String(text) => (text.chars().count(), "minLength", "maxLength"),
        Value::Array(list) => (list.len(), "minItems", "maxItems"),
        Value::Object(fields) => (fields.len(), "minProperties", "maxProperties"),
        _ => return,
    };
    let bound = |name: &str| schema[name].as_u64().and_then(|bound| usize::try_from(bound).ok());
    if let Some(least) = bound(least) {
        check(length >= least, format!("should be at least {least} long"));
    }
    if let Some(most) = bound(most) {
        check(length <= most, format!("should be at most {most} long"));
    }
}

fn unique_keys(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(list) = value.as_array() else { return };
    let keys: Vec<&str> = match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => {
            schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        }
        Some("set") => Vec::new(),
        _ => return,
    };
    let mut seen: Vec<Value> = Vec::new();
    for (at, item) in list.iter().enumerate() {
        let id = if keys.is_empty() { item.clone() } else { keys.iter().map(|key| item[key].clone()).collect() };
        if seen.contains(&id) {
            causes.push(Cause::duplicate(format!("{path}[{at}]"), &id));
        }
        seen.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1},
                "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                "port": {"x-kubernetes-int-or-string": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            }},
        }})
    }

    #[test]
    fn what_is_unknown_is_named_and_dropped_and_what_is_absent_gets_its_default() {
        let mut object = json!({"apiVersion": "v", "kind": "K", "metadata": {"x": 1}, "spec": {"size": 1, "foo": 1, "free": {"any": 1}, "list": [{"name": "a", "b": 1}]}});
        assert_eq!(unknown_fields(&schema(), &object), ["spec.foo", "spec.list[0].b"]);
        prune(&schema(), &mut object);
        set_defaults(&schema(), &mut object);
        assert_eq!(object["spec"], json!({"size": 1, "mode": "a", "free": {"any": 1}, "list": [{"name": "a"}]}));
        assert_eq!(object["metadata"], json!({"x": 1}));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let object =
            json!({"spec": {"size": 0, "mode": "c", "port": 1.5, "list": [{"name": "a"}, {"name": "a"}], "free": "x"}});
        let mut causes = Vec::new();
        validate(&schema(), &object, &mut causes);
        let mut fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["spec.free", "spec.list[1]", "spec.mode", "spec.port", "spec.size"]);
        let mut causes = Vec::new();
        validate(&schema(), &json!({"spec": {}}), &mut causes);
        assert_eq!(causes, [Cause::required("spec.size", "")]);
    }

    #[test]
    fn depth_is_bounded() {
        let mut object = json!({});
        for _ in 0..500 {
            object = json!({"spec": {"free": {"x": object}}});
        }
        let mut causes = Vec::new();
        validate(&json!({"x-kubernetes-preserve-unknown-fields": true}), &object, &mut causes);
        assert!(!causes.is_empty());
    }
}
