//! How a Go edge gets its certificate (KubeEdge v1.23 `edge/pkg/edgehub/certificate`).

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use link::ca::{NodeRequest, node_request};
use link::tls::{self, Certificate};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::http::{Answer, exchange};

/// What an edge has after it registered.
pub struct Credentials {
    /// The CA, DER.
    pub ca: CertificateDer<'static>,
    /// The node's certificate and key.
    pub own: Certificate,
}

impl Credentials {
    /// Another handle on the same certificate.
    pub fn copy(&self) -> Self {
        let own = Certificate { certificate: self.own.certificate.clone(), key: self.own.key.clone() };
        Self { ca: self.ca.clone(), own }
    }
}

/// Fetches the CA and compares its hash with the token's.
///
/// # Errors
/// No answer, or the server is not the one that the token is of.
pub async fn fetch_ca(https: SocketAddr, token: &str) -> Result<CertificateDer<'static>> {
    let headers = [("User-Agent", "Go-http-client/1.1"), ("Accept-Encoding", "gzip")];
    let answer = exchange(https, tls::client_without_verification()?, "GET", "/ca.crt", &headers, b"").await?;
    let hash = token.split('.').next().unwrap_or_default();
    ensure!(hex::encode(Sha256::digest(&answer.body)) == hash, "the hash of the CA is not the token's: {hash}");
    Ok(CertificateDer::from(answer.body))
}

/// Registers with a bootstrap token (`{hash}.{jwt}`), as at the first start.
///
/// # Errors
/// Refused; the text is the server's.
pub async fn register(https: SocketAddr, token: &str, node: &str) -> Result<Credentials> {
    let ca = fetch_ca(https, token).await?;
    let NodeRequest { request, key } = node_request(node)?;
    let jwt = token.split_once('.').map(|(_, jwt)| jwt).context("the token has no JWT")?;
    let answer = ask(https, &ca, None, node, Some(&format!("Bearer {jwt}")), &request).await?;
    credentials(ca, answer, key)
}

/// Renews with the present certificate.
///
/// # Errors
/// Refused; the text is the server's.
pub async fn renew(https: SocketAddr, old: &Credentials, node: &str) -> Result<Credentials> {
    let NodeRequest { request, key } = node_request(node)?;
    let answer = ask(https, &old.ca, Some(&old.own), node, None, &request).await?;
    credentials(old.ca.clone(), answer, key)
}

/// `GET /edge.crt` with the headers of a Go edge in their order.
///
/// # Errors
/// No answer came; a refusal is an answer.
pub async fn ask(
    https: SocketAddr,
    ca: &CertificateDer<'static>,
    own: Option<&Certificate>,
    node: &str,
    authorization: Option<&str>,
    request: &[u8],
) -> Result<Answer> {
    let length = request.len().to_string();
    let mut headers = vec![("User-Agent", "Go-http-client/1.1"), ("Content-Length", length.as_str())];
    if let Some(authorization) = authorization {
        headers.push(("Authorization", authorization));
    }
    headers.extend([("Nodename", node), ("Accept-Encoding", "gzip")]);
    exchange(https, tls::client(ca, own)?, "GET", "/edge.crt", &headers, request).await
}

fn credentials(ca: CertificateDer<'static>, answer: Answer, key: Vec<u8>) -> Result<Credentials> {
    // A Go edge accepts 200 alone.
    if answer.status != 200 {
        bail!("{}: {}", answer.status, answer.text());
    }
    Ok(Credentials { ca, own: Certificate { certificate: CertificateDer::from(answer.body), key } })
}
