//! The certificate authority of the hub, and certificate requests of nodes (KubeEdge v1.23).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use ring::digest;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{NODE_GROUP, NODE_PREFIX};
use crate::key::{NotP256, to_pkcs8, to_sec1};

/// How long the CA and the hub's certificate are valid.
pub const LONG_VALIDITY: Duration = Duration::from_secs(36_400 * 24 * 3600);
/// Certificates are valid from a little before they are made: edge clocks drift.
const BACKDATE: Duration = Duration::from_secs(3600);
/// The CA's serial number.
const CA_SERIAL: u64 = 1024;

/// Something about a certificate or key went wrong.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The stored key cannot be used.
    #[error("the CA key cannot be used")]
    Key(#[source] NotP256),
    /// The stored certificate cannot be read.
    #[error("the CA certificate cannot be read")]
    Certificate,
    /// Certificate and key are of two CAs.
    #[error("the CA certificate and the CA key do not belong together")]
    Mismatch,
    /// The library refused.
    #[error("{0} failed")]
    Library(&'static str, #[source] rcgen::Error),
    /// The request is no valid PKCS#10, or its own signature is wrong.
    #[error("the certificate request is not valid PKCS#10 with a correct signature")]
    Request(#[source] rcgen::Error),
    /// The request names somebody else.
    #[error(
        "the certificate request is for {found:?}, but node {node} asks: its common name must be {NODE_PREFIX}{node}"
    )]
    OtherNode {
        /// Who asks.
        node: String,
        /// The request's common name.
        found: String,
    },
    /// A usage number that is not known.
    #[error("extended key usage {0} is not known: use 0 (any), 1 (server) or 2 (client)")]
    Usage(i64),
    /// No usage at all.
    #[error("at least one extended key usage is needed")]
    NoUsage,
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
}

/// A CA certificate with its key.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key: Vec<u8>,
}

/// A certificate with its key.
pub struct Issued {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// SEC 1 DER.
    pub key: Vec<u8>,
}

/// A node's fresh key and what it asks the hub to sign.
pub struct NodeRequest {
    /// PKCS#10 DER.
    pub request: Vec<u8>,
    /// SEC 1 DER; it never leaves the node.
    pub key: Vec<u8>,
}

