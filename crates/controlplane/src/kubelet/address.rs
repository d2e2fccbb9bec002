//! Where the API of a node is, and which CA its certificate must be of.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use kubeapi::{Api, ApiError};
use link::rustls::pki_types::CertificateDer;
use serde_json::Value;

/// Which of a node's addresses is taken, in this order.
const PREFERRED: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];
/// cloudcore keeps the hub's CA here.
const CA_SECRET: (&str, &str) = ("kubeedge", "casecret");
const CA_KEY: &str = "cadata";

/// Where a kubelet's API is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// An IP address or a name.
    pub host: String,
    pub port: u16,
}

impl Address {
    /// `host:port` as a URL has it.
    pub(super) fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// 404 when the node is not there.
pub(super) fn exists(api: &Api, node: &str) -> Result<(), ApiError> {
    api.get(&api.reference("", "nodes", "", node)?).map(drop)
}

/// Where this node's API is.
///
/// # Errors
/// 404 when the node is not there, 503 when its status does not tell.
pub(super) fn of(api: &Api, node: &str) -> Result<Address, ApiError> {
    named_by(&api.get(&api.reference("", "nodes", "", node)?)?)
}

fn named_by(node: &Value) -> Result<Address, ApiError> {
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let missing = |what: &str| {
        let why = format!(
            "node {name} does not tell {what}: it has not been connected to cloudcore yet, or its version of cloudcore serves no streams"
        );
        ApiError::of_status(StatusCode::SERVICE_UNAVAILABLE.as_u16(), why)
    };
    let status = &node["status"];
    let addresses = status["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_type = |kind: &&str| addresses.iter().find(|address| address["type"] == **kind)?["address"].as_str();
    let host = PREFERRED.iter().find_map(of_type).filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| missing("an address (status.addresses: InternalIP, ExternalIP or Hostname)"))?;
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| missing("the port of its API (status.daemonEndpoints.kubeletEndpoint.Port)"))?;
    Ok(Address { host: host.to_owned(), port })
}

/// The CA of the hub, which issues the certificate that kubelets' APIs are served with.
///
/// # Errors
/// 503 when cloudcore has not kept it yet.
pub(super) fn hub_ca(api: &Api) -> Result<CertificateDer<'static>, ApiError> {
    let (namespace, name) = CA_SECRET;
    let secret = api.get(&api.reference("", "secrets", namespace, name)?);
    let der = secret.ok().and_then(|secret| STANDARD.decode(secret["data"][CA_KEY].as_str()?).ok());
    der.filter(|der| !der.is_empty()).map(CertificateDer::from).ok_or_else(|| {
        let why = format!(
            "the certificates of kubelets cannot be checked: there is no CA certificate in {CA_KEY} of Secret {namespace}/{name}; cloudcore makes it when it starts"
        );
        ApiError::of_status(StatusCode::SERVICE_UNAVAILABLE.as_u16(), why)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(addresses: Value, port: Value) -> Result<String, String> {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        named_by(&node).map(|address| address.authority()).map_err(|error| error.message)
    }

    #[test]
    fn where_a_node_is() {
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let all = json!([
            address("Hostname", "n"),
            address("ExternalIP", "192.0.2.1"),
            address("InternalIP", "10.0.0.1"),
            address("InternalIP", "10.0.0.2")
        ]);
        assert_eq!(found(all, json!(10003)).as_deref(), Ok("10.0.0.1:10003"));
        assert_eq!(found(json!([address("Hostname", "n")]), json!(1)).as_deref(), Ok("n:1"));
        assert_eq!(found(json!([address("InternalIP", "2001:db8::1")]), json!(1)).as_deref(), Ok("[2001:db8::1]:1"));
        assert!(found(json!([]), json!(1)).unwrap_err().contains("node n does not tell an address"));
        for port in [json!(null), json!(0), json!(70_000), json!("1")] {
            let why = found(json!([address("Hostname", "n")]), port).unwrap_err();
            assert!(why.contains("the port of its API"), "{why}");
        }
    }
}
