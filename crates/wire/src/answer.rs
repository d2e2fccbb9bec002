//! Answers that carry an object or an error: `{"Object":…,"Err":…}` and `{"ErrStatus":…}`.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Content, ContentError};

/// The answer to requests that create or change: either the object as it is now, or why not.
#[derive(Debug, Serialize, Deserialize)]
pub struct ObjectResp {
    /// The object; `null` when there is none.
    #[serde(rename = "Object", default)]
    pub object: Option<Box<RawValue>>,
    /// `null` on success.
    #[serde(rename = "Err", default)]
    pub err: Option<ErrorAnswer>,
}

/// The failure of a query, and the error inside [`ObjectResp`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What the API server said.
    #[serde(rename = "ErrStatus", default)]
    pub status: Status,
}

/// `metav1.Status` (Kubernetes API).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Always empty here; Go writes it.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// `Success` or `Failure`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs, for example `NotFound`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the reason is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// The HTTP code.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusDetails {
    /// The object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The object's uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Why a request failed, as its requester sees it.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The API server refused.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The other side answered with an error in words.
    #[error("{0}")]
    Text(String),
    /// The answer has not the expected shape.
    #[error("the answer has not the expected shape")]
    Shape(#[source] ContentError),
}

impl Status {
    /// A failure with this code, reason and message.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.to_owned(),
            code,
            ..Self::default()
        }
    }
}

impl ObjectResp {
    /// Success.
    pub fn object(object: Box<RawValue>) -> Self {
        Self { object: Some(object), err: None }
    }

    /// Failure. An error is never `{}`: a Go edge would take that for success.
    pub fn error(status: Status) -> Self {
        Self { object: None, err: Some(ErrorAnswer { status }) }
    }
}

impl Content {
    /// The object in an answer, whichever of the three forms it has: `{"Object","Err"}`, `{"ErrStatus"}`, or the bare object.
    /// `null` inside `{"Object"}` without error is an answer without object.
    ///
    /// # Errors
    /// The answer is an error, or of another shape.
    pub fn object(&self) -> Result<Option<Content>, AnswerError> {
        let payload = self.payload();
        let mut forms: HashMap<Cow<'_, str>, &RawValue> = read(&payload)?;
        if let Some(status) = forms.get("ErrStatus") {
            return Err(AnswerError::Refused(Box::new(read(status.get().as_bytes())?)));
        }
        let (Some(object), Some(err)) = (forms.remove("Object"), forms.remove("Err")) else {
            drop(forms);
            return Ok(Some(self.clone()));
        };
        if err.get() != "null" {
            let error: ErrorAnswer = read(err.get().as_bytes())?;
            return Err(AnswerError::Refused(Box::new(error.status)));
        }
        Ok((object.get() != "null").then(|| Content::from_checked(object)))
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, AnswerError> {
    serde_json::from_slice(text).map_err(|error| AnswerError::Shape(ContentError::Shape(error)))
}

fn is_zero(code: &u16) -> bool {
    *code == 0
}
