//! Label and field selectors of lists and watches.

use serde_json::Value;

use crate::ApiError;

/// More requirements than this are refused.
const MAX_REQUIREMENTS: usize = 64;

/// What a list or watch is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    labels: Vec<LabelRequirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelRequirement {
    Exists(String),
    Missing(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    path: String,
    value: String,
    equal: bool,
}

impl Selectors {
    /// Reads both selectors; empty texts select everything.
    ///
    /// # Errors
    /// One is malformed.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, ApiError> {
        let selectors = Self { labels: parse_labels(labels)?, fields: parse_fields(fields)? };
        if selectors.labels.len() + selectors.fields.len() > MAX_REQUIREMENTS {
            return Err(ApiError::bad_request(format!("a selector has at most {MAX_REQUIREMENTS} requirements")));
        }
        Ok(selectors)
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self
                .fields
                .iter()
                .all(|requirement| (field(object, &requirement.path) == requirement.value) == requirement.equal)
    }

    /// The fields that are asked about.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|requirement| requirement.path.as_str())
    }

    /// The name that `metadata.name=` selects, if it does.
    pub fn name(&self) -> Option<&str> {
        self.fields.iter().find(|r| r.equal && r.path == "metadata.name").map(|r| r.value.as_str())
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &Value) -> bool {
        match self {
            Self::Exists(key) => labels[key].is_string(),
            Self::Missing(key) => !labels[key].is_string(),
            Self::In(key, values) => labels[key].as_str().is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(key, values) => labels[key].as_str().is_none_or(|value| values.iter().all(|v| v != value)),
        }
    }
}

/// The text of a field; an absent one is empty. Booleans count as `true` or `false`, an absent `spec.unschedulable` as `false`.
fn field(object: &Value, path: &str) -> String {
    let pointer = format!("/{}", path.replace('.', "/"));
    match object.pointer(&pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(value)) => value.to_string(),
        _ if path == "spec.unschedulable" => "false".to_owned(),
        _ => String::new(),
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    let mut requirements = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (path, value, equal) = match (part.split_once("!="), part.split_once("==")) {
            (Some((path, value)), _) => (path, value, false),
            (None, Some((path, value))) => (path, value, true),
            (None, None) => {
                let (path, value) = part.split_once('=').ok_or_else(|| {
                    ApiError::bad_request(format!(
                        "invalid field selector \"{part}\": expected field=value or field!=value"
                    ))
                })?;
                (path, value, true)
            }
        };
        requirements.push(FieldRequirement { path: path.trim().to_owned(), value: value.trim().to_owned(), equal });
    }
    Ok(requirements)
}

fn parse_labels(text: &str) -> Result<Vec<LabelRequirement>, ApiError> {
    split_top_level(text).into_iter().filter(|part| !part.is_empty()).map(parse_label).collect()
}

/// Splits at commas that stand outside of parentheses.
fn split_top_level(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn parse_label(part: &str) -> Result<LabelRequirement, ApiError> {
    let wrong = || ApiError::bad_request(format!("unable to parse requirement: \"{part}\""));
    let key = |text: &str| {
        let text = text.trim();
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if fits { Ok(text.to_owned()) } else { Err(wrong()) }
    };
    if let Some(name) = part.strip_prefix('!') {
        return key(name).map(LabelRequirement::Missing);
    }
    for (word, is_in) in [(" notin ", false), (" in ", true), (" notin(", false), (" in(", true)] {
        let Some((name, rest)) = part.split_once(word) else { continue };
        let rest = rest.trim();
        let rest = if word.ends_with('(') { rest } else { rest.strip_prefix('(').ok_or_else(wrong)? };
        let values = rest.strip_suffix(')').ok_or_else(wrong)?.split(',').map(|v| v.trim().to_owned()).collect();
        let name = key(name)?;
        return Ok(if is_in { LabelRequirement::In(name, values) } else { LabelRequirement::NotIn(name, values) });
    }
    if let Some((name, value)) = part.split_once("!=") {
        return Ok(LabelRequirement::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(LabelRequirement::In(key(name)?, vec![value.trim().to_owned()]));
    }
    key(part).map(LabelRequirement::Exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let pod = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (db, web),tier", true),
            ("app notin (web)", false),
            ("!app", false),
            ("!zone", true),
            ("zone!=a", true),
            ("zone", false),
            ("zone=a", false),
        ] {
            assert_eq!(Selectors::parse(text, "").expect(text).matches(&pod), expected, "{text}");
        }
        for wrong in ["=", "app in web", "a b", "app in (x"] {
            assert!(Selectors::parse(wrong, "").is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        for (text, expected) in [
            ("metadata.name=p", true),
            ("spec.nodeName=n1,status.phase!=Succeeded,status.phase!=Failed", true),
            ("status.phase=Pending", false),
            ("involvedObject.namespace=", true),
            ("spec.nodeName!=", true),
            ("spec.unschedulable=false", true),
        ] {
            assert_eq!(Selectors::parse("", text).expect(text).matches(&pod), expected, "{text}");
        }
        assert!(Selectors::parse("", "spec.nodeName").is_err());
        assert_eq!(Selectors::parse("", "metadata.name=x").expect("selector").name(), Some("x"));
    }
}
