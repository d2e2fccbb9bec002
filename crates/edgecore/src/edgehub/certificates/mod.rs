//! The node's identity: obtained with a token, renewed with itself. `files` has the three files.

mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use api::edgecore::EdgeHub as Settings;
use link::ca::{CaError, certificate_hash, node_request};
use link::files::FileError;
use link::http_client::{Call, CallError};
use link::identity::{Identity, IdentityError};
use link::key::NotP256;
use link::rustls::ClientConfig;
use link::rustls::pki_types::CertificateDer;
use link::tls::{TlsError, client, client_without_verification};
use link::token::{self, TokenError};
use rand::RngExt;
use tracing::{info, warn};

use files::{Files, Loaded};

/// For one request to the certificate endpoint.
const DEADLINE: Duration = Duration::from_secs(30);
/// An answer of the certificate endpoint is not longer.
const MAX_ANSWER: usize = 1 << 20;
/// Waits between tries to renew: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(32);

/// The node's identity, and how to get it.
pub(super) struct Certificates {
    node: String,
    settings: Settings,
    files: Files,
    /// A token in this file comes before the one in the configuration; it is removed once it was used.
    bootstrap: PathBuf,
    /// A token that the cloud refused is not tried again while the certificate is good.
    refused: Option<String>,
    not_after: Option<SystemTime>,
    renew_at: Option<SystemTime>,
    /// Which certificate endpoint is asked next.
    turn: AtomicUsize,
}

