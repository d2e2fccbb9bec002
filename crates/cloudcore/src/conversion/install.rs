//! Tells the API server whom to ask: `spec.conversion` of the definitions of devices.
//!
//! A cluster whose cloudcore never ran has strategy None there, as `deploy/crds.yaml` installs it. From then on it is the webhook,
//! also while no cloudcore runs: v1alpha2 fails then instead of losing fields, v1beta1 goes on. Of several replicas the one that is
//! named stays named as long as it answers.
//!
//! An administrator keeps cloudcore away from a definition with the annotation [`WHO`]. An address under which cloudcore does not reach
//! itself is not published: v1alpha2 would fail then, and an API server that has to convert what it keeps would serve nothing at all.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::files::to_pem;
use link::http_client::Call;
use link::rustls::ClientConfig;
use link::rustls::pki_types::CertificateDer;
use link::tls::TlsError;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::webhook::PATH;
use crate::kubernetes::{Kubernetes, KubernetesError};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// The definitions whose objects are converted.
const NAMES: [&str; 3] =
    ["devices.devices.kubeedge.io", "devicemodels.devices.kubeedge.io", "devicestatuses.devices.kubeedge.io"];
/// Annotation of a definition: with [`NONE`] cloudcore leaves `spec.conversion` as it is.
const WHO: &str = "ferroedge.io/conversion";
const NONE: &str = "none";
/// How often it is looked whether all is as it shall be.
const CHECK: Duration = Duration::from_secs(60);
/// The wait when it was not.
const RETRY: Duration = Duration::from_secs(5);
/// How long a replica may take to answer.
const PROBE: Duration = Duration::from_secs(5);

/// Where this cloudcore converts.
pub struct Endpoint {
    url: String,
    bundle: String,
    tls: Arc<ClientConfig>,
}

/// What was said, and is not said again.
#[derive(Default)]
struct Said {
    forbidden: bool,
    foreign: bool,
    replica: bool,
    kept_away: bool,
    unreachable: bool,
}

impl Endpoint {
    /// At the first of the addresses that nodes use; the certificate has it.
    ///
    /// # Errors
    /// The CA cannot be used.
    pub fn new(host: &str, port: u16, path: &str, ca: &CertificateDer<'static>) -> Result<Self, TlsError> {
        let host = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.to_owned(),
        };
        let bundle = STANDARD.encode(to_pem("CERTIFICATE", ca));
        Ok(Self { url: format!("https://{host}:{port}{path}"), bundle, tls: link::tls::client(ca, None)? })
    }

    /// Without the path, which is only for those who can read the definitions.
    fn address(&self) -> &str {
        self.url.split_once(PATH).map_or("", |(address, _)| address)
    }

    fn conversion(&self) -> Value {
        let config = json!({"url": self.url, "caBundle": self.bundle});
        json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": config}})
    }
}

/// Keeps the definitions as they shall be until `stopping`.
pub async fn keep(kubernetes: Kubernetes, endpoint: Endpoint, stopping: CancellationToken) {
    let mut said = Said::default();
    loop {
        let round = async {
            let wait = round(&kubernetes, &endpoint, &mut said).await;
            tokio::time::sleep(wait).await;
        };
        if stopping.run_until_cancelled(round).await.is_none() {
            return;
        }
    }
}

/// Looks after all definitions; how long to wait afterwards.
async fn round(kubernetes: &Kubernetes, endpoint: &Endpoint, said: &mut Said) -> Duration {
    let mut wait = CHECK;
    for name in NAMES {
        match check(kubernetes, endpoint, name, said).await {
            Ok(true) => {}
            Ok(false) => wait = RETRY,
            Err(error) => {
                // Rights and definitions are given by people; all else may be different soon.
                wait = if [403, 404].contains(&error.code()) { wait } else { RETRY };
                tell(&error, name, said);
            }
        }
    }
    wait
}

fn tell(error: &KubernetesError, definition: &str, said: &mut Said) {
    match error.code() {
        403 if !std::mem::replace(&mut said.forbidden, true) => error!(
            definition,
            %error,
            "cloudcore may not say who converts devices of version v1alpha2, so that their fields are lost: give its user the rights in deploy/rbac.yaml; tried again"
        ),
        // Whoever needs the definition says that it is missing; another replica was faster.
        403 | 404 | 409 => {}
        _ => warn!(definition, %error, "it could not be said who converts devices of version v1alpha2; tried again"),
    }
}

