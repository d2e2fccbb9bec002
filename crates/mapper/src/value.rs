//! Values of properties: text in messages, typed in drivers.

use std::fmt::{self, Write};

/// The type of a property, by its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Int,
    /// A number, of 32 bits in the device as a rule.
    Float,
    /// A number, of 64 bits in the device as a rule.
    Double,
    /// True or false.
    Boolean,
    /// A text.
    Text,
    /// Bytes; hexadecimal as text.
    Bytes,
}

impl Kind {
    /// By its name in a model, in any case of letters.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "int" => Self::Int,
            "float" => Self::Float,
            "double" => Self::Double,
            "boolean" => Self::Boolean,
            "string" => Self::Text,
            "bytes" => Self::Bytes,
            _ => return None,
        })
    }

    /// Its name as reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float => "float",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::Text => "string",
            Self::Bytes => "bytes",
        }
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of [`Kind::Float`] and [`Kind::Double`].
    Number(f64),
    /// Of [`Kind::Boolean`].
    Boolean(bool),
    /// Of [`Kind::Text`].
    Text(String),
    /// Of [`Kind::Bytes`].
    Bytes(Vec<u8>),
}

impl Value {
    /// The value that a text stands for; `None` if it is none of this kind.
    ///
    /// Booleans are what Go takes for them (`true`, `1`, `t`, …), numbers are finite.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        Some(match kind {
            Kind::Int => Self::Int(text.trim().parse().ok()?),
            Kind::Float | Kind::Double => Self::Number(number(text)?),
            Kind::Boolean => Self::Boolean(match text {
                "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
                "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
                _ => return None,
            }),
            Kind::Text => Self::Text(text.to_owned()),
            Kind::Bytes => Self::Bytes(bytes(text)?),
        })
    }
}

/// A finite number.
pub(crate) fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let digit = |at: usize| digits.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..digits.len()).step_by(2).map(digit).collect()
}

/// As reports have it: the shortest text of a number, bytes in lower-case hexadecimal.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Boolean(flag) => flag.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| {
                f.write_char(char::from_digit(u32::from(byte >> 4), 16).unwrap_or_default())?;
                f.write_char(char::from_digit(u32::from(byte & 15), 16).unwrap_or_default())
            }),
        }
    }
}

/// A value that a property cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It is no such thing.
    #[error("{value:?} is no value of property {property}, which is of type {kind}{hint}")]
    Kind {
        /// Of which property.
        property: String,
        /// The text.
        value: String,
        /// What it should be.
        kind: &'static str,
        /// How it would be.
        hint: &'static str,
    },
    /// It is out of bounds.
    #[error("{value} is out of bounds for property {property}: its model allows {minimum} to {maximum}")]
    Bounds {
        /// Of which property.
        property: String,
        /// The text.
        value: String,
        /// The least.
        minimum: String,
        /// The most.
        maximum: String,
    },
    /// The property can only be read.
    #[error("property {property} is ReadOnly in its model: {value:?} is not written")]
    ReadOnly {
        /// Which property.
        property: String,
        /// The text.
        value: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_values() {
        let table = [
            (Kind::Int, "-7", Some(Value::Int(-7)), "-7"),
            (Kind::Int, "7.5", None, ""),
            (Kind::Int, "99999999999999999999", None, ""),
            (Kind::Float, "21.50", Some(Value::Number(21.5)), "21.5"),
            (Kind::Double, "1e3", Some(Value::Number(1000.0)), "1000"),
            (Kind::Float, "NaN", None, ""),
            (Kind::Float, "inf", None, ""),
            (Kind::Boolean, "T", Some(Value::Boolean(true)), "true"),
            (Kind::Boolean, "maybe", None, ""),
            (Kind::Text, "a b", Some(Value::Text("a b".to_owned())), "a b"),
            (Kind::Bytes, "0x00ffA1", Some(Value::Bytes(vec![0, 255, 161])), "00ffa1"),
            (Kind::Bytes, "", Some(Value::Bytes(Vec::new())), ""),
            (Kind::Bytes, "f", None, ""),
            (Kind::Bytes, "+1", None, ""),
            (Kind::Bytes, "äb", None, ""),
        ];
        for (kind, text, value, shown) in table {
            let parsed = Value::parse(kind, text);
            assert_eq!(parsed, value, "{text}");
            if let Some(value) = parsed {
                assert_eq!(value.to_string(), shown);
            }
        }
    }
}