/// The node has no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No certificate and no token.
    #[error("there is neither a certificate in {} nor a token: run `keadm gettoken` in the cloud and write the token to {}", cert.display(), bootstrap.display())]
    NoToken {
        /// Where the certificate would be.
        cert: PathBuf,
        /// Where a token is looked for.
        bootstrap: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate of {node} has expired: run `keadm gettoken` in the cloud and write the token to {}; the node joins again by itself", bootstrap.display())]
    Expired {
        /// The node.
        node: String,
        /// Where a token is looked for.
        bootstrap: PathBuf,
    },
    /// The certificate is of another node.
    #[error("the certificate in {} is for {found:?}, but this node is {node}: move it away and join with a token, or correct hostnameOverride", cert.display())]
    OtherNode {
        /// The file.
        cert: PathBuf,
        /// Whose it is.
        found: String,
        /// The node.
        node: String,
    },
    /// The token cannot be used.
    #[error("the token cannot be used: run `keadm gettoken` in the cloud and write the new token to {}", bootstrap.display())]
    Token {
        /// Where a token is looked for.
        bootstrap: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TokenError,
    },
    /// The CA is another than the token names.
    #[error("the CA of {url} is not the one that the token names: either the token is of another cloud, or somebody stands between; run `keadm gettoken` in the node's cloud and write the new token to {}", bootstrap.display())]
    WrongCa {
        /// Who answered.
        url: String,
        /// Where a token is looked for.
        bootstrap: PathBuf,
    },
    /// The hub does not accept the token, or the certificate that shall be renewed.
    #[error("the cloud does not accept the token of this node ({reason}): run `keadm gettoken` in the cloud and write the new token to {}", bootstrap.display())]
    Unauthorized {
        /// Its words.
        reason: String,
        /// Where a token is looked for.
        bootstrap: PathBuf,
    },
    /// The hub refused.
    #[error("the cloud refused to issue a certificate: {status} {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// The certificate endpoint does not answer.
    #[error("the certificate endpoint cannot be asked")]
    Call(#[source] CallError),
    /// A file cannot be read or written.
    #[error("the certificate files cannot be used")]
    File(#[source] FileError),
    /// A file holds something else.
    #[error("{} holds no usable PEM: move it away and join again with a token (`keadm gettoken`)", .0.display())]
    Pem(PathBuf),
    /// The key is of another kind.
    #[error("{} holds no P-256 key: move it away and join again with a token (`keadm gettoken`)", .0.display())]
    Key(PathBuf, #[source] NotP256),
    /// The answer is no certificate.
    #[error("the certificate cannot be read")]
    Unreadable(#[source] IdentityError),
    /// A request could not be made.
    #[error("the certificate request failed")]
    Request(#[source] CaError),
    /// TLS refuses the CA.
    #[error("the CA cannot be used for TLS")]
    Tls(#[source] TlsError),
    /// TLS refuses certificate and key.
    #[error("{} and {} cannot be used together for TLS: move both away, run `keadm gettoken` in the cloud and write the token to {}", cert.display(), key.display(), bootstrap.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Where a token is looked for.
        bootstrap: PathBuf,
        /// What is wrong with them.
        #[source]
        source: Box<TlsError>,
    },
}

/// TLS with the identity that the node has now, for another way to the cloud; `None` while it has none that is good.
///
/// # Errors
/// The files hold something else.
pub(crate) fn present(settings: &Settings, node: &str) -> Result<Option<Arc<ClientConfig>>, CertificateError> {
    let certificates = Certificates::new(node.to_owned(), settings.clone(), Path::new(""));
    match certificates.files.read(node)? {
        Some(loaded) if !loaded.has_expired() => certificates.client(&loaded).map(Some),
        _ => Ok(None),
    }
}

impl CertificateError {
    /// Whether trying again alone does not help.
    pub(super) fn needs_a_person(&self) -> bool {
        !matches!(self, Self::Call(_))
    }
}

impl Certificates {
    pub(super) fn new(node: String, settings: Settings, config: &Path) -> Self {
        // Beside the folder of the configuration: /etc/kubeedge/bootstrap-edgecore.conf by default.
        let dir = config.parent().and_then(Path::parent).unwrap_or(Path::new("/etc/kubeedge"));
        let files =
            Files { ca: settings.ca_file.clone(), cert: settings.cert_file.clone(), key: settings.key_file.clone() };
        let bootstrap = dir.join("bootstrap-edgecore.conf");
        Self {
            node,
            settings,
            files,
            bootstrap,
            refused: None,
            not_after: None,
            renew_at: None,
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// A TLS configuration with the node's identity. A new token in the bootstrap file leads to a new certificate: it is the
    /// way back for a node whose certificate or CA is no longer good. A bad token does no harm to a node that has a good one.
    pub(super) async fn tls(&mut self) -> Result<Arc<ClientConfig>, CertificateError> {
        if let Some(token) = self.bootstrap_token()?.filter(|token| self.refused.as_ref() != Some(token)) {
            match self.join(&token).await {
                Ok(()) => self.remove_bootstrap(),
                Err(error) => match self.load() {
                    Ok(Some(loaded)) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        warn!(%error, cause, file = %self.bootstrap.display(), "the new token is of no use; the node goes on with the certificate it has");
                        self.refused = error.needs_a_person().then_some(token);
                        return self.adopt(loaded);
                    }
                    _ => return Err(error),
                },
            }
        }
        let loaded = match self.load() {
            Ok(None) | Err(CertificateError::Expired { .. }) if !self.settings.token.is_empty() => {
                let token = self.settings.token.clone();
                self.join(&token).await?;
                self.load()?
            }
            loaded => loaded?,
        };
        self.adopt(loaded.ok_or_else(|| self.no_token())?)
    }

    fn adopt(&mut self, loaded: Loaded) -> Result<Arc<ClientConfig>, CertificateError> {
        self.plan_renewal(&loaded.identity);
        self.client(&loaded)
    }

    fn client(&self, loaded: &Loaded) -> Result<Arc<ClientConfig>, CertificateError> {
        client(&loaded.ca, Some(&loaded.own)).map_err(|source| CertificateError::Pair {
            cert: self.files.cert.clone(),
            key: self.files.key.clone(),
            bootstrap: self.bootstrap.clone(),
            source: Box::new(source),
        })
    }

    /// Resolves once the certificate has been renewed; never when it needs no renewal.
    pub(super) async fn rotate_in_time(&mut self) {
        let Some(at) = self.renew_at.filter(|_| self.settings.rotate_certificates) else {
            return std::future::pending().await;
        };
        let mut retry = FIRST_RETRY;
        // Looked at again and again, for clocks jump.
        while SystemTime::now() < at {
            let left = at.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left.min(Duration::from_secs(60))).await;
        }
        loop {
            match self.renew().await {
                Ok(()) => return,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let expires_in_s =
                        self.not_after.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
                    warn!(%error, cause, expires_in_s = expires_in_s.as_secs(), "the certificate could not be renewed; tried again");
                }
            }
            let wait = retry.mul_f64(rand::rng().random_range(1.0..1.1));
            tokio::time::sleep(wait).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn bootstrap_token(&self) -> Result<Option<String>, CertificateError> {
        if !self.bootstrap.exists() {
            return Ok(None);
        }
        let text = files::read(&self.bootstrap)?;
        let token = String::from_utf8_lossy(&text).trim().to_owned();
        Ok((!token.is_empty()).then_some(token))
    }

    fn remove_bootstrap(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.bootstrap) {
            warn!(%error, file = %self.bootstrap.display(), "the used token could not be removed");
            self.refused = self.bootstrap_token().ok().flatten();
        }
    }

    fn no_token(&self) -> CertificateError {
        CertificateError::NoToken { cert: self.settings.cert_file.clone(), bootstrap: self.bootstrap.clone() }
    }

    /// First issue: the CA, checked against the token's hash, then the certificate.
    async fn join(&mut self, text: &str) -> Result<(), CertificateError> {
        let (hash, jwt) = token::split(text)
            .map_err(|source| CertificateError::Token { bootstrap: self.bootstrap.clone(), source })?;
        let url = format!("{}/ca.crt", self.server());
        let tls = client_without_verification().map_err(CertificateError::Tls)?;
        let (status, ca) = self.call(&url, &[], Vec::new(), tls).await?;
        if status != 200 {
            return Err(self.no(status, &ca));
        }
        if certificate_hash(&ca) != hash.to_ascii_lowercase() {
            return Err(CertificateError::WrongCa { url, bootstrap: self.bootstrap.clone() });
        }
        let ca = CertificateDer::from(ca);
        let tls = client(&ca, None).map_err(CertificateError::Tls)?;
        let authorization = format!("Bearer {jwt}");
        let (certificate, key) = self.ask(tls, Some(&authorization)).await?;
        self.files.save(&ca, &certificate, &key)?;
        info!(node = self.node, "joined: the cloud issued a certificate");
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), CertificateError> {
        let loaded = self.load()?.ok_or_else(|| self.no_token())?;
        let tls = self.client(&loaded)?;
        let (certificate, key) = self.ask(tls, None).await?;
        self.files.save(&loaded.ca, &certificate, &key)?;
        info!(node = self.node, "the certificate was renewed");
        Ok(())
    }

    async fn ask(
        &self,
        tls: Arc<ClientConfig>,
        authorization: Option<&str>,
    ) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
        let request = node_request(&self.node).map_err(CertificateError::Request)?;
        let mut headers = vec![("nodename", self.node.as_str())];
        headers.extend(authorization.map(|text| ("authorization", text)));
        let url = format!("{}/edge.crt", self.server());
        let (status, body) = self.call(&url, &headers, request.request, tls).await?;
        if status != 200 {
            return Err(self.no(status, &body));
        }
        let identity = Identity::read(&body).map_err(CertificateError::Unreadable)?;
        if identity.node() != Some(self.node.as_str()) {
            return Err(self.files.other_node(&identity, &self.node));
        }
        Ok((body, request.key))
    }

    /// `None` when there is no certificate yet.
    fn load(&self) -> Result<Option<Loaded>, CertificateError> {
        let loaded = self.files.load(&self.node)?;
        if loaded.as_ref().is_some_and(Loaded::has_expired) {
            return Err(CertificateError::Expired { node: self.node.clone(), bootstrap: self.bootstrap.clone() });
        }
        Ok(loaded)
    }

    fn no(&self, status: u16, body: &[u8]) -> CertificateError {
        let reason: String = String::from_utf8_lossy(body).trim().chars().take(500).collect();
        match status {
            401 => CertificateError::Unauthorized { reason, bootstrap: self.bootstrap.clone() },
            _ => CertificateError::Refused { status, reason },
        }
    }

    /// Between 70 and 90 % of the lifetime, different on every node.
    fn plan_renewal(&mut self, identity: &Identity) {
        let lifetime = identity.not_after.duration_since(identity.not_before).unwrap_or_default();
        self.not_after = Some(identity.not_after);
        self.renew_at = Some(identity.not_before + lifetime.mul_f64(rand::rng().random_range(0.7..0.9)));
    }

    /// The certificate endpoint whose turn it is.
    fn server(&self) -> &str {
        let turn = self.turn.load(Ordering::Relaxed) % self.settings.http_servers.len().max(1);
        self.settings.http_servers.get(turn).map_or("", String::as_str)
    }

    /// Asks; after one that does not answer, the next has its turn.
    async fn call(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
        tls: Arc<ClientConfig>,
    ) -> Result<(u16, Vec<u8>), CertificateError> {
        let call = Call { method: "GET", url, headers, body, tls, deadline: DEADLINE, max_answer: MAX_ANSWER };
        let (status, body) = call.send().await.map_err(|error| {
            self.turn.fetch_add(1, Ordering::Relaxed);
            CertificateError::Call(error)
        })?;
        Ok((status, body.to_vec()))
    }
}
