//! `keadm debug tunnel NODE`: walks the way of `kubectl logs` hop by hop, and says which one fails and what to do (not in upstream).
//!
//! kubeconfig → Kubernetes API → the address in the Node's status, which is cloudcore's → the tunnel that the node keeps → the node's API.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::{Api, Client};
use tokio::net::TcpStream;

use crate::gettoken::{GetTokenError, connect};
use crate::{cli, terminal};

/// For one hop.
const DEADLINE: Duration = Duration::from_secs(20);
/// From here to cloudcore.
const DIAL: Duration = Duration::from_secs(5);
/// The port of a kubelet that nobody leads to cloudcore.
const KUBELET: i32 = 10350;

/// The way ends somewhere.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// The kubeconfig or the API.
    #[error(transparent)]
    Api(#[from] GetTokenError),
    /// A hop failed; what it is was printed.
    #[error("the way to node {node} ends at: {hop}")]
    Hop {
        /// The node.
        node: String,
        /// The hop.
        hop: &'static str,
    },
}

/// What one hop showed.
enum Shown {
    /// It works; details.
    Works(String),
    /// It may matter, and the walk goes on.
    Odd(String),
    /// Why it does not, and the cure.
    Fails(String),
}

/// Walks, and prints a line per hop.
///
/// # Errors
/// A hop fails, or the API cannot be asked.
pub async fn run(args: &cli::DebugTunnel) -> Result<(), DebugError> {
    let (client, server) = connect(args.kube_config.as_deref()).await?;
    let name = args.node.as_str();
    let nodes: Api<Node> = Api::all(client.clone());
    let node = tokio::time::timeout(DEADLINE, nodes.get_opt(name)).await;
    let node = match node {
        Ok(Ok(Some(node))) => node,
        other => {
            let why = match other {
                Ok(Ok(_)) => format!("there is no Node {name}: is this the right cluster, and has it joined?"),
                Ok(Err(error)) => format!("{error}: does the kubeconfig allow reading nodes?"),
                Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
            };
            return hop(name, "Kubernetes API", Shown::Fails(format!("{server}: {why}")));
        }
    };
    let status = node.status.unwrap_or_default();
    hop(name, "Kubernetes API", Shown::Works(server))?;
    hop(name, "node", readiness(&status))?;
    let (shown, target) = address(&status);
    hop(name, "address of cloudcore", shown)?;
    if let Some((host, port)) = target {
        hop(name, "from here to cloudcore", dial(&host, port).await)?;
    }
    hop(name, "tunnel and node", ask(&client, name).await)?;
    terminal::say(&format!("kubectl logs, exec and the like reach node {name}"));
    Ok(())
}

fn hop(node: &str, hop: &'static str, shown: Shown) -> Result<(), DebugError> {
    let (word, text) = match &shown {
        Shown::Works(text) => ("ok", text),
        Shown::Odd(text) => ("look", text),
        Shown::Fails(text) => ("FAILS", text),
    };
    terminal::say(&format!("{word:<6}{hop:<24}{text}"));
    if matches!(shown, Shown::Fails(_)) { Err(DebugError::Hop { node: node.to_owned(), hop }) } else { Ok(()) }
}

fn readiness(status: &NodeStatus) -> Shown {
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => Shown::Works("Ready".to_owned()),
        Some(ready) => {
            let since =
                ready.last_transition_time.as_ref().map(|time| format!(" since {}", time.0)).unwrap_or_default();
            Shown::Odd(format!("not Ready{since}: edgecore does not run, or its link is down"))
        }
        None => Shown::Odd("it has never said how it is".to_owned()),
    }
}

/// Where the API server dials.
fn address(status: &NodeStatus) -> (Shown, Option<(String, u16)>) {
    let of_type = |kind: &str| status.addresses.iter().flatten().find(|address| address.type_ == kind);
    let found = of_type("InternalIP").or_else(|| of_type("ExternalIP"));
    let port = status.daemon_endpoints.as_ref().and_then(|endpoints| endpoints.kubelet_endpoint.as_ref());
    let port = port.map_or(0, |endpoint| endpoint.port);
    let Some(found) = found else {
        return (Shown::Odd("the Node has none: it has never said how it is".to_owned()), None);
    };
    let shown = format!("{}:{port} ({})", found.address, found.type_);
    match u16::try_from(port) {
        Ok(1..) if port != KUBELET => (Shown::Works(shown), Some((found.address.clone(), port as u16))),
        _ => {
            let why = "is the node's own: right with the embedded Kubernetes, which asks cloudcore itself; on any other cluster the node has not said how it is since cloudcore runs, or modules.cloudStream is off in cloudcore.yaml";
            (Shown::Odd(format!("{shown} {why}")), None)
        }
    }
}

/// The API server has to reach it, this machine need not.
async fn dial(host: &str, port: u16) -> Shown {
    match tokio::time::timeout(DIAL, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Shown::Works("the port is open".to_owned()),
        Ok(Err(error)) => {
            Shown::Odd(format!("{error}: only the API server needs to reach it, so this may be as intended"))
        }
        Err(_) => Shown::Odd("no answer: only the API server needs to reach it, so this may be as intended".to_owned()),
    }
}

/// The rest of the way can only be walked by the API server.
async fn ask(client: &Client, node: &str) -> Shown {
    let request = match http::Request::get(format!("/api/v1/nodes/{node}/proxy/healthz/ping")).body(Vec::new()) {
        Ok(request) => request,
        Err(error) => return Shown::Fails(error.to_string()),
    };
    match tokio::time::timeout(DEADLINE, client.request_text(request)).await {
        Ok(Ok(_)) => Shown::Works("the node answers".to_owned()),
        Ok(Err(error)) => Shown::Fails(explained(&error.to_string())),
        Err(_) => Shown::Fails(format!("no answer within {} s: the link of the node may be down", DEADLINE.as_secs())),
    }
}

/// The error, and what to do about it.
fn explained(error: &str) -> String {
    let cure = [
        ("is not connected", ""),
        ("has not connected", ""),
        ("has not opened its stream tunnel", ""),
        (
            "error dialing backend",
            ": the API server does not reach cloudcore there; open the way, or put a reachable IP first into modules.cloudHub.advertiseAddress",
        ),
        ("Unauthorized", ": cloudcore does not know the API server's client certificate; see docs/streams.md"),
        ("orbidden", ": the user of the kubeconfig, or the API server's, may not ask for nodes/proxy"),
        ("certificate", ": the API server and cloudcore do not believe each other; see docs/streams.md"),
    ];
    let found = cure.iter().find(|(part, _)| error.contains(part));
    format!("{error}{}", found.map_or("", |(_, cure)| cure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_cloudcores_is_told() {
        let status = |port: i32| -> NodeStatus {
            serde_json::from_value(serde_json::json!({
                "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }))
            .expect("a status")
        };
        let (shown, target) = address(&status(10003));
        assert!(matches!(shown, Shown::Works(text) if text == "192.0.2.1:10003 (InternalIP)"));
        assert_eq!(target, Some(("192.0.2.1".to_owned(), 10003)));
        for wrong in [status(10350), status(0), NodeStatus::default()] {
            let (shown, target) = address(&wrong);
            assert!(matches!(shown, Shown::Odd(_)) && target.is_none());
        }
    }
}
