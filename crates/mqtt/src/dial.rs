//! The way to a broker elsewhere: TCP, TLS, CONNECT and its answer. Each failure names the broker, the reason and the cure.

use std::io;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error as Tls};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::ClientConfig;
use crate::connection::{Stream, more};
use crate::encode;
use crate::heard::{self, Heard};
use crate::packet::frame;
use crate::tls::TlsFileError;

/// The answer to CONNECT is that short.
const LONGEST_ANSWER: usize = 64;

/// A broker that has let us in.
pub(crate) struct Dialled {
    pub(crate) stream: Stream,
    /// What has come after its answer.
    pub(crate) read: BytesMut,
    /// It knows us: what was on its way both ways goes on.
    pub(crate) session_present: bool,
}

/// The broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("it cannot be reached ({0}): does it run, and is its address right?")]
    Reach(io::Error),
    #[error("it did not answer in time: is that address an MQTT broker's, and does it speak TLS where we do?")]
    TimedOut,
    #[error("TLS is not possible: {0}; correct the file, it is read again at the next try")]
    Files(#[from] TlsFileError),
    #[error("{0:?} is neither a name nor an address that a certificate can be for: correct the address")]
    Name(String),
    #[error("its certificate is not of a CA in {ca} ({reason}): put the CA that issued it there")]
    OtherCa { ca: String, reason: Tls },
    #[error("its certificate is not for {name:?} ({reason}): use a name that it is for, or give the broker another")]
    OtherName { name: String, reason: Tls },
    #[error("its certificate has expired or is not valid yet ({0}): renew it, or set this machine's clock right")]
    OtherTime(Tls),
    #[error("it does not take our certificate ({0}): give us one of the CA that it believes, which has not expired")]
    Certificate(Tls),
    #[error("TLS with it failed ({0}): does it speak TLS on this port?")]
    Tls(io::Error),
    #[error("it refuses {0}: correct name and password here or there, or allow that user to connect")]
    User(String),
    #[error("it refuses the client id {0:?}: use another")]
    ClientId(String),
    #[error("it is not available now (code {0} in its answer)")]
    Unavailable(u8),
    #[error("it closed the connection instead of an answer ({0}): see its log; write ssl:// if it wants TLS")]
    Closed(io::Error),
    #[error("what answers does not speak MQTT here: correct the address, or write ssl:// if it wants TLS")]
    NoBroker,
}

/// Connects, within the time for that.
pub(crate) async fn dial(config: &ClientConfig) -> Result<Dialled, DialError> {
    let dialled = tokio::time::timeout(config.connect_timeout, dial_within(config)).await;
    dialled.unwrap_or(Err(DialError::TimedOut))
}

async fn dial_within(config: &ClientConfig) -> Result<Dialled, DialError> {
    let tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(DialError::Reach)?;
    let _ = tcp.set_nodelay(true);
    let mut stream: Stream = match &config.tls {
        None => Box::new(tcp),
        Some(files) => {
            let name = ServerName::try_from(config.host.clone()).map_err(|_| DialError::Name(config.host.clone()))?;
            let connector = TlsConnector::from(files.load()?);
            Box::new(connector.connect(name, tcp).await.map_err(|error| of_tls(config, error))?)
        }
    };
    let user = config.user.as_ref().map(|(name, password)| (name.as_str(), password.as_str()));
    let hello = encode::connect(&config.client_id, user, !config.keep_session, config.keep_alive);
    stream.write_all(&hello).await.map_err(|error| of_tls(config, error))?;
    stream.flush().await.map_err(|error| of_tls(config, error))?;
    let mut read = BytesMut::new();
    loop {
        match frame(&mut read, LONGEST_ANSWER) {
            Ok(Some(answer)) => {
                return match heard::heard(answer) {
                    Ok(Heard::Connected { session_present }) => Ok(Dialled { stream, read, session_present }),
                    Ok(Heard::Refused(code)) => Err(refused(config, code)),
                    _ => Err(DialError::NoBroker),
                };
            }
            Ok(None) => more(&mut stream, &mut read).await.map_err(|error| of_tls(config, error))?,
            Err(_) => return Err(DialError::NoBroker),
        }
    }
}

fn refused(config: &ClientConfig, code: u8) -> DialError {
    let user = config
        .user
        .as_ref()
        .map_or_else(|| "a client without name and password".to_owned(), |(name, _)| format!("user {name:?}"));
    match code {
        2 => DialError::ClientId(config.client_id.clone()),
        // Mosquitto has 5 for a wrong password, too.
        4 | 5 => DialError::User(user),
        code => DialError::Unavailable(code),
    }
}

/// With TLS 1.3 a server says what is wrong with our certificate only after the handshake, so this is for later errors, too.
fn of_tls(config: &ClientConfig, error: io::Error) -> DialError {
    use AlertDescription as Alert;
    use CertificateError as Wrong;
    let Some(files) = &config.tls else { return DialError::Closed(error) };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()).cloned() {
        Some(reason @ Tls::InvalidCertificate(_)) => match &reason {
            Tls::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
                DialError::OtherName { name: config.host.clone(), reason }
            }
            Tls::InvalidCertificate(
                Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
            ) => DialError::OtherTime(reason),
            _ => DialError::OtherCa { ca: files.ca.display().to_string(), reason },
        },
        Some(
            reason @ Tls::AlertReceived(
                Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnsupportedCertificate
                | Alert::UnknownCA
                | Alert::DecryptError,
            ),
        ) => DialError::Certificate(reason),
        Some(_) => DialError::Tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => DialError::Closed(error),
        None => DialError::Tls(error),
    }
}

#[cfg(test)]
mod tests;
