//! What can go wrong in a call.

use std::time::Duration;

use tonic::{Code, Status};

use crate::runtime::RuntimeError;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody answers at the socket.
    #[error("container runtime at {endpoint} is not reachable")]
    Unreachable {
        /// Endpoint as configured.
        endpoint: String,
        /// Cause.
        #[source]
        source: Box<Status>,
    },
    /// The runtime answered with an error.
    #[error("{call} failed: {}", .status.message())]
    Refused {
        /// CRI method.
        call: &'static str,
        /// Its answer.
        status: Box<Status>,
    },
    /// No answer in time.
    #[error("{call} did not answer within {limit:?}")]
    Timeout {
        /// CRI method.
        call: &'static str,
        /// The deadline.
        limit: Duration,
    },
}

impl CriError {
    pub(super) fn new(endpoint: &str, call: &'static str, status: Status) -> Self {
        let status = Box::new(status);
        // A status of the runtime itself has no source; one made by the transport names what broke.
        let broken = status.code() == Code::Unavailable || std::error::Error::source(&*status).is_some();
        if broken {
            CriError::Unreachable { endpoint: endpoint.to_owned(), source: status }
        } else {
            CriError::Refused { call, status }
        }
    }

    fn code(&self) -> Option<Code> {
        match self {
            CriError::Refused { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// The sandbox, container or image does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// What the runtime was asked to do took longer than it was given.
    pub fn is_deadline_exceeded(&self) -> bool {
        self.code() == Some(Code::DeadlineExceeded)
    }

    /// This runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(Code::Unimplemented)
    }

    /// The runtime's words for a failure that has no code of its own.
    pub fn unknown_message(&self) -> Option<String> {
        match self {
            CriError::Refused { status, .. } if status.code() == Code::Unknown => Some(status.message().to_owned()),
            _ => None,
        }
    }

    /// The text for a user: the runtime's own words where there are any.
    pub fn message(&self) -> String {
        match self {
            CriError::Refused { status, .. } => {
                format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
            }
            other => other.to_string(),
        }
    }
}

impl From<CriError> for RuntimeError {
    fn from(error: CriError) -> Self {
        match error {
            CriError::Unreachable { endpoint, source } => RuntimeError::Unreachable { endpoint, source },
            CriError::Refused { call, ref status } => RuntimeError::Call { call, message: status.message().to_owned() },
            CriError::Timeout { call, limit } => RuntimeError::Timeout { call, limit },
        }
    }
}

/// `Ok` for a call whose object is gone already.
pub fn ignore_missing<T>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}
