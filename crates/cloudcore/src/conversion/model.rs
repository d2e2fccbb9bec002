//! Models of devices: a property's type has fields of its own in v1alpha2, and is a word in v1beta1.

use serde_json::{Number, Value, json};

use super::CannotConvert;
use super::parts::{Fields, copy, fields, is_same, items, part, put, put_all, rest, text, whole};

const SPEC: &[&str] = &["protocol", "properties"];
const ALPHA: &[&str] = &["name", "description", "type"];
const BETA: &[&str] = &["name", "description", "type", "accessMode", "minimum", "maximum", "unit"];
/// What v1beta1 has in the place of v1alpha2's `type`.
const TYPE: &[&str] = &["type", "accessMode", "minimum", "maximum", "unit"];
/// The types of both, and whether they have limits and a unit.
const TYPES: [(&str, &str, bool); 6] = [
    ("int", "INT", true),
    ("float", "FLOAT", true),
    ("double", "DOUBLE", true),
    ("string", "STRING", false),
    ("boolean", "BOOLEAN", false),
    ("bytes", "BYTES", false),
];
const DEFAULT: &str = "defaultValue";

/// A v1alpha2 model in v1beta1, and what has to be kept.
pub fn up(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    translate(body, kept, |property, kept, left| {
        let (new, old) = part(property.get("type"), kept.map(of_type).as_ref(), type_up, type_down)?;
        put(left, "type", old);
        let mut translated = Fields::new();
        translated.extend(new.as_ref().and_then(Value::as_object).cloned().unwrap_or_default());
        left.extend(rest(property, [ALPHA, BETA], kept, &mut translated));
        Ok(translated)
    })
}

/// A v1beta1 model in v1alpha2, and what has to be kept.
pub fn down(body: &Fields, kept: &Fields) -> Result<(Fields, Fields), CannotConvert> {
    translate(body, kept, |property, kept, left| {
        let found = of_type(&Value::Object(property.clone()));
        let found = Some(&found).filter(|found| !is_same(Some(found), None));
        let kept_type = kept.and_then(|kept| kept.get("type"));
        let (mut new, old) = part(found, kept_type, type_down, type_up)?;
        // v1beta1 has no default: it stays what it was as long as the type does.
        for (name, ..) in TYPES {
            let kept_default = kept_type.and_then(|kept| kept.get(name)).and_then(|own| own.get(DEFAULT));
            let own = new.as_mut().and_then(|new| new.get_mut(name)).and_then(Value::as_object_mut);
            if let (Some(default), Some(own)) = (kept_default, own) {
                own.entry(DEFAULT).or_insert_with(|| default.clone());
            }
        }
        let mut translated = Fields::new();
        put(&mut translated, "type", new);
        left.extend(rest(property, [BETA, ALPHA], kept, &mut translated));
        left.extend(old.as_ref().and_then(Value::as_object).cloned().unwrap_or_default());
        Ok(translated)
    })
}

/// What both ways have in common; `own` translates the rest of a property, and says what has to be kept of it.
fn translate(
    body: &Fields,
    kept: &Fields,
    own: impl Fn(&Fields, Option<&Value>, &mut Fields) -> Result<Fields, CannotConvert>,
) -> Result<(Fields, Fields), CannotConvert> {
    let (none, mut left) = (Fields::new(), Fields::new());
    let from = fields(body, "spec", "spec")?.unwrap_or(&none);
    let known = kept.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let (mut spec, mut new, mut properties_left) = (Fields::new(), Fields::new(), Fields::new());
    copy(from, &["protocol"], &mut spec);
    if let Some(properties) = items(from, "properties", "spec.properties")? {
        let mut list = Vec::new();
        for property in properties {
            let name = text(property, "name");
            let mut left = Fields::new();
            let mut translated = own(property, known.get(name), &mut left).map_err(|error| error.at_property(name))?;
            copy(property, &["name", "description"], &mut translated);
            put_all(&mut properties_left, name, left);
            list.push(Value::Object(translated));
        }
        spec.insert("properties".to_owned(), list.into());
    }
    put_all(&mut left, "properties", properties_left);
    put_all(&mut left, "spec", rest(from, [SPEC, SPEC], kept.get("spec"), &mut spec));
    put_all(&mut new, "spec", spec);
    put_all(&mut left, "object", rest(body, [&["spec"], &["spec"]], kept.get("object"), &mut new));
    Ok((new, left))
}

fn of_type(property: &Value) -> Value {
    let mut own = Fields::new();
    property.as_object().into_iter().for_each(|property| copy(property, TYPE, &mut own));
    Value::Object(own)
}

fn type_up(alpha: &Value) -> Result<Option<Value>, CannotConvert> {
    const FIELD: &str = "spec.properties";
    let types = alpha.as_object().ok_or_else(|| CannotConvert::shape(FIELD, "an object as type"))?;
    let mut found = TYPES.iter().filter(|(name, ..)| types.get(*name).is_some_and(|own| !own.is_null()));
    let Some((name, word, has_limits)) = found.next() else { return Ok(None) };
    if let Some((second, ..)) = found.next() {
        let why = format!("type has both {name} and {second}, and v1beta1 has one type");
        return Err(CannotConvert::new(FIELD, &why, "remove one of them"));
    }
    let own = types[*name].as_object().ok_or_else(|| CannotConvert::shape(FIELD, "an object as type"))?;
    let mut new = Fields::from_iter([("type".to_owned(), json!(word))]);
    copy(own, &["accessMode"], &mut new);
    if *has_limits {
        copy(own, &["unit"], &mut new);
        for limit in ["minimum", "maximum"] {
            if let Some(Value::Number(number)) = own.get(limit) {
                new.insert(limit.to_owned(), json!(whole(number).to_string()));
            }
        }
    }
    Ok(Some(Value::Object(new)))
}

fn type_down(beta: &Value) -> Result<Option<Value>, CannotConvert> {
    let Some((name, word, has_limits)) = TYPES.iter().find(|(_, word, _)| beta["type"] == *word) else {
        return Ok(None);
    };
    let mut own = Fields::new();
    let from = beta.as_object().cloned().unwrap_or_default();
    copy(&from, &["accessMode"], &mut own);
    if *has_limits {
        copy(&from, &["unit"], &mut own);
        for limit in ["minimum", "maximum"] {
            put(&mut own, limit, from.get(limit).and_then(Value::as_str).and_then(|text| number(text, *word == "INT")));
        }
    }
    Ok(Some(json!({*name: own})))
}

/// The number that a limit is, if v1alpha2 can have it.
fn number(text: &str, is_integer: bool) -> Option<Value> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i64>() {
        return Some(json!(number));
    }
    let float = text.parse::<f64>().ok().filter(|_| !is_integer)?;
    Number::from_f64(float).map(Value::Number)
}
