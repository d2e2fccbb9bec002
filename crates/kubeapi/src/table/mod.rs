//! `metav1.Table`: the cells that kubectl prints.

mod cells;
mod pod;
mod storage;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::{Column, Resource};

/// What stands in a row besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// The object's metadata.
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// Reads the query parameter `includeObject`.
    pub fn parse(text: &str) -> Self {
        match text {
            "Object" => Self::Object,
            "None" => Self::None,
            _ => Self::Metadata,
        }
    }
}

/// A table of these objects; `metadata` is that of the list.
pub fn table(resource: &Resource, objects: &[Value], metadata: Value, include: Include, with_columns: bool) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, include, now)).collect();
    let columns: Vec<Value> =
        if with_columns { columns(resource).iter().map(definition).collect() } else { Vec::new() };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = columns(resource).iter().map(|column| cell(resource, column, object, now)).collect();
    let mut row = json!({"cells": cells});
    match include {
        Include::Object => row["object"] = object.clone(),
        Include::Metadata => {
            row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
        }
        Include::None => {}
    }
    row
}

fn cell(resource: &Resource, column: &Column, object: &Value, now: Timestamp) -> Value {
    if !column.json_path.is_empty() {
        return custom(object, column, now);
    }
    match column.name.as_str() {
        "Name" if resource.plural == "storageclasses" => {
            storage::cell(&resource.plural, "Name", object).unwrap_or_default()
        }
        "Name" => object["metadata"]["name"].clone(),
        "Age" => json!(age(object["metadata"]["creationTimestamp"].as_str(), now)),
        "Created At" => object["metadata"]["creationTimestamp"].clone(),
        name if resource.plural == "pods" => pod::cell(name, object, now),
        name => storage::cell(&resource.plural, name, object)
            .unwrap_or_else(|| cells::cell(&resource.plural, name, object, now)),
    }
}

/// A CRD's column. Of JSON path the part is known that CRDs use: fields, quoted fields, indices, all items of a list, and one filter by equality.
fn custom(object: &Value, column: &Column, now: Timestamp) -> Value {
    let found = json_path(object, &column.json_path);
    match (found, column.kind.as_str()) {
        (None, _) => Value::Null,
        (Some(value), "date") => json!(age(value.as_str(), now)),
        (Some(value), "integer" | "number" | "boolean") => value.clone(),
        (Some(Value::String(text)), _) => json!(text),
        (Some(value), _) => json!(value.to_string()),
    }
}

fn json_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (inside, after) = inner.split_once(']')?;
            rest = after;
            if inside == "*" {
                // Of many values upstream shows the first.
                return value.as_array()?.iter().find_map(|item| json_path(item, rest));
            }
            value = if let Some(filter) = inside.strip_prefix("?(@.") {
                let (field, wanted) = filter.strip_suffix(')')?.split_once("==")?;
                let wanted = wanted.trim().trim_matches(['\'', '"']);
                value.as_array()?.iter().find(|item| item[field.trim()] == wanted)?
            } else if let Ok(at) = inside.parse::<usize>() {
                value.get(at)?
            } else {
                value.get(inside.trim_matches(['\'', '"']))?
            };
            continue;
        }
        let text = rest.strip_prefix('.').unwrap_or(rest);
        let mut name = String::new();
        let mut letters = text.char_indices();
        let mut end = text.len();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => name.extend(letters.next().map(|(_, escaped)| escaped)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                letter => name.push(letter),
            }
        }
        rest = &text[end..];
        if !name.is_empty() {
            value = value.get(&name)?;
        }
    }
    Some(value)
}

fn columns(resource: &Resource) -> Vec<Column> {
    if !resource.columns.is_empty() {
        return resource.columns.clone();
    }
    let name = Column { name: "Name".into(), kind: "string".into(), format: "name".into(), ..Column::default() };
    vec![name, Column { name: "Age".into(), kind: "string".into(), ..Column::default() }]
}

fn definition(column: &Column) -> Value {
    json!({"name": column.name, "type": column.kind, "format": column.format, "description": "", "priority": column.priority})
}

/// How long ago a time was, as kubectl writes it: `5s`, `3m20s`, `2d3h`.
pub fn age(since: Option<&str>, now: Timestamp) -> String {
    match since.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(at) => human_duration(now.duration_since(at).as_secs()),
        None => "<unknown>".to_owned(),
    }
}

/// Seconds as kubectl writes them.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_does() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (900, "15m"),
            (11_000, "3h3m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn json_paths_of_crds() {
        let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "list": [1, 2]}});
        assert_eq!(json_path(&object, ".status.list[1]"), Some(&json!(2)));
        assert_eq!(json_path(&object, ".status.conditions[?(@.type==\"Ready\")].status"), Some(&json!("True")));
        assert_eq!(json_path(&object, ".metadata.labels['a.b/c']"), Some(&json!("x")));
        assert_eq!(json_path(&object, r".metadata.labels.a\.b/c"), Some(&json!("x")));
        assert_eq!(json_path(&object, ".spec.none"), None);
        let object = json!({"twins": [{"name": "a"}, {"name": "b", "value": "1"}, {"value": "2"}]});
        assert_eq!(json_path(&object, ".twins[*].value"), Some(&json!("1")), "the first that is there");
        assert_eq!(json_path(&object, ".twins[*].none"), None);
    }
}
