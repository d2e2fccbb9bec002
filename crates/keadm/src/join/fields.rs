//! `--set path=value,…`: fields of edgecore.yaml by their path.

use serde_json::{Map, Value, json};

/// Splits at the commas that stand in no braces.
pub(super) fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Sets one field. What stands there now decides how the text is read, so that a text field may hold digits.
pub(super) fn set(document: &mut Value, field: &str) -> Result<(), String> {
    let (path, text) = field.split_once('=').ok_or_else(|| format!("{field:?}: write path=value"))?;
    let mut slot = document;
    for part in path.trim().split('.') {
        let Value::Object(map) = slot else { return Err(format!("{path:?}: {part:?} is inside a value, not a map")) };
        let known = map.keys().find(|key| key.eq_ignore_ascii_case(part)).cloned();
        // An unknown key is told later, with a suggestion, by the check of the whole document.
        slot = map.entry(known.unwrap_or_else(|| part.to_owned())).or_insert(Value::Null);
    }
    let labels = path.to_lowercase().ends_with("labels");
    let value = read(slot, text, labels).ok_or_else(|| format!("{path}={text}: not {}", wanted(slot)))?;
    match (slot, value) {
        (Value::Object(old), Value::Object(new)) => old.extend(new),
        (slot, value) => *slot = value,
    }
    Ok(())
}

fn read(now: &Value, text: &str, texts_only: bool) -> Option<Value> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    match now {
        Value::String(_) => Some(json!(text)),
        Value::Bool(_) => text.parse().ok().map(Value::Bool),
        Value::Number(_) => {
            text.parse::<i64>().map(|n| json!(n)).or_else(|_| text.parse::<f64>().map(|n| json!(n))).ok()
        }
        Value::Array(_) => {
            Some(inner.map_or_else(|| vec![text], split).into_iter().map(|item| json!(item.trim())).collect())
        }
        Value::Object(_) => {
            let mut map = Map::new();
            for pair in split(inner?) {
                let (key, value) = pair.split_once(':')?;
                let value = value.trim();
                let value = value.parse().map(Value::Bool).ok().filter(|_| !texts_only).unwrap_or_else(|| json!(value));
                map.insert(key.trim().to_owned(), value);
            }
            Some(Value::Object(map))
        }
        Value::Null => Some(match inner {
            Some(inner) => split(inner).into_iter().map(|item| json!(item.trim())).collect(),
            None => serde_json::from_str::<Value>(text)
                .ok()
                .filter(|v| v.is_boolean() || v.is_number())
                .unwrap_or(json!(text)),
        }),
    }
}

fn wanted(now: &Value) -> &'static str {
    match now {
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::Object(_) => "a map like {key:value,key:value}",
        _ => "a value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_braces_do_not_split() {
        assert_eq!(split("a=1,b={x,y},c={k:v,l:w}"), ["a=1", "b={x,y}", "c={k:v,l:w}"]);
        assert_eq!(split("a=b=c,,"), ["a=b=c"]);
    }

    #[test]
    fn the_field_decides_how_a_text_is_read() {
        let mut document = json!({
            "text": "x", "flag": true, "count": 1, "part": 0.5, "list": ["a"], "map": {"a": "1"}, "nodeLabels": {}, "open": null,
        });
        for field in [
            "text=007",
            "FLAG=false",
            "count=-3",
            "part=0.25",
            "list={b,c}",
            "map={b:2,c:true}",
            "nodeLabels={x:true}",
            "open=true",
        ] {
            set(&mut document, field).unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(
            document,
            json!({
                "text": "007", "flag": false, "count": -3, "part": 0.25, "list": ["b", "c"],
                "map": {"a": "1", "b": "2", "c": true}, "nodeLabels": {"x": "true"}, "open": true,
            })
        );
        for wrong in ["flag", "flag=maybe", "count=many", "map=x", "text.inner=1", "map={x}"] {
            assert!(set(&mut document, wrong).is_err(), "{wrong}");
        }
        set(&mut document, "text=a=b").expect("an equals sign in a text");
        assert_eq!(document["text"], "a=b");
    }
}
