//! A small client of the Kubernetes API, enough for `up` and the bench.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An answer longer than this is refused.
const MAX_ANSWER: usize = 32 << 20;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A connection to the API server that a kubeconfig names.
#[derive(Clone)]
pub struct Cluster {
    kubeconfig: PathBuf,
    server: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Cluster {
    /// Reads a kubeconfig with embedded certificates.
    pub fn open(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
        let config: Value = serde_saphyr::from_str(&text).with_context(|| kubeconfig.display().to_string())?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&embedded(cluster, "certificate-authority-data")?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&embedded(user, "client-certificate-data")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&embedded(user, "client-key-data")?)?;
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Ok(Self {
            kubeconfig: kubeconfig.to_path_buf(),
            server: cluster["server"].as_str().context("kubeconfig without clusters[0].cluster.server")?.to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// The file that `kubectl` needs.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Whether the API server answers and is ready.
    pub async fn is_ready(&self) -> bool {
        matches!(self.ask(Method::GET, "/readyz", "", Bytes::new()).await, Ok((200, _)))
    }

    /// Whether cloudcore has published its join token.
    pub async fn has_token(&self) -> Result<bool> {
        let (status, secret) = self.json(Method::GET, "/api/v1/namespaces/kubeedge/secrets/tokensecret", None).await?;
        Ok(status == 200 && secret["data"]["tokendata"].is_string())
    }

    /// Whether this Node exists and its Ready condition is True.
    pub async fn node_is_ready(&self, name: &str) -> Result<bool> {
        let (_, node) = self.json(Method::GET, &format!("/api/v1/nodes/{name}"), None).await?;
        Ok(condition(&node, "Ready") == Some("True"))
    }

    /// The object or list at this path; any status but 200 is an error.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let (status, answer) = self.json(Method::GET, path, None).await?;
        if status != 200 {
            bail!("GET {path}: {status} {}", answer["message"]);
        }
        Ok(answer)
    }

    /// Watches the list at this path: what is there now, then every change.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let request = Request::builder().uri(format!("{}{path}?watch=true", self.server)).body(Full::default())?;
        let answer = self.client.request(request).await.with_context(|| self.server.clone())?;
        if answer.status() != 200 {
            bail!("watching {path}: {}", answer.status());
        }
        Ok(Watch { body: answer.into_body(), read: Vec::new() })
    }

    /// Creates an object; the status code and the answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        self.json(Method::POST, path, Some(("application/json", body))).await
    }

    /// Merge-patches an object; the status code and the answer.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        self.json(Method::PATCH, path, Some(("application/merge-patch+json", body))).await
    }

    /// Deletes an object; the status code and the answer.
    pub async fn delete(&self, path: &str) -> Result<(u16, Value)> {
        self.json(Method::DELETE, path, None).await
    }

    /// Polls until the condition holds; the error names what was waited for, and the last error met.
    pub async fn wait<F, C>(&self, what: &str, limit: Duration, mut holds: C) -> Result<()>
    where
        C: FnMut() -> F,
        F: Future<Output = Result<bool>>,
    {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let last = match holds().await {
                Ok(true) => return Ok(()),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            if tokio::time::Instant::now() > deadline {
                let waited = format!("waited {} s for {what}", limit.as_secs());
                return Err(last.map_or_else(|| anyhow::anyhow!(waited.clone()), |error| error.context(waited.clone())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn json(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<(u16, Value)> {
        let (kind, bytes) = match body {
            Some((kind, value)) => (kind, Bytes::from(serde_json::to_vec(value)?)),
            None => ("", Bytes::new()),
        };
        let (status, answer) = self.ask(method, path, kind, bytes).await?;
        let value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        Ok((status, value))
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<(u16, Bytes)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let answer = self.client.request(request.body(Full::new(body))?).await.with_context(|| self.server.clone())?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok((status, body.to_bytes()))
    }
}

/// The events of a watch; it ends when this is dropped.
pub struct Watch {
    body: Incoming,
    read: Vec<u8>,
}

impl Watch {
    /// The next event, `{"type": …, "object": …}`; an error when the server has ended the watch.
    pub async fn next(&mut self) -> Result<Value> {
        self.next_as().await
    }

    /// The same, of which only this is read.
    pub async fn next_as<T: DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).context("an event of a watch");
            }
            if self.read.len() > MAX_ANSWER {
                bail!("an event of a watch is longer than {MAX_ANSWER} bytes");
            }
            let frame = self.body.frame().await.context("the server ended the watch")??;
            self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        }
    }
}

/// The status of one condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn embedded(part: &Value, key: &str) -> Result<Vec<u8>> {
    let text = part[key].as_str().with_context(|| format!("kubeconfig without {key}"))?;
    STANDARD.decode(text).with_context(|| format!("kubeconfig: {key} is no base64"))
}
