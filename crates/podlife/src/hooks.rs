//! What a life cycle hook does, ports resolved, and the words for one that failed.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::{
    observed::PodIdentity,
    probe::{self, HttpGet},
};

/// What a hook does.
#[derive(Clone, Debug, PartialEq)]
pub enum HookAction {
    /// A command in the container; exit code 0 is success.
    Exec(Vec<String>),
    /// An HTTP GET; any answer is success.
    Http(HttpGet),
    /// A pause.
    Sleep(Duration),
}

/// Reads what a hook does; the error says why it cannot be done.
///
/// # Errors
/// `tcpSocket`, which the API takes and no kubelet carries out; a port that the container has not.
pub fn action(handler: &LifecycleHandler, container: &Container) -> Result<HookAction, String> {
    if let Some(exec) = &handler.exec {
        return Ok(HookAction::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(http) = &handler.http_get {
        return probe::http_get(http, container).map(HookAction::Http);
    }
    if let Some(sleep) = &handler.sleep {
        return Ok(HookAction::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
    }
    let what = if handler.tcp_socket.is_some() { "tcpSocket is no hook handler" } else { "it has no handler" };
    Err(format!("invalid handler: {what}"))
}

/// The message of a hook that failed, in the words of the kubelet; `message` is what a command wrote.
pub fn failure(
    handler: &LifecycleHandler,
    container: &str,
    pod: &PodIdentity,
    error: &str,
    message: Option<&str>,
) -> String {
    let pod = format!("{}_{}({})", pod.name, pod.namespace, pod.uid);
    let of = format!("for Container {container:?} in Pod {pod:?} failed - error: {error}");
    if let Some(exec) = &handler.exec {
        let command = exec.command.as_deref().unwrap_or_default().join(" ");
        format!("Exec lifecycle hook ([{command}]) {of}, message: {:?}", message.unwrap_or_default())
    } else if let Some(http) = &handler.http_get {
        format!("HTTP lifecycle hook ({}) {of}", http.path.as_deref().unwrap_or_default())
    } else if let Some(sleep) = &handler.sleep {
        format!("Sleep lifecycle hook ({}) {of}", sleep.seconds)
    } else {
        format!("Cannot run handler: {error}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn handlers() {
        let container: Container =
            serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let http = |https| {
            HookAction::Http(HttpGet { https, host: None, port: 8080, path: "/bye".into(), headers: Vec::new() })
        };
        for (value, expected) in [
            (json!({"exec": {"command": ["true"]}}), Some(HookAction::Exec(vec!["true".into()]))),
            (json!({"httpGet": {"port": "web", "path": "bye"}}), Some(http(false))),
            (json!({"httpGet": {"port": 8080, "path": "/bye", "scheme": "HTTPS"}}), Some(http(true))),
            (json!({"sleep": {"seconds": 5}}), Some(HookAction::Sleep(Duration::from_secs(5)))),
            (json!({"sleep": {"seconds": -5}}), Some(HookAction::Sleep(Duration::ZERO))),
            (json!({"tcpSocket": {"port": 80}}), None),
            (json!({"httpGet": {"port": "none"}}), None),
            (json!({"httpGet": {"port": 0}}), None),
            (json!({}), None),
        ] {
            let handler: LifecycleHandler = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(action(&handler, &container).ok(), expected, "{value}");
        }
    }

    #[test]
    fn failures_in_words() {
        let pod = PodIdentity { namespace: "default".into(), name: "web".into(), uid: "u1".into() };
        for (value, message, text) in [
            (
                json!({"exec": {"command": ["sh", "-c", "exit 3"]}}),
                Some("no\n"),
                "Exec lifecycle hook ([sh -c exit 3]) for Container \"a\" in Pod \"web_default(u1)\" failed - error: E, \
                 message: \"no\\n\"",
            ),
            (
                json!({"httpGet": {"port": 1, "path": "/x"}}),
                None,
                "HTTP lifecycle hook (/x) for Container \"a\" in Pod \"web_default(u1)\" failed - error: E",
            ),
            (
                json!({"sleep": {"seconds": 7}}),
                None,
                "Sleep lifecycle hook (7) for Container \"a\" in Pod \"web_default(u1)\" failed - error: E",
            ),
            (json!({"tcpSocket": {"port": 80}}), None, "Cannot run handler: E"),
        ] {
            let handler: LifecycleHandler = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(failure(&handler, "a", &pod, "E", message), text, "{value}");
        }
    }
}
