//! One attempt of a probe.

use std::time::Duration;

use podlife::probe::ProbeAction;
use tokio::net::TcpStream;

use super::{USER_AGENT, grpc};
use crate::{
    http::{self, dial_error},
    runtime::{Runtime, RuntimeError},
};

/// How one attempt went.
pub(super) enum Attempt {
    Success,
    /// A success that the pod's author should hear of.
    Warning(String),
    Failure(String),
    /// It could not be made; it does not count.
    Error(String),
}

/// Attempts to make a probe that cannot be made, one after the other.
const TRIES: usize = 3;

/// Makes an attempt, at the container with this id in the pod with this address.
pub(super) async fn attempt(
    runtime: &Runtime,
    id: &str,
    address: &str,
    action: &Result<ProbeAction, String>,
    timeout: Duration,
) -> Attempt {
    let action = match action {
        Ok(action) => action,
        Err(reason) => return Attempt::Error(reason.clone()),
    };
    let mut outcome = Attempt::Error(String::new());
    for _ in 0..TRIES {
        outcome = match action {
            ProbeAction::Exec(command) => exec(runtime, id, command, timeout).await,
            // Boxed: a probe at rest need not keep room for a connection.
            other => match tokio::time::timeout(timeout, Box::pin(connect(other, address))).await {
                Ok(outcome) => outcome,
                Err(_) => Attempt::Failure(too_late(other, address, timeout)),
            },
        };
        if !matches!(outcome, Attempt::Error(_)) {
            break;
        }
    }
    outcome
}

async fn exec(runtime: &Runtime, id: &str, command: &[String], timeout: Duration) -> Attempt {
    match runtime.exec(id, command.to_vec(), timeout).await {
        Ok((0, _)) => Attempt::Success,
        Ok((_, output)) => Attempt::Failure(output),
        Err(RuntimeError::ExecTimeout) => {
            let command = command.join(" ");
            Attempt::Failure(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()))
        }
        Err(error) => Attempt::Error(error.to_string()),
    }
}

async fn connect(action: &ProbeAction, address: &str) -> Attempt {
    match action {
        ProbeAction::Http(request) => match http::get(request, address, USER_AGENT).await {
            Ok(reply) if (200..300).contains(&reply.status) => Attempt::Success,
            Ok(reply) if (300..400).contains(&reply.status) => {
                Attempt::Warning(format!("Probe terminated redirects, Response body: {}", reply.body))
            }
            Ok(reply) => Attempt::Failure(format!("HTTP probe failed with statuscode: {}", reply.status)),
            Err(error) => Attempt::Failure(error.to_string()),
        },
        ProbeAction::Tcp { host, port } => {
            let host = host.as_deref().unwrap_or(address);
            match TcpStream::connect((host, *port)).await {
                Ok(_) => Attempt::Success,
                Err(error) => Attempt::Failure(dial_error(host, *port, &error)),
            }
        }
        ProbeAction::Grpc { port, service } => match grpc::check(address, *port, service).await {
            Ok(()) => Attempt::Success,
            Err(text) => Attempt::Failure(text),
        },
        ProbeAction::Exec(_) => Attempt::Error("not a network probe".into()),
    }
}

fn too_late(action: &ProbeAction, address: &str, timeout: Duration) -> String {
    match action {
        ProbeAction::Http(get) => {
            let scheme = if get.https { "https" } else { "http" };
            let host = http::join_host_port(get.host.as_deref().unwrap_or(address), get.port);
            format!(
                "Get \"{scheme}://{host}{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                get.path
            )
        }
        ProbeAction::Tcp { host, port } => {
            format!("dial tcp {}: i/o timeout", http::join_host_port(host.as_deref().unwrap_or(address), *port))
        }
        _ => format!("timeout: health rpc did not complete within {}s", timeout.as_secs()),
    }
}
