//! The fields of the built-in kinds: which exist, what they hold, which lists merge by which key.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::catalog::unpack;

/// Dumped from a kube-apiserver 1.36.2 by `cargo xtask gen-kube`, which describes the codes.
const TYPES: &[u8] = include_bytes!("data/types.json.gz");

/// The type of a field or object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A string, number, boolean, quantity or time.
    Leaf(Leaf),
    /// Anything; nothing is known about it.
    Any,
    /// An object with these fields.
    Object(TypeId),
    /// A list.
    List(Item, Merge),
    /// A map of strings to items.
    Map(Item),
}

/// What a list or map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Strings, numbers, booleans.
    Leaf(Leaf),
    /// Anything.
    Any,
    /// Objects with these fields.
    Object(TypeId),
}

/// What a field without fields of its own holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// A string; times and bytes too.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A boolean.
    Flag,
    /// A quantity, or a port by name or number.
    TextOrNumber,
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// It is replaced.
    Replace,
    /// Leaves are united.
    Set,
    /// Objects with the same value of this field are merged.
    ByKey(&'static str),
}

/// A type by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(usize);

struct Tables {
    kinds: HashMap<String, TypeId>,
    types: Vec<HashMap<String, Type>>,
}

/// The type of a kind, for example `apps/v1` and `Deployment`.
pub fn of_kind(api_version: &str, kind: &str) -> Option<TypeId> {
    tables().kinds.get(&format!("{api_version}/{kind}")).copied()
}

/// The type of `metadata`, the same for all kinds.
pub fn of_metadata() -> Option<TypeId> {
    match of_kind("v1", "ConfigMap")?.field("metadata")? {
        Type::Object(kind) => Some(kind),
        _ => None,
    }
}

impl TypeId {
    /// The type of a field, if there is such a field.
    pub fn field(self, name: &str) -> Option<Type> {
        tables().types[self.0].get(name).copied()
    }
}

/// The first value that is of another type than its field, as `json` of Go tells it. Null fits everywhere.
///
/// Whatever passes this can be read by typed clients, and changed field by field without looking at each level again.
pub fn misfit(kind: TypeId, object: &Value) -> Option<String> {
    misfit_at(Type::Object(kind), object, "")
}

fn misfit_at(field: Type, value: &Value, path: &str) -> Option<String> {
    let inner = |item: Item| match item {
        Item::Leaf(leaf) => Type::Leaf(leaf),
        Item::Any => Type::Any,
        Item::Object(kind) => Type::Object(kind),
    };
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let expected = match (field, value) {
        (_, Value::Null) | (Type::Any, _) => return None,
        (Type::Object(kind), Value::Object(fields)) => {
            return fields.iter().find_map(|(name, value)| misfit_at(kind.field(name)?, value, &below(name)));
        }
        (Type::Map(item), Value::Object(entries)) => {
            return entries.iter().find_map(|(name, value)| misfit_at(inner(item), value, &below(name)));
        }
        (Type::List(item, _), Value::Array(items)) => {
            let mut items = items.iter().enumerate();
            return items.find_map(|(at, value)| misfit_at(inner(item), value, &format!("{path}[{at}]")));
        }
        (Type::Leaf(leaf), value) if leaf.holds(value) => return None,
        (Type::Object(_), _) => "object",
        (Type::Map(_), _) => "map",
        (Type::List(..), _) => "list",
        (Type::Leaf(leaf), _) => leaf.name(),
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Some(format!("json: cannot unmarshal {found} into field {path} of type {expected}"))
}

impl Leaf {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Flag => value.is_boolean(),
            Self::TextOrNumber => value.is_string() || value.is_number(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Flag => "bool",
            Self::TextOrNumber => "string or number",
        }
    }

    fn of_code(code: &str) -> Option<Self> {
        Some(match code {
            "s" => Self::Text,
            "i" => Self::Integer,
            "n" => Self::Number,
            "b" => Self::Flag,
            "x" => Self::TextOrNumber,
            _ => return None,
        })
    }
}

/// Drops all fields that the kind does not have.
pub fn prune(kind: TypeId, object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.retain(|name, _| kind.field(name).is_some());
    for (name, value) in fields {
        match kind.field(name) {
            Some(Type::Object(inner)) => prune(inner, value),
            Some(Type::List(Item::Object(inner), _)) => {
                value.as_array_mut().into_iter().flatten().for_each(|item| prune(inner, item));
            }
            Some(Type::Map(Item::Object(inner))) => {
                value.as_object_mut().into_iter().flatten().for_each(|(_, item)| prune(inner, item));
            }
            _ => {}
        }
    }
}

/// The paths of all fields that the kind does not have, for example `spec.template.spec.foo`.
pub fn unknown_fields(kind: TypeId, object: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    check_object(kind, object, "", &mut unknown);
    unknown
}

