//! How two ends name a stream that goes on.

use std::fmt;
use std::str::FromStr;

/// The name of a stream, which nobody guesses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id(u128);

impl Id {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// Which stream goes on, and how many bytes of it the end that says so has read: `ID:COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The stream.
    pub id: Id,
    /// The count; the other end goes on with what comes after.
    pub read: u64,
}

/// A text that names no stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no stream: 32 hexadecimal digits do, and to go on `:` and a count of bytes after them")]
pub struct NotOurs(String);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    /// Who has it may take the stream, so it is in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Id")
    }
}

impl FromStr for Id {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let wrong = || NotOurs(text.chars().take(64).collect());
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.read)
    }
}

impl FromStr for Resume {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let wrong = || NotOurs(text.chars().take(64).collect());
        let (id, read) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { id: id.parse()?, read: read.parse().map_err(|_| wrong())? })
    }
}
