//! Who a certificate is for, and whether it may be believed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The organisation of every node certificate.
pub const NODE_GROUP: &str = "system:nodes";
/// The organisation of certificates that may watch the events of all nodes.
pub const OBSERVER_GROUP: &str = "ferroedge:observers";
/// What stands before the node's name in the common name.
pub const NODE_PREFIX: &str = "system:node:";

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organisations.
    pub organisations: Vec<String>,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

/// A certificate is not to be believed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No X.509.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// Its time is over.
    #[error("the certificate of {0} has expired: get a new token with `keadm gettoken` and join again with it")]
    Expired(String),
    /// Its time has not come; a clock may be wrong.
    #[error("the certificate of {0} is not valid yet: is the clock right?")]
    NotYet(String),
    /// Another authority signed it, or its usage is another.
    #[error("the certificate of {0} was not issued by this CA for clients")]
    NotIssued(String, #[source] webpki::Error),
}

impl Identity {
    /// Reads a certificate; nothing is verified.
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn read(certificate: &[u8]) -> Result<Self, IdentityError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            common_name: parsed.subject().iter_common_name().next().map(text).unwrap_or_default(),
            organisations: parsed.subject().iter_organization().map(text).collect(),
            not_before: system_time(parsed.validity().not_before.timestamp()),
            not_after: system_time(parsed.validity().not_after.timestamp()),
        })
    }

    /// The node's name, when this is a node.
    pub fn node(&self) -> Option<&str> {
        let is_node = self.organisations.iter().any(|name| name == NODE_GROUP);
        self.common_name.strip_prefix(NODE_PREFIX).filter(|name| is_node && !name.is_empty())
    }
}

/// The holder of a client certificate that this CA issued and whose time is now.
///
/// # Errors
/// It expired, is not valid yet, or was issued by another.
pub fn verify_client(
    ca: &CertificateDer<'_>,
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<Identity, IdentityError> {
    let identity = Identity::read(certificate)?;
    let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(ca).map_err(|_| IdentityError::Unreadable)?;
    let entity = EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Unreadable)?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let anchors = [anchor];
    let verified = entity.verify_for_usage(
        algorithms.all,
        &anchors,
        &[],
        UnixTime::since_unix_epoch(since),
        KeyUsage::client_auth(),
        None,
        None,
    );
    match verified {
        Ok(_) => Ok(identity),
        Err(webpki::Error::CertExpired { .. }) => Err(IdentityError::Expired(identity.common_name)),
        Err(webpki::Error::CertNotValidYet { .. }) => Err(IdentityError::NotYet(identity.common_name)),
        Err(error) => Err(IdentityError::NotIssued(identity.common_name, error)),
    }
}

fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}