fn check_object(kind: TypeId, value: &Value, path: &str, unknown: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match kind.field(name) {
            None => unknown.push(path),
            Some(Type::Object(inner)) => check_object(inner, value, &path, unknown),
            Some(Type::List(Item::Object(inner), _)) => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    check_object(inner, item, &format!("{path}[{at}]"), unknown);
                }
            }
            Some(Type::Map(Item::Object(inner))) => {
                for (key, item) in value.as_object().into_iter().flatten() {
                    check_object(inner, item, &format!("{path}.{key}"), unknown);
                }
            }
            Some(_) => {}
        }
    }
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let data = unpack(TYPES);
        let names: HashMap<&str, TypeId> = data["types"]
            .as_object()
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(at, (name, _))| (name.as_str(), TypeId(at)))
            .collect();
        let types = data["types"].as_object().into_iter().flatten();
        let types = types.map(|(_, fields)| {
            let fields = fields.as_object().into_iter().flatten();
            fields.map(|(name, code)| (name.clone(), decode(code.as_str().unwrap_or("a"), &names))).collect()
        });
        let kinds = data["kinds"].as_object().into_iter().flatten();
        let kinds = kinds.filter_map(|(kind, name)| Some((kind.clone(), *names.get(name.as_str()?)?)));
        Tables { kinds: kinds.collect(), types: types.collect() }
    })
}

fn decode(code: &str, names: &HashMap<&str, TypeId>) -> Type {
    let item = |name: &str| match (Leaf::of_code(name), names.get(name)) {
        (Some(leaf), _) => Item::Leaf(leaf),
        (None, Some(id)) => Item::Object(*id),
        (None, None) => Item::Any,
    };
    match code.split_once(':') {
        None => Leaf::of_code(code).map_or(Type::Any, Type::Leaf),
        Some(("o", name)) => names.get(name).map_or(Type::Any, |id| Type::Object(*id)),
        Some(("m", name)) => Type::Map(item(name)),
        Some(("l", rest)) => {
            let mut parts = rest.split('|');
            let item = item(parts.next().unwrap_or("a"));
            let merge = match parts.next() {
                None | Some("retainKeys") => Merge::Replace,
                Some("") => Merge::Set,
                // A handful of short names, read once.
                Some(key) => Merge::ByKey(Box::leak(key.to_owned().into_boxed_str())),
            };
            Type::List(item, merge)
        }
        _ => Type::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_embedded_types_can_be_read() {
        let deployment = of_kind("apps/v1", "Deployment").expect("Deployment");
        let Some(Type::Object(spec)) = deployment.field("spec") else { panic!("spec") };
        let Some(Type::Object(template)) = spec.field("template") else { panic!("template") };
        let Some(Type::Object(pod)) = template.field("spec") else { panic!("pod spec") };
        assert!(matches!(pod.field("containers"), Some(Type::List(Item::Object(_), Merge::ByKey("name")))));
        assert!(matches!(pod.field("nodeSelector"), Some(Type::Map(Item::Leaf(Leaf::Text)))));
        assert!(matches!(pod.field("tolerations"), Some(Type::List(Item::Object(_), Merge::Replace))));
        let meta = deployment.field("metadata");
        let Some(Type::Object(meta)) = meta else { panic!("metadata") };
        assert!(matches!(meta.field("finalizers"), Some(Type::List(Item::Leaf(Leaf::Text), Merge::Set))));
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let pod = of_kind("v1", "Pod").expect("Pod");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "imagee": "x", "resources": {"limits": {"cpu": "1"}}}], "foo": 1}});
        assert_eq!(unknown_fields(pod, &object), ["spec.containers[0].imagee", "spec.foo"]);
    }

    #[test]
    fn values_of_another_type_are_named() {
        let pod = of_kind("v1", "Pod").expect("Pod");
        let containers = |port: Value| json!({"spec": {"containers": [{"ports": [{"containerPort": port}]}]}});
        for (object, expected) in [
            (json!({"spec": "x"}), Some("json: cannot unmarshal string into field spec of type object")),
            (
                json!({"spec": {"containers": {}}}),
                Some("json: cannot unmarshal object into field spec.containers of type list"),
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                Some("json: cannot unmarshal number into field metadata.labels.a of type string"),
            ),
            (
                containers(json!("80")),
                Some(
                    "json: cannot unmarshal string into field spec.containers[0].ports[0].containerPort of type integer",
                ),
            ),
            (containers(json!(80)), None),
            (json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}}), None),
            (json!({"metadata": null, "spec": {"containers": [null]}}), None),
        ] {
            assert_eq!(misfit(pod, &object).as_deref(), expected, "{object}");
        }
        assert!(misfit(pod, &json!([])).is_some(), "not even an object");
    }

    #[test]
    fn unknown_fields_are_dropped() {
        let pod = of_kind("v1", "Pod").expect("Pod");
        let mut object =
            json!({"spec": {"containers": [{"name": "c", "imagee": "x"}], "foo": 1, "nodeSelector": {"a": "b"}}});
        prune(pod, &mut object);
        assert_eq!(object, json!({"spec": {"containers": [{"name": "c"}], "nodeSelector": {"a": "b"}}}));
    }
}
