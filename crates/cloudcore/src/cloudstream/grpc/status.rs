//! Refusals as gRPC's codes.

use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::BodyExt;
use link::http_server::Body;
use tonic::{Code, Status};

use super::v1::Error;
use crate::cloudstream::access::Denied;
use crate::cloudstream::server::Refused;
use crate::cloudstream::tunnels::TunnelError;

/// A node's text of a refusal, and how long it may take.
const MAX_TEXT: usize = 4 << 10;
const TEXT: Duration = Duration::from_secs(5);

/// What the client is told.
pub(super) fn of(refused: Refused) -> Status {
    let code = match &refused {
        Refused::Denied(Denied::Unauthorized(_)) => Code::Unauthenticated,
        Refused::Denied(Denied::Forbidden { .. }) => Code::PermissionDenied,
        Refused::Denied(Denied::Unknown(_)) | Refused::Kubernetes(..) => Code::Unavailable,
        Refused::Tunnel(TunnelError::Silent { .. }) => Code::DeadlineExceeded,
        Refused::Tunnel(TunnelError::Unsupported(..)) | Refused::Unscheduled(_) => Code::FailedPrecondition,
        Refused::Tunnel(TunnelError::TooMany(_)) => Code::ResourceExhausted,
        Refused::Tunnel(_) => Code::Unavailable,
        Refused::NotFound(_) => Code::NotFound,
        Refused::Bad(_) => Code::InvalidArgument,
    };
    Status::new(code, refused.to_string())
}

/// The same of a tunnel.
pub(super) fn of_tunnel(error: TunnelError) -> Status {
    of(error.into())
}

/// The answer's body if the node is content with the request.
pub(super) async fn content(node: &str, answer: Response<Body>) -> Result<Body, Status> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.into_body());
    }
    let text = tokio::time::timeout(TEXT, whole(answer.into_body(), MAX_TEXT)).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(Status::new(code(status), format!("node {node} answers {status}: {text}")))
}

/// Why a body was not read.
pub(super) enum Unread {
    /// It is longer than the limit.
    TooLong,
    /// It broke off.
    Broken(String),
}

/// A body within a limit.
pub(super) async fn whole(mut body: Body, limit: usize) -> Result<Vec<u8>, Unread> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| Unread::Broken(error.to_string()))?.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(Unread::TooLong);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// A code for an HTTP status of a node. What was asked had passed our checks, so 400 is about the state of the container.
pub(super) fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT => Code::FailedPrecondition,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

/// The part of an answer that says it, when the call goes on.
pub(super) fn error(status: &Status) -> Error {
    Error { code: status.code().into(), text: status.message().to_owned() }
}
