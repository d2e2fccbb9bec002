//! The three kinds of patches.

mod strategic;

use serde_json::Value;

use crate::{ApiError, types};

/// More operations in one JSON patch are refused, as upstream does.
const MAX_OPERATIONS: usize = 10_000;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge.
    Strategic,
}

impl PatchType {
    /// The patch type of a content type.
    ///
    /// # Errors
    /// 415 for others; server-side apply is named.
    pub fn of_content_type(content_type: &str) -> Result<Self, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Err(ApiError::unsupported_media_type(
                "server-side apply is not supported by this server: use client-side apply (kubectl apply without --server-side)",
            )),
            other => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json; got {other:?}"
            ))),
        }
    }
}

/// The object after the patch. Strategic patches need a built-in kind.
///
/// # Errors
/// The patch is malformed or does not fit the object.
pub fn apply(api_version: &str, kind: &str, current: &Value, patch: &Value, how: PatchType) -> Result<Value, ApiError> {
    match how {
        PatchType::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            if operations.0.len() > MAX_OPERATIONS {
                return Err(ApiError::too_large(MAX_OPERATIONS));
            }
            let mut patched = current.clone();
            json_patch::patch(&mut patched, &operations)
                .map_err(|error| ApiError::bad_request(format!("the patch cannot be applied: {error}")))?;
            Ok(patched)
        }
        PatchType::Merge => {
            let mut patched = current.clone();
            json_patch::merge(&mut patched, patch);
            Ok(patched)
        }
        PatchType::Strategic => {
            let Some(kind) = types::of_kind(api_version, kind) else {
                return Err(ApiError::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json",
                ));
            };
            strategic::merge(kind, current, patch)
        }
    }
}
