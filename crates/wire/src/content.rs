//! The content of a message: any JSON value, kept as its text.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// Raw JSON text. Cloning is cheap: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Bytes);

/// A content could not be made or understood.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The bytes are no JSON value.
    #[error("the content is no JSON value")]
    Invalid(#[source] serde_json::Error),
    /// The value cannot be written as JSON.
    #[error("the content cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The value is JSON, but not of the expected shape.
    #[error("the content has not the expected shape")]
    Shape(#[source] serde_json::Error),
}

const NULL: &[u8] = b"null";
const OK: &[u8] = b"\"OK\"";

impl Content {
    /// No content.
    pub const fn null() -> Self {
        Self(Bytes::from_static(NULL))
    }

    /// The acknowledgement `OK`.
    pub const fn ok() -> Self {
        Self(Bytes::from_static(OK))
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// A map key that is no string, or a failing `Serialize`.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, ContentError> {
        serde_json::to_vec(value).map(|text| Self(text.into())).map_err(ContentError::Encode)
    }

    /// A JSON string that holds this text.
    pub fn text(text: &str) -> Self {
        Self(serde_json::Value::from(text).to_string().into())
    }

    /// JSON text from outside, checked to be one value.
    ///
    /// # Errors
    /// The bytes are no JSON value.
    pub fn from_raw(text: Bytes) -> Result<Self, ContentError> {
        serde_json::from_slice::<&RawValue>(&text).map_err(ContentError::Invalid)?;
        Ok(Self(text))
    }

    /// JSON text that a parser has checked already.
    pub(crate) fn from_checked(text: &RawValue) -> Self {
        Self(Bytes::copy_from_slice(text.get().as_bytes()))
    }

    /// Whether this is the string `OK`.
    pub fn is_ok(&self) -> bool {
        self.0.as_ref() == OK
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        self.0.as_ref() == NULL
    }

    /// The JSON text.
    pub fn raw(&self) -> &[u8] {
        &self.0
    }

    /// The JSON text, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// What a receiver reads: the bytes of a string, the JSON text of anything else. A peer may send an object either as
    /// itself or as a string that holds its JSON.
    pub fn payload(&self) -> Cow<'_, [u8]> {
        if self.0.first() == Some(&b'"')
            && let Ok(text) = serde_json::from_slice::<String>(&self.0)
        {
            return Cow::Owned(text.into_bytes());
        }
        Cow::Borrowed(&self.0)
    }

    /// The payload as a typed value.
    ///
    /// # Errors
    /// The payload is not of that type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ContentError> {
        serde_json::from_slice(&self.payload()).map_err(ContentError::Shape)
    }
}

impl std::fmt::Debug for Content {
    /// Only the length: contents may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({} bytes)", self.0.len())
    }
}
