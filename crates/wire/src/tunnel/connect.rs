//! What the cloud asks for: a request, in the JSON of Go's structs.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

/// Where the node's API is, as a Go cloud says.
const HOST: &str = "127.0.0.1:10350";
/// The longest text: upstream has no bound but that of frames; no server takes longer heads.
const MAX_TEXT: usize = 64 << 10;

/// A request to the node's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// The connection's id, again.
    pub id: u64,
    /// The path as in a request's first line, so that what is special is escaped (`%20`).
    pub path: String,
    /// What follows the question mark, as in a request's first line; empty when there is nothing.
    pub query: String,
    /// The headers by their names in Go's notation (`User-Agent`), without `Host`. See [`Connect::add_header`].
    pub headers: BTreeMap<String, Vec<String>>,
    /// The method, which only exec and attach have.
    pub method: Option<String>,
}

/// This asks for nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is longer than 64 KiB.
    #[error("a request in the tunnel has {0} bytes, more than 64 KiB")]
    TooLong(usize),
    /// It is no JSON.
    #[error("a request in the tunnel is no JSON object")]
    Json(#[source] serde_json::Error),
    /// Something in it is of another type.
    #[error("a request in the tunnel has no usable {0}")]
    Field(&'static str),
}

impl Connect {
    /// Adds a header; its name is written as Go does.
    pub fn add_header(&mut self, name: &str, value: &[u8]) {
        let value = String::from_utf8_lossy(value).into_owned();
        self.headers.entry(canonical(name)).or_default().push(value);
    }

    /// Path and query, as in a request's first line.
    pub fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    /// Writes it byte for byte as a Go cloud does.
    pub fn to_json(&self) -> Bytes {
        let path = unescaped(&self.path);
        let path = String::from_utf8_lossy(&path).into_owned();
        let raw_path = if escaped(path.as_bytes()) == self.path { "" } else { &self.path };
        let url = Url {
            scheme: "http",
            opaque: "",
            user: (),
            host: HOST,
            path: &path,
            fragment: "",
            raw_query: &self.query,
            raw_path,
            raw_fragment: "",
            force_query: false,
            omit_host: false,
        };
        let request = Request { id: self.id, url, header: &self.headers, method: self.method.as_deref() };
        let json = serde_json::to_string(&request).unwrap_or_default();
        let mut text = String::with_capacity(json.len() + 64);
        for character in json.chars() {
            match character {
                '&' => text.push_str("\\u0026"),
                '<' => text.push_str("\\u003c"),
                '>' => text.push_str("\\u003e"),
                '\u{2028}' => text.push_str("\\u2028"),
                '\u{2029}' => text.push_str("\\u2029"),
                other => text.push(other),
            }
        }
        text.into()
    }

    /// Reads it as Go does: names without regard to case, what is missing is empty. The address in it is of no account.
    ///
    /// # Errors
    /// It is too long, no JSON, or has fields of other types.
    pub fn parse(json: &[u8]) -> Result<Self, ConnectError> {
        if json.len() > MAX_TEXT {
            return Err(ConnectError::TooLong(json.len()));
        }
        let request: Map<String, Value> = serde_json::from_slice(json).map_err(ConnectError::Json)?;
        let id = match field(&request, "MessID") {
            None => 0,
            Some(id) => id.as_u64().ok_or(ConnectError::Field("MessID"))?,
        };
        let nothing = Map::new();
        let url = object(&request, "url", ConnectError::Field("url"))?.unwrap_or(&nothing);
        let (path, raw_path) = (text(url, "Path", "url.Path")?, text(url, "RawPath", "url.RawPath")?);
        let holds = is_escaped(raw_path) && unescaped(raw_path) == path.as_bytes();
        let path = if holds && !raw_path.is_empty() { raw_path.to_owned() } else { escaped(path.as_bytes()) };
        let headers = object(&request, "header", ConnectError::Field("header"))?.unwrap_or(&nothing);
        let headers: Option<BTreeMap<String, Vec<String>>> =
            headers.iter().map(|(name, values)| Some((name.clone(), texts(values)?))).collect();
        let method = text(&request, "method", "method")?;
        Ok(Self {
            id,
            path,
            query: text(url, "RawQuery", "url.RawQuery")?.to_owned(),
            headers: headers.ok_or(ConnectError::Field("header"))?,
            method: (!method.is_empty()).then(|| method.to_owned()),
        })
    }
}

/// The order of fields is that of the recordings.
#[derive(Serialize)]
struct Request<'a> {
    #[serde(rename = "MessID")]
    id: u64,
    url: Url<'a>,
    header: &'a BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
}

/// Go's `url.URL`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Url<'a> {
    scheme: &'a str,
    opaque: &'a str,
    user: (),
    host: &'a str,
    path: &'a str,
    fragment: &'a str,
    raw_query: &'a str,
    raw_path: &'a str,
    raw_fragment: &'a str,
    force_query: bool,
    omit_host: bool,
}

