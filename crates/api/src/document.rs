//! A configuration document: defaults, the user's values over them, and what is wrong with those.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// A longer file is refused.
const MAX_BYTES: u64 = 1 << 20;
/// A key that differs in more letters than this is no suggestion.
const SIMILAR: usize = 3;

/// A merged document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Defaults with the user's values.
    pub value: Value,
    /// What the user should know, for example unknown keys.
    pub warnings: Vec<String>,
    errors: Vec<String>,
}

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {} cannot be read: {hint}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is no YAML.
    #[error("configuration {} is not valid YAML: {message}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// Values are wrong or contradict each other.
    #[error("configuration {}:\n  {}", path.display(), mistakes.join("\n  "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each with its path in the document.
        mistakes: Vec<String>,
    },
}

/// What the keys of a document may be.
pub(crate) struct Shape {
    /// The complete default document.
    pub default: &'static str,
    /// Paths below which any key may stand.
    pub free: &'static [&'static str],
    /// Keys that upstream knows and leaves out of the default document.
    pub optional: &'static [&'static str],
    /// What a user does who has no file.
    pub hint: &'static str,
    /// Says with [`Document::mistake`] what is wrong with the values.
    pub check: fn(&mut Document),
}

impl Document {
    /// The defaults.
    pub(crate) fn default_of(shape: &Shape) -> Self {
        let value = parse(shape.default).expect("the embedded default document is valid: a test reads it");
        Self { value, warnings: Vec::new(), errors: Vec::new() }
    }

    /// Reads a file over the defaults, and checks it.
    pub(crate) fn load(path: &Path, shape: &Shape) -> Result<Self, ConfigError> {
        let read = || {
            use std::io::Read;
            let mut text = String::new();
            std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
            if text.len() as u64 > MAX_BYTES {
                return Err(std::io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
            }
            Ok(text)
        };
        let (at, hint) = (path.to_path_buf(), shape.hint);
        let text = read().map_err(|source| ConfigError::Read { path: at, hint, source })?;
        Self::parse(&text, path, shape)
    }

    /// Reads a text over the defaults, and checks it; `path` is for messages.
    pub(crate) fn parse(text: &str, path: &Path, shape: &Shape) -> Result<Self, ConfigError> {
        let path = path.to_path_buf();
        let mut document = match Self::merged(text, shape) {
            Ok(document) => document,
            Err(message) => return Err(ConfigError::Yaml { path, message }),
        };
        (shape.check)(&mut document);
        match std::mem::take(&mut document.errors) {
            mistakes if mistakes.is_empty() => Ok(document),
            mistakes => Err(ConfigError::Invalid { path, mistakes }),
        }
    }

    fn merged(text: &str, shape: &Shape) -> Result<Self, String> {
        let mut document = Self::default_of(shape);
        let user = parse(text)?;
        let mut value = std::mem::take(&mut document.value);
        match user {
            Value::Null => {}
            Value::Object(user) => {
                let mut places = Vec::new();
                collect_places(&value, "", &mut places);
                document.merge(&mut value, user, "", shape, &places);
            }
            _ => document.errors.push("the document must be a map".to_owned()),
        }
        document.value = value;
        Ok(document)
    }

    /// A value by its path, for example `modules.edgeHub.heartbeat`.
    pub fn get(&self, path: &str) -> &Value {
        static NULL: Value = Value::Null;
        self.value.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&NULL)
    }

    /// A text, empty when absent.
    pub fn text(&self, path: &str) -> String {
        self.get(path).as_str().unwrap_or_default().to_owned()
    }

    /// A whole number, zero when absent.
    pub fn number(&self, path: &str) -> i64 {
        self.get(path).as_i64().unwrap_or_default()
    }

    /// A switch, off when absent.
    pub fn flag(&self, path: &str) -> bool {
        self.get(path).as_bool().unwrap_or_default()
    }

