//! One HTTPS request on a connection of its own: what joining needs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::reach;
use crate::tls_failure::TlsFailure;

/// A request and how to send it.
pub struct Call<'a> {
    /// `GET`, `POST`, …; a GET may have a body.
    pub method: &'a str,
    /// `https://host:port/path`.
    pub url: &'a str,
    /// Extra headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: Vec<u8>,
    /// CA and own certificate.
    pub tls: Arc<ClientConfig>,
    /// For everything together.
    pub deadline: Duration,
    /// A longer answer is refused.
    pub max_answer: usize,
}

/// A request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The URL or a header cannot be used.
    #[error("{0:?} is not of the form https://host:port/path, or a header cannot be sent")]
    Address(String),
    /// Nobody listens there, or the network is down.
    #[error("{0} cannot be reached")]
    Connect(String, #[source] std::io::Error),
    /// TLS failed.
    #[error(transparent)]
    Tls(TlsFailure),
    /// The exchange broke.
    #[error("{0} broke the exchange off")]
    Exchange(String, #[source] hyper::Error),
    /// The answer is too long, or broke off.
    #[error("the answer of {0} is too long or broke off")]
    Answer(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("{url} did not answer within {seconds} s", url = .0, seconds = .1.as_secs())]
    Timeout(String, Duration),
}

impl Call<'_> {
    /// Sends the request; the answer's status and body.
    ///
    /// # Errors
    /// No answer came; any status is an answer.
    pub async fn send(&self) -> Result<(u16, Bytes), CallError> {
        match tokio::time::timeout(self.deadline, self.exchange()).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Timeout(self.url.to_owned(), self.deadline)),
        }
    }

    async fn exchange(&self) -> Result<(u16, Bytes), CallError> {
        let wrong = || CallError::Address(self.url.to_owned());
        let uri: Uri = self.url.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        // As it stands in the URL: an IPv6 address keeps its brackets.
        let server = uri.authority().map_or_else(String::new, |authority| match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:{port}"),
        });
        let tcp = reach::tcp(&host, port).await.map_err(|e| CallError::Connect(server.clone(), e))?;
        let name = ServerName::try_from(host).map_err(|_| wrong())?;
        let tls = TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await
            .map_err(|e| CallError::Tls(TlsFailure::new(server.clone(), e)))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|e| CallError::Exchange(server.clone(), e))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(self.method).uri(path).header("host", &server);
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(self.body.clone()))).map_err(|_| wrong())?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| CallError::Exchange(server.clone(), e))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), self.max_answer)
                .collect()
                .await
                .map_err(|e| CallError::Answer(server.clone(), e))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection ends only after the answer, or with an error that the answer tells better.
            _ = connection => answer.await,
        }
    }
}
