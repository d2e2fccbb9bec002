//! What names and values of properties are allowed.

use crate::payload::{Entries, Entry, MAX_PAYLOAD, Value};

/// Characters of a property's name at most.
const MAX_NAME: usize = 128;
/// Characters of a value at most.
const MAX_VALUE: usize = 512;
/// The type that says that a property is deleted.
pub const DELETED: &str = "deleted";
/// The type of a property of which nobody says one.
pub const STRING: &str = "string";

/// Why a request about a twin is refused; nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too long.
    #[error("the payload has {bytes} bytes, more than {MAX_PAYLOAD}")]
    Long {
        /// Its length.
        bytes: usize,
    },
    /// No JSON, or other fields.
    #[error(
        "the payload is no request as JSON, like {{\"event_id\":\"1\",\"twin\":{{\"NAME\":{{\"actual\":{{\"value\":\"TEXT\"}}}}}}}}: {cause}"
    )]
    Shape {
        /// What the parser says.
        cause: String,
    },
    /// Nothing to update.
    #[error("the payload has no \"twin\"")]
    NoTwin,
    /// A property's name.
    #[error("property {name:?}: a name has 1 to {MAX_NAME} of the characters A-Z a-z 0-9 - _ . , : / @ #")]
    Name {
        /// The name, cut to what fits.
        name: String,
    },
    /// A value's characters.
    #[error("property {name:?}: a value has at most {MAX_VALUE} of the characters A-Z a-z 0-9 - _ . , : / @ #")]
    Characters {
        /// The property.
        name: String,
    },
    /// A value's type.
    #[error("property {name:?}: {value:?} is no {kind}")]
    Type {
        /// The property.
        name: String,
        /// The value.
        value: String,
        /// The type.
        kind: String,
    },
    /// A type that there is not.
    #[error("property {name:?}: there is no type {kind:?}, only int, integer, float, boolean and string")]
    NoSuchType {
        /// The property.
        name: String,
        /// The type, cut to the length of a name.
        kind: String,
    },
    /// No such device on this node.
    #[error("no device of this name is on this node")]
    NoDevice,
}

impl Refusal {
    /// The code in the answer (KubeEdge v1.23).
    pub fn code(&self) -> u16 {
        match self {
            Self::NoDevice => 404,
            _ => 400,
        }
    }

    /// The refusal without what the payload says, but for the property's name: for events, of which those with the same text are one.
    pub fn summary(&self) -> String {
        match self {
            Self::Long { .. } => format!("the payload has more than {MAX_PAYLOAD} bytes"),
            Self::Shape { .. } => "the payload is no request as JSON".to_owned(),
            Self::Type { name, kind, .. } => format!("property {name:?}: the value is no {kind}"),
            Self::NoSuchType { name, .. } => {
                format!("property {name:?}: there is no such type, only int, integer, float, boolean and string")
            }
            other => other.to_string(),
        }
    }
}

/// Checks names and characters of an update.
///
/// # Errors
/// The first that is not allowed.
pub fn characters(entries: &Entries) -> Result<(), Refusal> {
    for (name, entry) in entries {
        if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(is_allowed) {
            return Err(Refusal::Name { name: name.chars().take(MAX_NAME).collect() });
        }
        let values = entry.iter().flat_map(|entry| [&entry.expected, &entry.actual]).flatten();
        for text in values.filter_map(|value| value.value.as_deref()) {
            if text.len() > MAX_VALUE || !text.bytes().all(is_allowed) {
                return Err(Refusal::Characters { name: name.clone() });
            }
        }
    }
    Ok(())
}

/// Checks the values of a property that has this type; an empty one is none.
///
/// # Errors
/// One does not fit, or there is no such type.
pub fn values(name: &str, kind: &str, entry: &Entry) -> Result<(), Refusal> {
    for text in [&entry.expected, &entry.actual].into_iter().flatten().filter_map(text) {
        let fits = match kind {
            "int" | "integer" => text.parse::<i64>().is_ok(),
            "float" => is_float(text),
            "boolean" => matches!(text, "true" | "false"),
            _ => true,
        };
        if !fits {
            return Err(Refusal::Type { name: name.to_owned(), value: text.to_owned(), kind: kind.to_owned() });
        }
    }
    Ok(())
}

/// Whether properties of this type can be made.
///
/// # Errors
/// They cannot.
pub fn kind(name: &str, kind: &str) -> Result<(), Refusal> {
    if matches!(kind, "" | "int" | "integer" | "float" | "boolean" | STRING | DELETED) {
        return Ok(());
    }
    Err(Refusal::NoSuchType { name: name.to_owned(), kind: kind.chars().take(MAX_NAME).collect() })
}

/// The text of a value, if it has any.
pub(crate) fn text(value: &Value) -> Option<&str> {
    value.value.as_deref().filter(|text| !text.is_empty())
}

/// What measures nothing is no number: `NaN`, `Inf` and what is too large for 64 bits. (KubeEdge v1.23 takes the first two.)
fn is_float(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(f64::is_finite)
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_each_type() {
        for (kind, text, fits) in [
            ("int", "-9223372036854775808", true),
            ("int", "9223372036854775808", false),
            ("integer", "1.0", false),
            ("float", "1e308", true),
            ("float", "-1e999", false),
            ("float", "Inf", false),
            ("float", "-infinity", false),
            ("float", "NaN", false),
            ("float", "warm", false),
            ("boolean", "True", false),
            ("boolean", "false", true),
            ("string", "anything", true),
            ("int", "", true),
        ] {
            let value = Value { value: Some(text.to_owned()), metadata: None };
            let entry = Entry { actual: Some(value), ..Entry::default() };
            assert_eq!(values("p", kind, &entry).is_ok(), fits, "{kind} {text}");
        }
    }

    #[test]
    fn a_summary_says_nothing_of_the_payload() {
        let [name, secret] = ["p", "secret"].map(str::to_owned);
        for refusal in [
            Refusal::Type { name: name.clone(), value: secret.clone(), kind: "int".to_owned() },
            Refusal::NoSuchType { name, kind: secret.clone() },
            Refusal::Shape { cause: secret },
        ] {
            assert!(refusal.to_string().contains("secret") && !refusal.summary().contains("secret"), "{refusal}");
        }
    }
}
