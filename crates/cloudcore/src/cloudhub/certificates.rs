//! The hub's CA, server certificate and join token: in Secrets of the Kubernetes API, so that all replicas share them.
//!
//! Order (KubeEdge v1.23): local files, then the Secret, then new. A replica that comes second reads what the first wrote.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::cloudcore::CloudHub as Settings;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::ca::{CaError, CertificateAuthority};
use link::files::{FileError, read_bounded, to_pem};
use link::identity::{OBSERVER_GROUP, verify_client};
use link::key::{NotP256, to_sec1};
use link::rustls::pki_types::pem::PemObject;
use link::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use link::tls::Certificate;
use link::token;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::kubernetes::{Kubernetes, KubernetesError, parse};

const NAMESPACE: &str = "kubeedge";
/// The Secret with the client certificate that may watch the events of all nodes.
const OBSERVER: &str = "observer";
/// How long such a certificate is valid, and how long before its end a new one is made.
const OBSERVER_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
const OBSERVER_RENEWAL: Duration = Duration::from_secs(60 * 24 * 3600);
const SECRETS: &str = "/api/v1/namespaces/kubeedge/secrets";
/// No certificate or key file is longer.
const MAX_FILE: u64 = 64 << 10;
/// The wait before a failed refresh of the token is tried again.
const TOKEN_RETRY: Duration = Duration::from_secs(10);
/// Which hosts a stored server certificate is for.
const HOSTS: &str = "ferroedge.io/hosts";

/// What the hub proves itself with.
pub struct Material {
    /// Issues node certificates.
    pub ca: CertificateAuthority,
    /// Of the servers.
    pub own: Certificate,
}

