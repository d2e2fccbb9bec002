//! What all kinds have in common: parts of an object that both versions have in their own way.

use serde_json::{Map, Number, Value};

use super::CannotConvert;

/// The fields of an object.
pub type Fields = Map<String, Value>;

/// One way of a part: what the other version has instead, if anything.
pub type Way = fn(&Value) -> Result<Option<Value>, CannotConvert>;

/// A part in the other version, and what has to be kept of it here because it would not come back by itself.
///
/// `kept` is what the other version had when this one was made. It is taken if it still fits what is found here; else somebody has
/// changed the part since, and that counts.
pub fn part(
    found: Option<&Value>,
    kept: Option<&Value>,
    there: Way,
    back: Way,
) -> Result<(Option<Value>, Option<Value>), CannotConvert> {
    let gives = |there: &Value| back(there).is_ok_and(|back| is_same(back.as_ref(), found));
    let new = match kept.filter(|kept| gives(kept)) {
        Some(kept) => Some(kept.clone()),
        None => found.map(there).transpose()?.flatten(),
    };
    let returns = match &new {
        Some(new) => gives(new),
        None => is_same(None, found),
    };
    Ok((new, if returns { None } else { found.cloned() }))
}

/// Takes the fields that the other version does not have to `left`, and those that it had from `kept`; `known` are the names that are
/// translated, on this side and on the other.
pub fn rest(from: &Fields, known: [&[&str]; 2], kept: Option<&Value>, to: &mut Fields) -> Fields {
    let is_kept = |name: &String| !known[1].contains(&name.as_str());
    for (name, value) in kept.and_then(Value::as_object).into_iter().flatten().filter(|(name, _)| is_kept(name)) {
        to.insert(name.clone(), value.clone());
    }
    let left = from.iter().filter(|(name, value)| !known[0].contains(&name.as_str()) && !value.is_null());
    left.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A field with fields of its own; absent and null are the same.
pub fn fields<'a>(from: &'a Fields, name: &str, path: &str) -> Result<Option<&'a Fields>, CannotConvert> {
    match from.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(CannotConvert::shape(path, "an object")),
    }
}

/// A list of objects.
pub fn items<'a>(from: &'a Fields, name: &str, path: &str) -> Result<Option<Vec<&'a Fields>>, CannotConvert> {
    let list = match from.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(CannotConvert::shape(path, "a list")),
    };
    let item = |(at, item): (usize, &'a Value)| {
        item.as_object().ok_or_else(|| CannotConvert::shape(&format!("{path}[{at}]"), "an object"))
    };
    list.iter().enumerate().map(item).collect::<Result<_, _>>().map(Some)
}

/// A text, empty if there is none.
pub fn text<'a>(from: &'a Fields, name: &str) -> &'a str {
    from.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Copies these fields.
pub fn copy(from: &Fields, names: &[&str], to: &mut Fields) {
    for name in names {
        put(to, name, from.get(*name).filter(|value| !value.is_null()).cloned());
    }
}

/// Sets a field if there is a value.
pub fn put(to: &mut Fields, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        to.insert(name.to_owned(), value);
    }
}

/// Sets a field if it holds anything.
pub fn put_all(to: &mut Fields, name: &str, value: Fields) {
    put(to, name, (!value.is_empty()).then_some(Value::Object(value)));
}

/// Fields that programs in Go write empty when there is nothing to say. Elsewhere an empty object may say something: `modbus: {}`.
const EMPTY_IS_NOTHING: [&str; 9] =
    ["spec", "status", "protocol", "visitors", "configData", "common", "com", "tcp", "type"];

/// Whether both say the same: 1 is 1.0, what is null is not there, nor is an empty list or a part without a field.
pub fn is_same(one: Option<&Value>, other: Option<&Value>) -> bool {
    one.map(normal).filter(|value| !is_nothing(value)) == other.map(normal).filter(|value| !is_nothing(value))
}

/// The same value in the one form that is compared.
pub fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), normal(value)));
            let is_absent = |name: &str, value: &Value| {
                is_nothing(value) && (!value.is_object() || EMPTY_IS_NOTHING.contains(&name))
            };
            Value::Object(fields.filter(|(name, value)| !is_absent(name, value)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(normal).collect()),
        Value::Number(number) => Value::Number(whole(number)),
        other => other.clone(),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// A number without a fraction as a whole number, which is how it comes back from programs in Go.
pub fn whole(number: &Number) -> Number {
    /// Above, a double does not hold every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => Number::from(float as i64),
        _ => number.clone(),
    }
}