/// Whether a definition is as it shall be, now at least.
async fn check(
    kubernetes: &Kubernetes,
    endpoint: &Endpoint,
    name: &str,
    said: &mut Said,
) -> Result<bool, KubernetesError> {
    let path = format!("{DEFINITIONS}/{name}");
    let definition = kubernetes.get_value(&path).await?;
    let found = &definition["spec"]["conversion"];
    if definition["metadata"]["annotations"][WHO] == NONE {
        if !std::mem::replace(&mut said.kept_away, true) {
            info!(definition = name, "spec.conversion is left as it is: the annotation {WHO} says {NONE}");
        }
        return Ok(true);
    }
    match judge(found, endpoint) {
        Found::Right => return Ok(true),
        Found::Foreign => {
            if !std::mem::replace(&mut said.foreign, true) {
                warn!(definition = name, "somebody else's webhook converts devices; it is left as it is");
            }
            return Ok(true);
        }
        Found::Replica(url) if answers(url, endpoint).await => {
            if !std::mem::replace(&mut said.replica, true) {
                info!(definition = name, "another cloudcore converts v1alpha2");
            }
            return Ok(true);
        }
        Found::Nobody | Found::Replica(_) => {}
    }
    if !answers(&endpoint.url, endpoint).await {
        if !std::mem::replace(&mut said.unreachable, true) {
            warn!(
                definition = name,
                address = endpoint.address(),
                "cloudcore does not reach itself at the address under which the API server would ask it to convert v1alpha2, and does not publish it: let the first of modules.cloudHub.advertiseAddress lead to its https port, from the API server too, or annotate the definition with {WHO}={NONE}; tried again"
            );
        }
        return Ok(false);
    }
    let mut conversion = endpoint.conversion();
    // What is merged stays otherwise.
    conversion["webhook"]["clientConfig"]["service"] = Value::Null;
    let version = &definition["metadata"]["resourceVersion"];
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"conversion": conversion}});
    kubernetes.patch(&path, "merge-patch", patch.to_string()).await?;
    info!(definition = name, "this cloudcore converts v1alpha2");
    Ok(true)
}

/// Who converts as a definition has it.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    /// We do.
    Right,
    /// Another cloudcore of this cluster, if it is there.
    Replica(&'a str),
    /// Nobody, or a cloudcore with a CA that is no more.
    Nobody,
    /// A program that is not ours.
    Foreign,
}

fn judge<'a>(found: &'a Value, endpoint: &Endpoint) -> Found<'a> {
    if found["strategy"] != "Webhook" {
        return Found::Nobody;
    }
    let config = &found["webhook"]["clientConfig"];
    let url = config["url"].as_str().unwrap_or_default();
    let is_same_ca = config["caBundle"] == endpoint.bundle.as_str();
    let path = |url: &str| {
        url.strip_prefix("https://").and_then(|rest| rest.split_once('/')).map(|(_, path)| format!("/{path}"))
    };
    match path(url) {
        _ if url == endpoint.url && is_same_ca => Found::Right,
        Some(other) if !other.starts_with(PATH) => Found::Foreign,
        None => Found::Foreign,
        other if is_same_ca && other == path(&endpoint.url) => Found::Replica(url),
        Some(_) => Found::Nobody,
    }
}

/// Whether a replica converts.
async fn answers(url: &str, endpoint: &Endpoint) -> bool {
    let request = json!({"uid": "probe", "desiredAPIVersion": super::BETA, "objects": []});
    let review = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "request": request});
    let call = Call {
        method: "POST",
        url,
        headers: &[("content-type", "application/json")],
        body: review.to_string().into_bytes(),
        tls: endpoint.tls.clone(),
        deadline: PROBE,
        max_answer: 4096,
    };
    call.send().await.is_ok_and(|(status, _)| status == 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_converts_is_told_apart() {
        let ca = link::ca::CertificateAuthority::generate().expect("a CA");
        let endpoint =
            |host: &str| Endpoint::new(host, 10002, &format!("{PATH}key"), ca.certificate()).expect("an endpoint");
        let own = endpoint("10.0.0.1");
        assert_eq!(own.url, "https://10.0.0.1:10002/devices/convert/key");
        assert_eq!(endpoint("fd00::1").url, "https://[fd00::1]:10002/devices/convert/key");
        assert_eq!(judge(&own.conversion(), &own), Found::Right);
        for nobody in [Value::Null, json!({"strategy": "None"})] {
            assert_eq!(judge(&nobody, &own), Found::Nobody);
        }
        let other = endpoint("10.0.0.2").conversion();
        assert_eq!(judge(&other, &own), Found::Replica("https://10.0.0.2:10002/devices/convert/key"));
        let mut old = own.conversion();
        old["webhook"]["clientConfig"]["caBundle"] = json!("older");
        assert_eq!(judge(&old, &own), Found::Nobody, "a CA that is no more");
        let mut foreign = own.conversion();
        foreign["webhook"]["clientConfig"]["url"] = json!("https://10.0.0.1:10002/other");
        assert_eq!(judge(&foreign, &own), Found::Foreign);
        foreign["webhook"]["clientConfig"] = json!({"service": {"name": "x", "namespace": "y"}, "caBundle": "z"});
        assert_eq!(judge(&foreign, &own), Found::Foreign);
    }
}
