//! What the cloud must be like before a node joins: the right one, reachable, and without a Node of this name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use link::ca::certificate_hash;
use link::http_client::{Call, CallError};
use link::rustls::pki_types::CertificateDer;
use link::tls::{TlsError, client, client_without_verification};
use link::tls_failure::TlsFailure;
use link::token::{self, TokenError};
use tokio::net::TcpStream;

/// For one request or connection.
const DEADLINE: Duration = Duration::from_secs(15);
/// No CA certificate is longer.
const MAX_ANSWER: usize = 1 << 20;

/// `host:port`, the host without brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddress {
    /// A name, an IPv4 or an IPv6 address.
    pub host: String,
    /// The port of the message channel.
    pub port: u16,
}

/// The cloud is not fit for this join.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// No token was given.
    #[error("--token is missing: it is the output of `keadm gettoken`, run where the Kubernetes API can be reached")]
    NoToken,
    /// The token cannot be used.
    #[error(transparent)]
    Token(TokenError),
    /// The CA is another than the token names.
    #[error(
        "the CA of {0} is not the one that the token names: either the token is of another cloud, or somebody stands between; run `keadm gettoken` against the cluster of this cloudcore"
    )]
    WrongCa(String),
    /// The certificate endpoint does not answer.
    #[error(
        "cloudcore's certificate endpoint cannot be asked: is cloudcore running, the address right, its port open (--certport)?"
    )]
    Endpoint(#[source] CallError),
    /// What answers is no cloudcore.
    #[error("{0} answered {1} instead of a CA certificate: is it cloudcore's certificate endpoint (--certport)?")]
    NoCloudcore(String, u16),
    /// The server certificate does not fit.
    #[error(transparent)]
    Tls(TlsFailure),
    /// The CA cannot be used.
    #[error("the CA of cloudcore cannot be used")]
    Ca(#[source] TlsError),
    /// The name is taken.
    #[error(
        "a Node {0} exists already: choose another --edgenode-name; or, if it was this machine, `kubectl delete node {0}` or join with --force"
    )]
    NodeExists(String),
    /// The cloud does not know.
    #[error("cloudcore cannot tell whether a Node {node} exists: it answered {status} {reason}; look at its log")]
    NodeUnknown {
        /// The name.
        node: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// The message channel does not answer.
    #[error("cloudcore's message channel at {0} cannot be reached: is the port right and open (--cloudcore-ipport)?")]
    Channel(String, #[source] std::io::Error),
}

impl HubAddress {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
            None if !host.is_empty() && host.chars().all(plain) => host.to_owned(),
            None => return None,
        };
        Some(Self { host, port: port.parse().ok().filter(|port| *port > 0)? })
    }

    /// The same host with a port, ready for a URL.
    pub fn with_port(&self, port: u16) -> String {
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }
}

/// Checks the form of a token and its time, before anybody is asked.
///
/// # Errors
/// It is missing, malformed or expired.
pub fn check_token(token: &str) -> Result<(), CloudError> {
    if token.trim().is_empty() {
        return Err(CloudError::NoToken);
    }
    let (_, jwt) = token::split(token).map_err(CloudError::Token)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    token::check_times(jwt, now).map_err(CloudError::Token)
}

/// Asks the cloud for its CA, compares that with the token, and asks whether the node's name is free. Nothing secret is sent.
///
/// # Errors
/// It is another cloud, cannot be reached, or has the name.
pub async fn check(
    hub: &HubAddress,
    certport: u16,
    token: &str,
    node: &str,
    taken_is_fine: bool,
) -> Result<(), CloudError> {
    let server = hub.with_port(certport);
    let (hash, _) = token::split(token).map_err(CloudError::Token)?;
    let ca_url = format!("https://{server}/ca.crt");
    let anybody = client_without_verification().map_err(CloudError::Ca)?;
    let (status, ca) = get(&ca_url, anybody).await.map_err(CloudError::Endpoint)?;
    if status != 200 {
        return Err(CloudError::NoCloudcore(server, status));
    }
    if certificate_hash(&ca) != hash.to_ascii_lowercase() {
        return Err(CloudError::WrongCa(server));
    }
    let verified = client(&CertificateDer::from(ca), None).map_err(CloudError::Ca)?;
    let node_url = format!("https://{server}/node/{node}");
    let (status, body) = get(&node_url, verified).await.map_err(|error| match error {
        CallError::Tls(failure) => CloudError::Tls(failure),
        error => CloudError::Endpoint(error),
    })?;
    match status {
        404 => {}
        200 if taken_is_fine => {}
        200 => return Err(CloudError::NodeExists(node.to_owned())),
        _ => {
            let reason = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
            return Err(CloudError::NodeUnknown { node: node.to_owned(), status, reason });
        }
    }
    let channel = hub.with_port(hub.port);
    match tokio::time::timeout(DEADLINE, TcpStream::connect((hub.host.as_str(), hub.port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(CloudError::Channel(channel, error)),
        Err(_) => Err(CloudError::Channel(channel, std::io::ErrorKind::TimedOut.into())),
    }
}

async fn get(url: &str, tls: std::sync::Arc<link::rustls::ClientConfig>) -> Result<(u16, Vec<u8>), CallError> {
    let call =
        Call { method: "GET", url, headers: &[], body: Vec::new(), tls, deadline: DEADLINE, max_answer: MAX_ANSWER };
    call.send().await.map(|(status, body)| (status, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        let read = |text: &str| HubAddress::parse(text).map(|hub| (hub.with_port(1), hub.port));
        assert_eq!(read("192.168.1.2:10000"), Some(("192.168.1.2:1".into(), 10000)));
        assert_eq!(read("cloud.example:30000"), Some(("cloud.example:1".into(), 30000)));
        assert_eq!(read("[fd00::1]:10000"), Some(("[fd00::1]:1".into(), 10000)));
        for wrong in
            ["", "host", "host:", ":1", "host:0", "host:70000", "fd00::1:10000", "[x]:1", "https://h:1", "a b:1"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_looked_at_before_anybody_is_asked() {
        assert!(matches!(check_token(" "), Err(CloudError::NoToken)));
        assert!(matches!(check_token("abc"), Err(CloudError::Token(TokenError::Malformed))));
        assert!(matches!(check_token(&token::mint(b"ca", b"key", 5)), Err(CloudError::Token(TokenError::Expired))));
        check_token(&token::mint(b"ca", b"key", 1 << 40)).expect("long valid");
    }
}