    /// A list of texts.
    pub fn texts(&self, path: &str) -> Vec<String> {
        self.get(path).as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Remembers a mistake.
    pub(crate) fn mistake(&mut self, path: &str, why: &str) {
        self.errors.push(format!("{path}: {why}"));
    }

    /// The document as YAML.
    pub fn to_yaml(&self) -> String {
        to_yaml(&self.value)
    }

    /// `places` are all paths of the default document: a key may stand in the wrong one.
    fn merge(&mut self, base: &mut Value, user: Map<String, Value>, at: &str, shape: &Shape, places: &[String]) {
        let Value::Object(base) = base else { return };
        for (key, value) in user {
            let known = base.keys().find(|known| known.eq_ignore_ascii_case(&key)).cloned();
            let path = join(at, known.as_deref().unwrap_or(&key));
            let Some(known) = known else {
                if is_below(&path, shape.free) || shape.optional.contains(&path.as_str()) {
                    base.insert(key, value);
                } else {
                    self.warnings.push(unknown(&path, &key, base, places));
                }
                continue;
            };
            let slot = &mut base[&known];
            match (&*slot, value) {
                (_, Value::Null) => {}
                (Value::Object(_), Value::Object(inner)) => self.merge(slot, inner, &path, shape, places),
                (Value::Bool(_), Value::String(text)) if yaml_1_1_flag(&text).is_some() => {
                    *slot = Value::Bool(yaml_1_1_flag(&text).unwrap_or_default());
                }
                (old, new) if fits(old, &new) => *slot = new,
                (old, new) => {
                    let why = format!("expected {}, found {}", type_name(old), type_name(&new));
                    self.errors.push(format!("{path}: {why}"));
                }
            }
        }
    }
}

/// Reads YAML as Kubernetes' tools do: octal numbers with a leading zero, no duplicate keys.
///
/// # Errors
/// Where and why it is no YAML.
pub fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Writes YAML.
pub fn to_yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

fn is_below(path: &str, parents: &[&str]) -> bool {
    parents.iter().any(|parent| path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.')))
}

/// A default of null or an empty list tells nothing about the type of its value.
fn fits(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Null, _) => true,
        (Value::String(_), Value::String(_)) => true,
        (Value::Number(old), Value::Number(new)) => new.is_i64() || old.is_f64(),
        (Value::Bool(_), Value::Bool(_)) => true,
        (Value::Array(_), Value::Array(_)) => true,
        (Value::Object(_), Value::Object(_)) => true,
        _ => false,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a fractional number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Go's YAML reader knows these too, as YAML 1.1 has it.
fn yaml_1_1_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" => Some(true),
        "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

fn collect_places(value: &Value, at: &str, places: &mut Vec<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = join(at, key);
        collect_places(inner, &path, places);
        places.push(path);
    }
}

fn unknown(path: &str, key: &str, known: &Map<String, Value>, places: &[String]) -> String {
    let best = known.keys().map(|candidate| (distance(key, candidate), candidate)).min();
    let similar =
        best.filter(|(letters, _)| *letters <= SIMILAR.min(key.len() / 2)).map(|(_, candidate)| candidate.as_str());
    let suggestion = similar.or_else(|| elsewhere(path, key, places));
    match suggestion {
        Some(suggestion) => format!("{path} is not known and has no effect: did you mean {suggestion}?"),
        None => format!("{path} is not known and has no effect"),
    }
}

/// The place of this very key that is nearest to where it stands.
fn elsewhere<'a>(path: &str, key: &str, places: &'a [String]) -> Option<&'a str> {
    let common = |place: &str| place.split('.').zip(path.split('.')).take_while(|(a, b)| a == b).count();
    let same =
        places.iter().filter(|place| place.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case(key)));
    same.max_by_key(|place| (common(place), std::cmp::Reverse(place.split('.').count()))).map(String::as_str)
}

/// How many letters must be changed, added or left out to make one word of the other, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().take(64).collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
