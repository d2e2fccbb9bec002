//! Where the API server finds a node's API: here.
//!
//! It dials what the Node's status names. cloudcore puts its own address first and its stream port, in what nodes say of themselves on
//! its way to the API; so nothing has to be changed on the API server's machine. The node's own addresses follow. The embedded
//! Kubernetes is told directly, and nodes keep their own addresses alone.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use link::rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::kubernetes::Kubernetes;

/// Between tries to write an address.
const RETRY: Duration = Duration::from_secs(10);
/// A node may be registered some time after it has opened its tunnel.
const TRIES: u32 = 60;

/// Where cloudcore answers for all nodes.
#[derive(Clone, Debug)]
pub struct StreamServer {
    /// Its name or address, which its certificate is for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The CA of its certificate.
    pub ca: CertificateDer<'static>,
}

/// Who is told. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Published {
    /// What is written into nodes' status, once it is known.
    written: Arc<OnceLock<(IpAddr, u16)>>,
    embedded: Option<watch::Sender<Option<StreamServer>>>,
}

impl Published {
    /// Nothing is written into nodes' status; the API server in this process learns it from the other end.
    pub fn embedded() -> (Self, watch::Receiver<Option<StreamServer>>) {
        let (sender, receiver) = watch::channel(None);
        (Self { embedded: Some(sender), ..Self::default() }, receiver)
    }

    pub(super) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// The first IP address under which cloudcore is reached, the stream port, and the CA of the certificate there.
    pub(super) fn set(&self, hosts: &[String], port: u16, ca: &CertificateDer<'static>) {
        let first = hosts.iter().find_map(|host| host.parse::<IpAddr>().ok());
        if let Some(embedded) = &self.embedded {
            let host = first.map(|address| address.to_string()).or_else(|| hosts.first().cloned());
            embedded.send_replace(host.map(|host| StreamServer { host, port, ca: ca.clone() }));
            return;
        }
        match first {
            Some(address) => drop(self.written.set((address, port))),
            None => warn!(
                "modules.cloudHub.advertiseAddress has no IP address: nodes' addresses stay as they are, and the API server will not find their logs here"
            ),
        }
    }

    /// Puts it into a Node or a patch of one, where that has such fields.
    pub fn put_into(&self, node: &mut Value) {
        let Some((address, port)) = self.written.get() else { return };
        let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) else { return };
        if let Some(Value::Array(addresses)) = status.get_mut("addresses") {
            let own = json!({"type": "InternalIP", "address": address.to_string()});
            addresses.retain(|other| *other != own);
            addresses.insert(0, own);
        }
        if let Some(endpoints) = status.get_mut("daemonEndpoints").filter(|endpoints| endpoints.is_object()) {
            endpoints["kubeletEndpoint"] = json!({"Port": port});
        }
    }

    /// Writes it into the Node that the API has, once that is there.
    pub(super) async fn publish(&self, kubernetes: &Kubernetes, node: &str) {
        if self.written.get().is_none() {
            return;
        }
        let path = format!("/api/v1/nodes/{node}");
        for _ in 0..TRIES {
            match kubernetes.get_value(&path).await {
                Ok(object) => {
                    let Some(patch) = self.patch(&object) else { return };
                    match kubernetes.patch(&format!("{path}/status"), "strategic-merge-patch", patch.to_string()).await
                    {
                        Ok(_) => return,
                        Err(error) => debug!(node, %error, "a node's address could not be written yet"),
                    }
                }
                Err(error) => debug!(node, %error, "a node's address could not be written yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
        warn!(node, "a node's address could not be written: kubectl logs will not find it");
    }

    /// What is to change of this Node.
    fn patch(&self, node: &Value) -> Option<Value> {
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let mut wanted = json!({"status": {"addresses": addresses, "daemonEndpoints": {}}});
        self.put_into(&mut wanted);
        let same = |field: &str| wanted["status"][field] == node["status"][field];
        if same("addresses") && same("daemonEndpoints") {
            return None;
        }
        // Merged by type, one of two addresses of a type would be lost.
        if let Some(addresses) = wanted["status"]["addresses"].as_array_mut() {
            addresses.push(json!({"$patch": "replace"}));
        }
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloudcores_address_comes_first() {
        let published = Published::default();
        let mut node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}}}});
        let before = node.clone();
        published.put_into(&mut node);
        assert_eq!(node, before, "nothing is known yet");
        let (told, server) = Published::embedded();
        for published in [&told, &published] {
            published.set(&["cloud.example.org".into(), "192.0.2.1".into()], 10003, &Vec::new().into());
        }
        told.put_into(&mut node);
        assert_eq!(node, before, "the embedded Kubernetes reads it elsewhere");
        assert_eq!(
            server.borrow().as_ref().map(|server| (server.host.as_str(), server.port)),
            Some(("192.0.2.1", 10003))
        );
        let patch = published.patch(&node).expect("something to change");
        let own = json!({"type": "InternalIP", "address": "192.0.2.1"});
        let theirs = json!({"type": "InternalIP", "address": "10.0.0.7"});
        assert_eq!(patch["status"]["addresses"], json!([own, theirs, {"$patch": "replace"}]));
        published.put_into(&mut node);
        published.put_into(&mut node);
        assert_eq!(node["status"]["addresses"], json!([own, theirs]));
        assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10003);
        assert_eq!(published.patch(&node), None);
        for mut odd in [json!({}), json!({"status": null}), json!({"status": {"addresses": "x", "daemonEndpoints": 3}})]
        {
            let before = odd.clone();
            published.put_into(&mut odd);
            assert_eq!(odd, before);
        }
    }
}
