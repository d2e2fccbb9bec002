//! The fields of the built-in kinds: which exist, which lists merge by which key.

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
    Leaf,
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
    Leaf,
    /// Anything.
    Any,
    /// Objects with these fields.
    Object(TypeId),
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

impl TypeId {
    /// The type of a field, if there is such a field.
    pub fn field(self, name: &str) -> Option<Type> {
        tables().types[self.0].get(name).copied()
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
    let item = |name: &str| match name {
        "s" => Item::Leaf,
        "a" => Item::Any,
        name => names.get(name).map_or(Item::Any, |id| Item::Object(*id)),
    };
    match code.split_once(':') {
        None if code == "s" => Type::Leaf,
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
        assert!(matches!(pod.field("nodeSelector"), Some(Type::Map(Item::Leaf))));
        assert!(matches!(pod.field("tolerations"), Some(Type::List(Item::Object(_), Merge::Replace))));
        let meta = deployment.field("metadata");
        let Some(Type::Object(meta)) = meta else { panic!("metadata") };
        assert!(matches!(meta.field("finalizers"), Some(Type::List(Item::Leaf, Merge::Set))));
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let pod = of_kind("v1", "Pod").expect("Pod");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "imagee": "x", "resources": {"limits": {"cpu": "1"}}}], "foo": 1}});
        assert_eq!(unknown_fields(pod, &object), ["spec.containers[0].imagee", "spec.foo"]);
    }
}
