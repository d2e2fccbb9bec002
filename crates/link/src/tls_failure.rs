//! Why a TLS connection did not come about, with what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// A connection failed in TLS. Each variant names the server, `host:port`.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// The server finds our certificate expired.
    #[error(
        "{0} does not take this node's certificate any more, it has expired: run `keadm gettoken` in the cloud and join again with the new token (`keadm join --force`)"
    )]
    Expired(String, #[source] io::Error),
    /// The server finds our certificate wrong, or misses it.
    #[error(
        "{0} does not take this node's certificate: it is of another cloud; run `keadm gettoken` in this one and join again with the new token (`keadm join --force`)"
    )]
    Refused(String, #[source] io::Error),
    /// The server has another CA than the one that we know.
    #[error(
        "{0} is another cloud than the one that this node joined, its certificate is of another CA: correct the address, or, if the cloud was set up anew, run `keadm gettoken` there and join again with the new token (`keadm join --force`)"
    )]
    OtherCa(String, #[source] io::Error),
    /// The server has a certificate for other names.
    #[error(
        "the certificate of {0} is not made for this address: use one that it is made for, or add this one to modules.cloudHub.advertiseAddress (names: dnsNames) of cloudcore.yaml and restart cloudcore"
    )]
    OtherName(String, #[source] io::Error),
    /// The server's certificate is not valid now.
    #[error("the certificate of {0} is not valid at this time: is this machine's clock right?")]
    OtherTime(String, #[source] io::Error),
    /// No TLS, or broken off.
    #[error("TLS with {0} failed: is it the right port?")]
    Broken(String, #[source] io::Error),
}

impl TlsFailure {
    /// Sorts an error of a TLS stream.
    pub(crate) fn new(server: String, error: io::Error) -> Self {
        use AlertDescription as Alert;
        use CertificateError as Wrong;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(Alert::CertificateExpired)) => Self::Expired(server, error),
            Some(Error::AlertReceived(
                Alert::BadCertificate
                | Alert::CertificateRequired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::DecryptError,
            )) => Self::Refused(server, error),
            Some(Error::InvalidCertificate(wrong)) => match wrong {
                Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => Self::OtherName(server, error),
                Wrong::Expired
                | Wrong::ExpiredContext { .. }
                | Wrong::NotValidYet
                | Wrong::NotValidYetContext { .. } => Self::OtherTime(server, error),
                _ => Self::OtherCa(server, error),
            },
            _ => Self::Broken(server, error),
        }
    }
}