impl CertificateAuthority {
    /// A new CA with upstream's subject and validity.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Self, CaError> {
        Self::generate_named("KubeEdge", Some(CA_SERIAL))
    }

    /// A new CA with another name, for servers that are not the hub.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate_named(name: &str, serial: Option<u64>) -> Result<Self, CaError> {
        let key = new_key()?;
        let mut params = params(name, None, LONG_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(serial) = serial {
            params.serial_number = Some(serial.into());
        }
        let certificate = params.self_signed(&key).map_err(|e| CaError::Library("making the CA", e))?;
        Self::from_der(certificate.der().to_vec(), &key.serialize_der())
    }

    /// A stored CA; the key in SEC 1 or PKCS#8.
    ///
    /// # Errors
    /// One of the two cannot be used.
    pub fn from_der(certificate: Vec<u8>, key: &[u8]) -> Result<Self, CaError> {
        let pkcs8 = to_pkcs8(key).map_err(CaError::Key)?;
        let pair = KeyPair::try_from(pkcs8.as_slice()).map_err(|e| CaError::Library("reading the CA key", e))?;
        let public = X509Certificate::from_der(&certificate)
            .map(|(_, parsed)| parsed.public_key().subject_public_key.data.to_vec())
            .map_err(|_| CaError::Certificate)?;
        if public != pair.public_key_raw() {
            return Err(CaError::Mismatch);
        }
        let certificate = CertificateDer::from(certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)
            .map_err(|e| CaError::Library("reading the CA certificate", e))?;
        Ok(Self { certificate, issuer, key: to_sec1(key).map_err(CaError::Key)? })
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The key, SEC 1 DER.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The SHA-256 of the certificate in hexadecimal: the first part of every token.
    pub fn hash(&self) -> String {
        certificate_hash(&self.certificate)
    }

    /// A server certificate for these host names and IP addresses; empty names are left out.
    ///
    /// # Errors
    /// A name cannot stand in a certificate.
    pub fn issue_server(&self, common_name: &str, organisation: &str, hosts: &[String]) -> Result<Issued, CaError> {
        let mut params = params(common_name, Some(organisation), LONG_VALIDITY);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in hosts.iter().filter(|host| !host.is_empty()) {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|_| CaError::Name(host.clone()))?),
            });
        }
        self.issue(&params)
    }

    /// A client certificate with these names.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn issue_client(&self, common_name: &str, organisation: &str, validity: Duration) -> Result<Issued, CaError> {
        let mut params = params(common_name, Some(organisation), validity);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    /// Signs a node's request. Subject, usages and validity come from the hub; of the request only the public key is
    /// taken, after its name was compared. `usages` are Go's numbers (0 any, 1 server, 2 client).
    ///
    /// # Errors
    /// The request is invalid or names another node, or a usage is not known.
    pub fn sign_node(
        &self,
        request: &[u8],
        node: &str,
        usages: &[i64],
        validity: Duration,
    ) -> Result<CertificateDer<'static>, CaError> {
        if usages.is_empty() {
            return Err(CaError::NoUsage);
        }
        let whole = X509CertificationRequest::from_der(request).is_ok_and(|(rest, _)| rest.is_empty());
        if !whole {
            return Err(CaError::Request(rcgen::Error::CouldNotParseCertificationRequest));
        }
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(CaError::Request)?;
        let name = format!("{NODE_PREFIX}{node}");
        let found = common_name(&request.params.distinguished_name);
        if found != name {
            return Err(CaError::OtherNode { node: node.to_owned(), found });
        }
        request.params = params(&name, Some(NODE_GROUP), validity);
        for usage in usages {
            request.params.extended_key_usages.push(match usage {
                0 => ExtendedKeyUsagePurpose::Any,
                1 => ExtendedKeyUsagePurpose::ServerAuth,
                2 => ExtendedKeyUsagePurpose::ClientAuth,
                other => return Err(CaError::Usage(*other)),
            });
        }
        let signed = request.signed_by(&self.issuer).map_err(|e| CaError::Library("signing the certificate", e))?;
        Ok(signed.der().clone())
    }

    fn issue(&self, params: &CertificateParams) -> Result<Issued, CaError> {
        let key = new_key()?;
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|e| CaError::Library("signing the certificate", e))?;
        let key = to_sec1(&key.serialize_der()).map_err(CaError::Key)?;
        Ok(Issued { certificate: certificate.der().clone(), key })
    }
}

/// A fresh key and a request for this node's client certificate, with the subject that upstream's edge writes.
///
/// # Errors
/// The system has no randomness, or the name cannot stand in a certificate.
pub fn node_request(node: &str) -> Result<NodeRequest, CaError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "CN");
    name.push(DnType::OrganizationName, NODE_GROUP);
    name.push(DnType::LocalityName, "Hangzhou");
    name.push(DnType::StateOrProvinceName, "Zhejiang");
    name.push(DnType::CommonName, format!("{NODE_PREFIX}{node}"));
    params.distinguished_name = name;
    let request = params.serialize_request(&key).map_err(|e| CaError::Library("making the request", e))?;
    let key = to_sec1(&key.serialize_der()).map_err(CaError::Key)?;
    Ok(NodeRequest { request: request.der().to_vec(), key })
}

/// The SHA-256 of a DER certificate in hexadecimal.
pub fn certificate_hash(certificate: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, certificate))
}

fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| CaError::Library("making a key", e))
}

fn params(common_name: &str, organisation: Option<&str>, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + validity);
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::NoCa;
    let mut serial: [u8; 8] = rand::random();
    // Positive and without a leading zero, as DER wants it.
    serial[0] = (serial[0] & 0x7f) | 0x01;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn common_name(name: &DistinguishedName) -> String {
    use rcgen::DnValue::{PrintableString, Utf8String};
    match name.get(&DnType::CommonName) {
        Some(Utf8String(text)) => text.clone(),
        Some(PrintableString(text)) => text.as_str().to_owned(),
        _ => String::new(),
    }
}
