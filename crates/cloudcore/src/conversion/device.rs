//! Devices: where they are bound, their protocol and their properties.

use serde_json::{Value, json};

use super::CannotConvert;
use super::parts::{Fields, copy, fields, is_same, items, part, put, put_all, rest, text};
use super::protocol;

/// Fields of `spec` that are translated.
const ALPHA: &[&str] = &["deviceModelRef", "nodeSelector", "protocol", "propertyVisitors"];
const BETA: &[&str] = &["deviceModelRef", "nodeName", "protocol", "properties"];
/// Fields of a property, and of its visitor.
const PROPERTY: &[&str] = &["name", "desired", "visitors", "reportCycle", "collectCycle"];
const VISITOR: &[&str] = &["propertyName", "reportCycle", "collectCycle"];
const CYCLES: &[&str] = &["reportCycle", "collectCycle"];
/// Whether the cloud hears of a property: always in v1alpha2, in v1beta1 if this is true.
const REPORTED: &str = "reportToCloud";

/// What nodes a selector may name, as v1alpha2 is used: in KubeEdge's examples the key is empty.
const NODE_KEYS: [&str; 3] = ["", "kubernetes.io/hostname", "metadata.name"];

/// A v1alpha2 device in v1beta1, and what has to be kept.
pub fn up(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    let (none, mut left) = (Fields::new(), Fields::new());
    let from = fields(body, "spec", "spec")?.unwrap_or(&none);
    let mut spec = Fields::new();
    copy(from, &["deviceModelRef"], &mut spec);
    let (node, selector) = part(from.get("nodeSelector"), kept.get("nodeName"), node_up, node_down)?;
    put(&mut spec, "nodeName", node);
    put(&mut left, "nodeSelector", selector);
    let (mut new, old) = part(from.get("protocol"), kept.get("protocol"), protocol::up, protocol::down)?;
    protocol::give_back(kept.get("protocol"), &mut new, [protocol::down, protocol::up]);
    put(&mut spec, "protocol", new);
    put(&mut left, "protocol", old);
    let known = kept.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let mut visitors_left = Fields::new();
    let visitors = items(from, "propertyVisitors", "spec.propertyVisitors")?;
    let is_there = visitors.is_some();
    let mut properties = Vec::new();
    for visitor in visitors.into_iter().flatten() {
        let name = text(visitor, "propertyName");
        properties.push(property_up(visitor, known.get(name), &mut visitors_left)?);
    }
    put_all(&mut left, "propertyVisitors", visitors_left);
    let mut status = Fields::new();
    let from_status = fields(body, "status", "status")?.unwrap_or(&none);
    let reported = twins_up(from_status, known, &mut properties)?;
    if is_there || !properties.is_empty() {
        spec.insert("properties".to_owned(), properties.into_iter().map(Value::Object).collect());
    }
    put(&mut status, "twins", (!reported.is_empty()).then(|| reported.into()));
    put_all(&mut left, "spec", rest(from, [ALPHA, BETA], kept.get("spec"), &mut spec));
    put_all(&mut left, "status", rest(from_status, [&["twins"], &["twins"]], kept.get("status"), &mut status));
    Ok((object(body, spec, status, kept, &mut left), left))
}

/// A v1beta1 device in v1alpha2, and what has to be kept.
pub fn down(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    let (none, mut left) = (Fields::new(), Fields::new());
    let from = fields(body, "spec", "spec")?.unwrap_or(&none);
    let mut spec = Fields::new();
    copy(from, &["deviceModelRef"], &mut spec);
    let (selector, node) = part(from.get("nodeName"), kept.get("nodeSelector"), node_down, node_up)?;
    put(&mut spec, "nodeSelector", selector);
    put(&mut left, "nodeName", node);
    let (new, old) = part(from.get("protocol"), kept.get("protocol"), protocol::down, protocol::up)?;
    put(&mut spec, "protocol", new);
    put(&mut left, "protocol", old);
    let known = kept.get("propertyVisitors").and_then(Value::as_object).unwrap_or(&none);
    let (mut properties_left, mut twins) = (Fields::new(), Vec::new());
    if let Some(properties) = items(from, "properties", "spec.properties")? {
        let mut visitors = Vec::new();
        for property in properties {
            let name = text(property, "name");
            visitors.push(property_down(property, known.get(name), &mut properties_left)?);
            if let Some(desired) = property.get("desired").filter(|desired| !desired.is_null()) {
                twins.push(twin(name, "desired", desired));
            }
        }
        spec.insert("propertyVisitors".to_owned(), visitors.into());
    }
    put_all(&mut left, "properties", properties_left);
    let from_status = fields(body, "status", "status")?.unwrap_or(&none);
    for old in items(from_status, "twins", "status.twins")?.into_iter().flatten() {
        let name = text(old, "propertyName");
        let Some(reported) = old.get("reported").filter(|reported| !reported.is_null()) else { continue };
        match twins.iter_mut().find(|twin| text(twin, "propertyName") == name && !twin.contains_key("reported")) {
            Some(twin) => put(twin, "reported", Some(reported.clone())),
            None => twins.push(twin(name, "reported", reported)),
        }
    }
    let mut status = Fields::new();
    put(&mut status, "twins", (!twins.is_empty()).then(|| twins.into_iter().map(Value::Object).collect()));
    put_all(&mut left, "spec", rest(from, [BETA, ALPHA], kept.get("spec"), &mut spec));
    put_all(&mut left, "status", rest(from_status, [&["twins"], &["twins"]], kept.get("status"), &mut status));
    Ok((object(body, spec, status, kept, &mut left), left))
}

