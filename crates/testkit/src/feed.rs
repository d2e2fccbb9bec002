//! A watcher of cloudcore's live feed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::tls::{self, Certificate};
use link::ws::{self, Incoming, LinkError, Reader, Target, Writer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::deployment::Cluster;
use crate::go_edge::Credentials;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(20);

/// A connection to `/events`.
pub struct Watcher {
    reader: Reader,
    _writer: Writer,
}

impl Watcher {
    /// Connects with a client certificate.
    ///
    /// # Errors
    /// Refused, or nobody there.
    pub async fn connect(websocket: SocketAddr, credentials: &Credentials) -> Result<Self, LinkError> {
        let target = Target {
            url: format!("wss://{websocket}/events"),
            headers: Vec::new(),
            tls: tls::client(&credentials.ca, Some(&credentials.own)).map_err(|_| LinkError::Cut)?,
            connect_deadline: CONNECT,
            write_deadline: CONNECT,
        };
        let (reader, writer, _) = ws::connect(&target).await?;
        Ok(Self { reader, _writer: writer })
    }

    /// The next event.
    ///
    /// # Errors
    /// The feed ended.
    pub async fn next(&mut self) -> Result<Value> {
        match self.reader.next().await? {
            Incoming::Message(frame) => Ok(serde_json::from_slice(&frame)?),
            other => bail!("the feed ended: {other:?}"),
        }
    }

    /// The next event that is as wanted; others are passed over.
    ///
    /// # Errors
    /// None comes in this time.
    pub async fn find(&mut self, limit: Duration, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let search = async {
            loop {
                let event = self.next().await?;
                if wanted(&event) {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(limit, search).await.with_context(|| format!("no event: {what}"))?
    }
}

/// The certificate for observers, from Secret `kubeedge/observer`; an error until cloudcore has made it.
///
/// # Errors
/// There is none, or it cannot be read.
pub async fn observer(cluster: &Cluster) -> Result<Credentials> {
    let secret = cluster.get("/api/v1/namespaces/kubeedge/secrets/observer").await?;
    let part = |key: &str| STANDARD.decode(secret["data"][key].as_str().unwrap_or_default());
    let certificate = |pem: Vec<u8>| CertificateDer::from_pem_slice(&pem).ok().context("no certificate");
    let key = PrivateKeyDer::from_pem_slice(&part("tls.key")?).ok().context("no key")?;
    let own = Certificate { certificate: certificate(part("tls.crt")?)?, key: key.secret_der().to_vec() };
    Ok(Credentials { ca: certificate(part("ca.crt")?)?, own })
}