/// A field that is there and not null; the very name comes before one in other case.
fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let other = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    object.get(name).or_else(other).filter(|value| !value.is_null())
}

fn object<'a>(
    of: &'a Map<String, Value>,
    name: &str,
    wrong: ConnectError,
) -> Result<Option<&'a Map<String, Value>>, ConnectError> {
    field(of, name).map(|value| value.as_object().ok_or(wrong)).transpose()
}

fn text<'a>(of: &'a Map<String, Value>, name: &str, place: &'static str) -> Result<&'a str, ConnectError> {
    field(of, name).map_or(Ok(""), |value| value.as_str().ok_or(ConnectError::Field(place)))
}

fn texts(values: &Value) -> Option<Vec<String>> {
    match values {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A header's name in Go's notation: letters after a hyphen are capitals, all others are small. A name that is none stays.
fn canonical(name: &str) -> String {
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)) {
        return name.to_owned();
    }
    let mut begins = true;
    let letter = |letter: char| {
        let letter = if begins { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
        begins = letter == '-';
        letter
    };
    name.chars().map(letter).collect()
}

/// Which bytes of a path Go leaves as they are.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if is_plain(byte) {
            text.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Whether nothing is left in a path that ought to be escaped.
fn is_escaped(path: &str) -> bool {
    let hex = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    path.bytes().all(|byte| is_plain(byte) || b"!'()*[]%".contains(&byte)) && path.split('%').skip(1).all(hex)
}

/// A percent sign that begins no escape stays.
fn unescaped(path: &str) -> Vec<u8> {
    let digit =
        |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_where_go_escapes() {
        for (path, unescaped, raw_path) in [
            ("/exec/ns/p/c", "/exec/ns/p/c", ""),
            ("/a%20b/%C3%A4%25", "/a b/ä%", ""),
            ("/a%2Fb", "/a/b", "/a%2Fb"),
            ("/a!b", "/a!b", "/a!b"),
            ("/a%3Fb", "/a?b", ""),
            ("/a%25zz", "/a%zz", ""),
        ] {
            let connect = Connect { path: path.to_owned(), ..Connect::default() };
            let json = connect.to_json();
            let value: Value = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(value["url"]["Path"], unescaped);
            assert_eq!(value["url"]["RawPath"], raw_path);
            assert_eq!(Connect::parse(&json).expect("own"), connect);
        }
    }

    #[test]
    fn names_in_any_case_and_missing_fields() {
        let text = r#"{"messid":7,"URL":{"path":"/a b","rawpath":"/lie","RAWQUERY":"x=1","User":{}},"header":{"A":null,"B":["1","2"]},"Method":null,"more":1}"#;
        let read = Connect::parse(text.as_bytes()).expect("tolerant");
        let headers =
            BTreeMap::from([("A".to_owned(), vec![]), ("B".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
        let expected = Connect { id: 7, path: "/a%20b".into(), query: "x=1".into(), headers, method: None };
        assert_eq!(read, expected);
        assert_eq!(read.target(), "/a%20b?x=1");
        assert_eq!(Connect::parse(b"{}").expect("all zero"), Connect::default());
        let broken = Connect::parse(br#"{"url":{"Path":"/%zz","RawPath":"/%zz"}}"#).expect("tolerant");
        assert_eq!(broken.path, "/%25zz");
    }

    #[test]
    fn other_types_and_too_much_are_refused() {
        for (wrong, what) in [
            ("", "no JSON"),
            ("[]", "no JSON"),
            (r#"{"MessID":-1}"#, "MessID"),
            (r#"{"url":"http://x"}"#, "url"),
            (r#"{"url":{"Path":1}}"#, "url.Path"),
            (r#"{"header":{"a":"b"}}"#, "header"),
            (r#"{"header":{"a":[1]}}"#, "header"),
            (r#"{"method":["POST"]}"#, "method"),
        ] {
            let error = Connect::parse(wrong.as_bytes()).expect_err(wrong).to_string();
            assert!(error.contains(what), "{wrong}: {error}");
        }
        assert!(matches!(Connect::parse(&[b' '; MAX_TEXT + 1]), Err(ConnectError::TooLong(_))));
    }

    #[test]
    fn headers_are_named_as_in_go_and_special_characters_escaped() {
        let mut connect = Connect::default();
        connect.add_header("x-stream-protocol-version", b"<v5>");
        connect.add_header("X-STREAM-protocol-Version", b"\xff&\xe2\x80\xa8");
        connect.add_header("not a name", b"\x01\x0c");
        let json = String::from_utf8(connect.to_json().to_vec()).expect("text");
        let end =
            r#""header":{"X-Stream-Protocol-Version":["\u003cv5\u003e","�\u0026\u2028"],"not a name":["\u0001\f"]}}"#;
        assert!(json.ends_with(end), "{json}");
    }
}
