//! What a probe does: its handler with ports resolved and defaults filled in.

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, HTTPHeader, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// What a probe does, ports resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeAction {
    /// A command in the container; exit code 0 is success.
    Exec(Vec<String>),
    /// An HTTP GET; 200 to 399 is success.
    Http(HttpGet),
    /// A TCP connection.
    Tcp {
        /// Host to connect to; the pod's address when absent.
        host: Option<String>,
        /// Port.
        port: u16,
    },
    /// A `Check` of `grpc.health.v1.Health`.
    Grpc {
        /// Port at the pod's address.
        port: u16,
        /// Name of the service; empty for the server as a whole.
        service: String,
    },
}

/// A GET as probes and hooks send it.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpGet {
    /// TLS, its certificate not verified.
    pub https: bool,
    /// Host to connect to; the pod's address when absent.
    pub host: Option<String>,
    /// Port.
    pub port: u16,
    /// Path with query, beginning with `/`.
    pub path: String,
    /// Extra headers.
    pub headers: Vec<HTTPHeader>,
}

/// Reads what a probe does; the error is the text of the event that says why it cannot be done.
pub fn action(probe: &Probe, container: &Container) -> Result<ProbeAction, String> {
    let given = |host: &Option<String>| host.clone().filter(|host| !host.is_empty());
    if let Some(exec) = &probe.exec {
        return Ok(ProbeAction::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(http) = &probe.http_get {
        return http_get(http, container).map(ProbeAction::Http);
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(ProbeAction::Tcp { host: given(&tcp.host), port: port(&tcp.port, container)? });
    }
    if let Some(grpc) = &probe.grpc {
        let service = grpc.service.clone().unwrap_or_default();
        return Ok(ProbeAction::Grpc { port: number(grpc.port)?, service });
    }
    Err("missing probe handler".into())
}

/// Reads a GET; the error names a port that cannot be resolved.
pub fn http_get(http: &HTTPGetAction, container: &Container) -> Result<HttpGet, String> {
    let path = http.path.clone().unwrap_or_default();
    Ok(HttpGet {
        https: http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: http.host.clone().filter(|host| !host.is_empty()),
        port: port(&http.port, container)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: http.http_headers.clone().unwrap_or_default(),
    })
}

/// A port by number, by its name in the container, or by a number written as text.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named.map(|p| p.container_port).or_else(|| name.parse().ok()) {
                Some(port) => number(port),
                None => Err(format!("strconv.Atoi: parsing {name:?}: invalid syntax")),
            }
        }
    }
}

fn number(port: i32) -> Result<u16, String> {
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn handlers_ports_and_refusals() {
        let container: Container =
            serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let http = |https, port, path: &str| {
            Ok(ProbeAction::Http(HttpGet { https, host: None, port, path: path.into(), headers: vec![] }))
        };
        for (value, expected) in [
            (json!({"httpGet": {"port": "web", "path": "healthz"}}), http(false, 8080, "/healthz")),
            (json!({"httpGet": {"port": "81", "scheme": "HTTPS"}}), http(true, 81, "/")),
            (
                json!({"tcpSocket": {"port": 53, "host": "127.0.0.1"}}),
                Ok(ProbeAction::Tcp { host: Some("127.0.0.1".into()), port: 53 }),
            ),
            (json!({"exec": {"command": ["true"]}}), Ok(ProbeAction::Exec(vec!["true".into()]))),
            (json!({"grpc": {"port": 9000}}), Ok(ProbeAction::Grpc { port: 9000, service: String::new() })),
            (
                json!({"grpc": {"port": 1, "service": "shop"}}),
                Ok(ProbeAction::Grpc { port: 1, service: "shop".into() }),
            ),
            (json!({"grpc": {"port": 0}}), Err("invalid port number: 0")),
            (json!({"tcpSocket": {"port": 70000}}), Err("invalid port number: 70000")),
            (json!({"tcpSocket": {"port": "none"}}), Err("strconv.Atoi: parsing \"none\": invalid syntax")),
            (json!({}), Err("missing probe handler")),
        ] {
            let probe: Probe = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(action(&probe, &container), expected.map_err(str::to_owned), "{value}");
        }
    }
}
