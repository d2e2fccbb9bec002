//! TLS configurations, all on one crypto provider.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};

/// What a server demands of its clients.
pub enum ClientAuth {
    /// A certificate that this CA issued for clients.
    Required(CertificateDer<'static>),
    /// A certificate is asked for without naming a CA, and not verified: the handler does that.
    Requested,
    /// A certificate of one of these CAs, or none; a wrong one is refused.
    Optional(Vec<CertificateDer<'static>>),
}

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA cannot be used.
    #[error("the CA certificate cannot be used")]
    Ca(#[source] Error),
    /// The CA cannot be used to verify clients.
    #[error("the CA certificate cannot be used to verify clients")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Certificate and key cannot be used, or do not belong together.
    #[error("certificate and key cannot be used")]
    Certificate(#[source] Error),
    /// The key has no known form.
    #[error("the private key cannot be used: {0}")]
    Key(&'static str),
}

/// A certificate with its key, both DER.
pub struct Certificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The key: SEC 1, PKCS#8 or PKCS#1.
    pub key: Vec<u8>,
}

/// Makes ring the provider of the process; without effect when it is already.
pub fn install_provider() {
    // An error says that a provider is installed; it can only be this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A server's configuration. `alpn` lists protocols in order of preference.
///
/// # Errors
/// A certificate or key cannot be used.
pub fn server(own: &Certificate, clients: ClientAuth, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier: Arc<dyn ClientCertVerifier> = match clients {
        ClientAuth::Requested => Arc::new(AnyClient(provider.clone())),
        ClientAuth::Required(ca) => WebPkiClientVerifier::builder_with_provider(roots([ca])?, provider.clone())
            .build()
            .map_err(TlsError::Verifier)?,
        ClientAuth::Optional(cas) => WebPkiClientVerifier::builder_with_provider(roots(cas)?, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::Verifier)?,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.certificate.clone()], key(&own.key)?)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client's configuration: believes servers of this CA only, and shows its certificate if it has one.
///
/// # Errors
/// A certificate or key cannot be used.
pub fn client(ca: &CertificateDer<'static>, own: Option<&Certificate>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_root_certificates(roots([ca.clone()])?);
    let config = match own {
        Some(own) => builder
            .with_client_auth_cert(vec![own.certificate.clone()], key(&own.key)?)
            .map_err(TlsError::Certificate)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// A client's configuration: believes servers of these CAs, and shows no certificate.
///
/// # Errors
/// A certificate cannot be used.
pub fn client_of(cas: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?;
    Ok(Arc::new(builder.with_root_certificates(roots(cas)?).with_no_client_auth()))
}

/// A client that believes any server: only for `/ca.crt`, whose answer is compared with the token's hash.
///
/// # Errors
/// Never with the provider at hand.
pub fn client_without_verification() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn key(der: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::try_from(der.to_vec()).map_err(TlsError::Key)
}

fn roots(cas: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for ca in cas {
        store.add(ca).map_err(TlsError::Ca)?;
    }
    Ok(Arc::new(store))
}

/// Asks for a certificate without naming CAs: a Go client picks its certificate by those names.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
