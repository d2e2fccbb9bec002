//! Files of TLS: PEM, read anew whenever they are needed, for certificates are replaced while edgecore runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use link::files::{FileError, read_bounded};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A longer file is refused; the CAs of a whole distribution have a quarter of a megabyte.
const MAX_FILE: u64 = 1 << 20;

/// A certificate, then those that lead to its CA, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificates, PEM.
    pub certificate: PathBuf,
    /// The key, PEM: PKCS#8, PKCS#1 or SEC 1.
    pub key: PathBuf,
}

/// How a broker elsewhere is spoken to in TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// The CAs that may have issued the broker's certificate, PEM. No other is believed.
    pub ca: PathBuf,
    /// What the broker is shown if it asks who we are.
    pub own: Option<Certificate>,
}

/// How the embedded broker speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// What clients are shown.
    pub own: Certificate,
    /// The CAs one of which must have issued a client's certificate, PEM; without, clients need none.
    pub clients: Option<PathBuf>,
}

/// A file of TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// It is not what it should be.
    #[error("{} has no {what} in PEM", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// What is in it cannot be used.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl ClientTls {
    pub(crate) fn load(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.ca, &error))?
            .with_root_certificates(roots(&self.ca)?);
        let config = match &self.own {
            Some(own) => {
                let (certificates, key) = own.load()?;
                builder.with_client_auth_cert(certificates, key).map_err(|error| unusable(&own.certificate, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read or used, or certificate and key do not belong together.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.own.certificate, &error))?;
        let builder = match &self.clients {
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?.into(), provider());
                builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(ca, &error))?)
            }
            None => builder.with_no_client_auth(),
        };
        let (certificates, key) = self.own.load()?;
        let config = builder.with_single_cert(certificates, key);
        Ok(Arc::new(config.map_err(|error| unusable(&self.own.certificate, &error))?))
    }
}

impl Certificate {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read_bounded(&self.key, MAX_FILE)?)
            .map_err(|_| TlsFileError::Content { path: self.key.clone(), what: "private key" })?;
        Ok((certificates, key))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = read_bounded(path, MAX_FILE)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    if certificates.is_empty() {
        return Err(TlsFileError::Content { path: path.to_path_buf(), what: "certificate" });
    }
    Ok(certificates)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut store = RootCertStore::empty();
    // A distribution's file has some that no verifier takes.
    store.add_parsable_certificates(certificates(path)?);
    if store.is_empty() {
        return Err(TlsFileError::Unusable { path: path.to_path_buf(), reason: "it has no CA certificate".to_owned() });
    }
    Ok(store)
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> TlsFileError {
    TlsFileError::Unusable { path: path.to_path_buf(), reason: error.to_string() }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
