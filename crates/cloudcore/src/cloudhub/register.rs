//! Every certificate that is issued stands in the Kubernetes API as a CertificateSigningRequest, approved and signed, so that
//! `kubectl get csr` tells who got what and when.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use link::files::to_pem;
use serde_json::{Value, json};
use tracing::warn;

use crate::kubernetes::{Kubernetes, KubernetesError, parse};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "ferroedge.io/edge-client";
/// Names the node, so that its older requests are found.
const NODE_LABEL: &str = "ferroedge.io/node";
/// Requests of one node that are kept.
const KEPT: usize = 5;

/// Records an issued certificate. A failure is told in the log and does not keep the node from joining: a real cluster may not
/// let cloudcore write there.
pub async fn record(kubernetes: &Kubernetes, node: &str, request: &[u8], certificate: &[u8], renewal: bool) {
    if let Err(error) = try_record(kubernetes, node, request, certificate, renewal).await {
        warn!(node, %error, "an issued certificate could not be recorded as a CertificateSigningRequest");
    }
}

async fn try_record(
    kubernetes: &Kubernetes,
    node: &str,
    request: &[u8],
    certificate: &[u8],
    renewal: bool,
) -> Result<(), KubernetesError> {
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": format!("{}-", node.chars().take(200).collect::<String>()), "labels": {NODE_LABEL: label(node)}},
        "spec": {
            "request": STANDARD.encode(to_pem("CERTIFICATE REQUEST", request)),
            "signerName": SIGNER,
            "usages": ["digital signature", "key encipherment", "client auth"],
        },
    });
    let mut created = parse(&kubernetes.create(REQUESTS, object.to_string()).await?)?;
    let name = created["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let how = if renewal { "by its current certificate" } else { "by join token" };
    created["status"]["conditions"] = json!([{
        "type": "Approved",
        "status": "True",
        "reason": "EdgeNodeAuthenticated",
        "message": format!("node {node} authenticated {how}"),
        "lastUpdateTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }]);
    let mut approved = parse(&kubernetes.replace(&format!("{REQUESTS}/{name}/approval"), created.to_string()).await?)?;
    approved["status"]["certificate"] = json!(STANDARD.encode(to_pem("CERTIFICATE", certificate)));
    kubernetes.replace(&format!("{REQUESTS}/{name}/status"), approved.to_string()).await?;
    remove_older(kubernetes, node).await
}

async fn remove_older(kubernetes: &Kubernetes, node: &str) -> Result<(), KubernetesError> {
    let list = kubernetes
        .get_value(&format!("{REQUESTS}?labelSelector={}%3D{}", NODE_LABEL.replace('/', "%2F"), label(node)))
        .await?;
    let mut requests: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    let age = |request: &Value| {
        request["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or_default()
    };
    requests.sort_by_key(|request| std::cmp::Reverse(age(request)));
    for request in requests.iter().skip(KEPT) {
        let name = request["metadata"]["name"].as_str().unwrap_or_default();
        kubernetes.delete(&format!("{REQUESTS}/{name}"), "{}").await?;
    }
    Ok(())
}

/// A label has 63 characters at most; two long names that begin alike share their history.
fn label(node: &str) -> String {
    node.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}