fn object(body: &Fields, spec: Fields, status: Fields, kept: &Fields, left: &mut Fields) -> Fields {
    let mut new = Fields::new();
    put_all(&mut new, "spec", spec);
    put_all(&mut new, "status", status);
    let known: &[&str] = &["spec", "status"];
    let others = rest(body, [known, known], kept.get("object"), &mut new);
    put_all(left, "object", others);
    new
}

/// The node that a selector names.
fn node_up(selector: &Value) -> Result<Option<Value>, CannotConvert> {
    let refuse = |why: &str| {
        let cure = "name the node by one term with one expression: key kubernetes.io/hostname, operator In, one value";
        Err(CannotConvert::new("spec.nodeSelector", why, cure))
    };
    let terms = selector["nodeSelectorTerms"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lists = |term: &'_ Value| {
        let list = |field: &str| term[field].as_array().cloned().unwrap_or_default();
        [list("matchExpressions"), list("matchFields")].concat()
    };
    let expressions: Vec<Value> = terms.iter().flat_map(lists).collect();
    let expression = match expressions.as_slice() {
        [] => return Ok(None),
        [one] if terms.len() == 1 => one,
        _ => return refuse("has several terms or expressions, and v1beta1 binds a device to one node"),
    };
    if !expression["key"].as_str().is_some_and(|key| NODE_KEYS.contains(&key)) {
        return refuse("selects by a label, and v1beta1 binds a device to a node by name");
    }
    match (expression["operator"].as_str(), expression["values"].as_array().map(Vec::as_slice)) {
        (Some("In"), Some([Value::String(node)])) => Ok(Some(json!(node))),
        (Some("In"), None | Some([])) => Ok(None),
        _ => refuse("does not name exactly one node, and v1beta1 binds a device to one"),
    }
}

fn node_down(node: &Value) -> Result<Option<Value>, CannotConvert> {
    let expression = json!({"key": "", "operator": "In", "values": [node]});
    Ok(node
        .as_str()
        .filter(|node| !node.is_empty())
        .map(|_| json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]})))
}

fn property_up(visitor: &Fields, kept: Option<&Value>, left: &mut Fields) -> Result<Fields, CannotConvert> {
    let name = text(visitor, "propertyName");
    let mut property = Fields::new();
    put(&mut property, "name", visitor.get("propertyName").cloned());
    copy(visitor, CYCLES, &mut property);
    let own: Fields = visitor.iter().filter(|(field, _)| !VISITOR.contains(&field.as_str())).map(owned).collect();
    let own = Value::Object(own);
    let found = Some(&own).filter(|own| !is_same(Some(own), None));
    let kept_visitors = kept.and_then(|kept| kept.get("visitors"));
    let of_this = |error: CannotConvert| error.at_property(name);
    let (mut new, old) = part(found, kept_visitors, protocol::visitor_up, protocol::visitor_down).map_err(of_this)?;
    protocol::give_back(kept_visitors, &mut new, [protocol::visitor_down, protocol::visitor_up]);
    put(&mut property, "visitors", new);
    put(left, name, old);
    rest(&Fields::new(), [&[], PROPERTY], kept, &mut property);
    report(&mut property);
    Ok(property)
}

/// A v1alpha2 property is reported, unless v1beta1 had no such field; that is kept as null.
fn report(property: &mut Fields) {
    if property.get(REPORTED).is_some_and(Value::is_null) {
        property.remove(REPORTED);
    } else {
        property.entry(REPORTED).or_insert(Value::Bool(true));
    }
}

fn property_down(property: &Fields, kept: Option<&Value>, left: &mut Fields) -> Result<Value, CannotConvert> {
    let name = text(property, "name");
    let mut visitor = Fields::new();
    put(&mut visitor, "propertyName", property.get("name").cloned());
    copy(property, CYCLES, &mut visitor);
    let found = property.get("visitors").filter(|visitors| !is_same(Some(visitors), None));
    let (new, old) = part(found, kept, protocol::visitor_down, protocol::visitor_up)?;
    visitor.extend(new.as_ref().and_then(Value::as_object).cloned().unwrap_or_default());
    let mut own = rest(property, [PROPERTY, VISITOR], None, &mut Fields::new());
    put(&mut own, "visitors", old);
    match own.get(REPORTED) {
        Some(Value::Bool(true)) => own.remove(REPORTED),
        Some(_) => None,
        None => own.insert(REPORTED.to_owned(), Value::Null),
    };
    put_all(left, name, own);
    Ok(Value::Object(visitor))
}

/// Puts what is desired to the properties; what was reported is left.
fn twins_up(status: &Fields, known: &Fields, properties: &mut Vec<Fields>) -> Result<Vec<Value>, CannotConvert> {
    let mut reported = Vec::new();
    for twin in items(status, "twins", "status.twins")?.into_iter().flatten() {
        let name = text(twin, "propertyName");
        if let Some(desired) = twin.get("desired").filter(|desired| !desired.is_null()) {
            let at = properties.iter().position(|property| text(property, "name") == name).unwrap_or_else(|| {
                let mut property = Fields::from_iter([("name".to_owned(), json!(name))]);
                put(&mut property, REPORTED, known.get(name).and_then(|kept| kept.get(REPORTED)).cloned());
                report(&mut property);
                properties.push(property);
                properties.len() - 1
            });
            properties[at].entry("desired").or_insert_with(|| desired.clone());
        }
        let mut others = twin.clone();
        others.remove("desired");
        if !is_same(others.get("reported"), None) {
            reported.push(Value::Object(others));
        }
    }
    Ok(reported)
}

fn twin(name: &str, field: &str, value: &Value) -> Fields {
    Fields::from_iter([("propertyName".to_owned(), json!(name)), (field.to_owned(), value.clone())])
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}