/// Certificates cannot be read, made or stored.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// The API refused.
    #[error("Secret {0} cannot be used")]
    Secret(&'static str, #[source] KubernetesError),
    /// A Secret holds something else.
    #[error("Secret kubeedge/{0} holds no usable certificate and key: delete it to have a new one made")]
    Content(&'static str, #[source] Option<CaError>),
    /// One of two files is missing.
    #[error("of {0} and {1} only one exists: put both there or none")]
    Half(String, String),
    /// A file cannot be used.
    #[error("{0} holds no usable PEM")]
    Pem(String),
    /// A file cannot be read.
    #[error("a certificate file cannot be read")]
    File(#[source] FileError),
    /// A key is of another kind.
    #[error("{0} holds no P-256 key")]
    Key(String, #[source] NotP256),
    /// A certificate cannot be made.
    #[error("a certificate cannot be made")]
    Make(#[source] CaError),
}

type Pair = (Vec<u8>, Vec<u8>);

impl Material {
    /// Finds or makes it.
    ///
    /// # Errors
    /// Files or Secrets cannot be used.
    pub async fn load(kubernetes: &Kubernetes, settings: &Settings) -> Result<Self, MaterialError> {
        ensure_namespace(kubernetes).await?;
        let [ca_file, ca_key_file, cert_file, key_file] = &settings.files;
        let ca = match from_files(ca_file, ca_key_file)? {
            Some(pair) => pair,
            None => {
                let fresh = || {
                    let ca = CertificateAuthority::generate()?;
                    Ok((ca.certificate().to_vec(), ca.key().to_vec()))
                };
                shared(kubernetes, "casecret", ["cadata", "cakeydata"], "", fresh).await?
            }
        };
        let ca =
            CertificateAuthority::from_der(ca.0, &ca.1).map_err(|e| MaterialError::Content("casecret", Some(e)))?;
        let (certificate, key) = match from_files(cert_file, key_file)? {
            Some(pair) => pair,
            None => {
                let mut hosts = settings.hosts.clone();
                hosts.sort_unstable();
                // Other hosts or another CA need another certificate.
                let mark = format!("{} {}", hosts.join(","), &ca.hash()[..16]);
                let fresh = || {
                    let issued = ca.issue_server("KubeEdge", "KubeEdge", &settings.hosts)?;
                    Ok((issued.certificate.to_vec(), issued.key))
                };
                shared(kubernetes, "cloudcoresecret", ["cloudcoredata", "cloudcorekeydata"], &mark, fresh).await?
            }
        };
        Ok(Self { ca, own: Certificate { certificate: CertificateDer::from(certificate), key } })
    }
}

/// Publishes a join token and the observers' certificate at once and then again and again; failures are tried again soon.
pub async fn keep_fresh(kubernetes: Kubernetes, material: Arc<Material>, every: Duration, stopping: CancellationToken) {
    loop {
        let token = publish_token(&kubernetes, &material, every * 2).await;
        let observer = publish_observer(&kubernetes, &material).await;
        let wait = match token.and(observer) {
            Ok(()) => every,
            Err(error) => {
                warn!(%error, "the join token or the observers' certificate could not be published; tried again");
                TOKEN_RETRY
            }
        };
        if stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

async fn publish_token(
    kubernetes: &Kubernetes,
    material: &Material,
    validity: Duration,
) -> Result<(), KubernetesError> {
    let expires = (SystemTime::now() + validity).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let token = token::mint(material.ca.certificate(), material.ca.key(), expires);
    let data = json!({"tokendata": STANDARD.encode(token)});
    let patch = json!({"data": data}).to_string();
    match kubernetes.patch(&format!("{SECRETS}/tokensecret"), "merge-patch", patch).await {
        Err(error) if error.code() == 404 => {
            kubernetes.create(SECRETS, secret("tokensecret", &data, "")).await.map(drop)
        }
        result => result.map(drop),
    }
}

/// A client certificate for `/events`, in Secret `kubeedge/observer`; a new one when the old one ends soon or is of another CA.
async fn publish_observer(kubernetes: &Kubernetes, material: &Material) -> Result<(), KubernetesError> {
    let path = format!("{SECRETS}/{OBSERVER}");
    let stored = match kubernetes.get_value(&path).await {
        Ok(secret) => Some(secret),
        Err(error) if error.code() == 404 => None,
        Err(error) => return Err(error),
    };
    let certificate = stored.as_ref().and_then(|secret| {
        let pem = STANDARD.decode(secret["data"]["tls.crt"].as_str()?).ok()?;
        CertificateDer::from_pem_slice(&pem).ok()
    });
    let soon = SystemTime::now() + OBSERVER_RENEWAL;
    if certificate.is_some_and(|certificate| verify_client(material.ca.certificate(), &certificate, soon).is_ok()) {
        return Ok(());
    }
    let issued = material.ca.issue_client("ferroedge:observer", OBSERVER_GROUP, OBSERVER_VALIDITY);
    let issued = match issued {
        Ok(issued) => issued,
        Err(error) => {
            warn!(%error, "no certificate for observers could be made");
            return Ok(());
        }
    };
    let encoded = |label: &str, der: &[u8]| STANDARD.encode(to_pem(label, der));
    let data = json!({
        "ca.crt": encoded("CERTIFICATE", material.ca.certificate()),
        "tls.crt": encoded("CERTIFICATE", &issued.certificate),
        "tls.key": encoded("EC PRIVATE KEY", &issued.key),
    });
    let written = match stored {
        None => kubernetes.create(SECRETS, secret(OBSERVER, &data, "")).await,
        Some(_) => kubernetes.patch(&path, "merge-patch", json!({"data": data}).to_string()).await,
    };
    match written {
        // Another replica was faster.
        Err(error) if error.code() == 409 => Ok(()),
        result => result.map(drop),
    }
}

async fn ensure_namespace(kubernetes: &Kubernetes) -> Result<(), MaterialError> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    match kubernetes.get("/api/v1/namespaces/kubeedge").await {
        Err(error) if error.code() == 404 => match kubernetes.create("/api/v1/namespaces", namespace.to_string()).await
        {
            Err(error) if error.code() != 409 => Err(MaterialError::Secret(NAMESPACE, error)),
            _ => Ok(()),
        },
        Err(error) => Err(MaterialError::Secret(NAMESPACE, error)),
        Ok(_) => Ok(()),
    }
}

/// The pair in a Secret; a fresh one is written if there is none, or one with another mark. Whoever writes first wins.
async fn shared(
    kubernetes: &Kubernetes,
    name: &'static str,
    keys: [&str; 2],
    mark: &str,
    fresh: impl Fn() -> Result<Pair, CaError>,
) -> Result<Pair, MaterialError> {
    let path = format!("{SECRETS}/{name}");
    loop {
        let stored = match kubernetes.get(&path).await {
            Ok(text) => Some(parse(&text).map_err(|e| MaterialError::Secret(name, e))?),
            Err(error) if error.code() == 404 => None,
            Err(error) => return Err(MaterialError::Secret(name, error)),
        };
        // A Secret of upstream has no mark; it is used as it is.
        let stored_mark = stored.as_ref().and_then(|secret| secret["metadata"]["annotations"][HOSTS].as_str());
        if let Some(secret) =
            stored.as_ref().filter(|_| mark.is_empty() || stored_mark.is_none_or(|stored| stored == mark))
        {
            let part = |key: &str| {
                STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).ok().filter(|part| !part.is_empty())
            };
            return match (part(keys[0]), part(keys[1])) {
                (Some(certificate), Some(key)) => Ok((certificate, key)),
                _ => Err(MaterialError::Content(name, None)),
            };
        }
        let (certificate, key) = fresh().map_err(MaterialError::Make)?;
        let data = json!({keys[0]: STANDARD.encode(&certificate), keys[1]: STANDARD.encode(&key)});
        let written = match &stored {
            None => kubernetes.create(SECRETS, secret(name, &data, mark)).await,
            Some(old) => {
                info!(secret = name, "the hosts or the CA changed; a new server certificate is issued");
                let mut new = old.clone();
                new["data"] = data;
                new["metadata"]["annotations"][HOSTS] = json!(mark);
                kubernetes.replace(&path, new.to_string()).await
            }
        };
        match written {
            // Another replica was faster: its pair is ours.
            Err(error) if error.code() == 409 => {}
            Err(error) => return Err(MaterialError::Secret(name, error)),
            Ok(_) => return Ok((certificate, key)),
        }
    }
}

fn secret(name: &str, data: &Value, mark: &str) -> String {
    let mut metadata = json!({"name": name, "namespace": NAMESPACE});
    if !mark.is_empty() {
        metadata["annotations"] = json!({HOSTS: mark});
    }
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}).to_string()
}

fn from_files(certificate: &Path, key: &Path) -> Result<Option<Pair>, MaterialError> {
    let shown = |path: &Path| path.display().to_string();
    match (certificate.exists(), key.exists()) {
        (false, false) => return Ok(None),
        (true, true) => {}
        _ => return Err(MaterialError::Half(shown(certificate), shown(key))),
    }
    let read = |path: &Path| read_bounded(path, MAX_FILE).map_err(MaterialError::File);
    let der =
        CertificateDer::from_pem_slice(&read(certificate)?).map_err(|_| MaterialError::Pem(shown(certificate)))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| MaterialError::Pem(shown(key)))?;
    let private = to_sec1(private.secret_der()).map_err(|error| MaterialError::Key(shown(key), error))?;
    Ok(Some((der.to_vec(), private)))
}
