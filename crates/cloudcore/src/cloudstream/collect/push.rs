//! Pushing lines to a receiver over HTTP: what is tried again, and what is given up.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tracing::warn;

use super::{Counters, OutputError};

/// How long a receiver may take for its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Of what it says when it refuses.
const MAX_ANSWER: usize = 64 << 10;
const SHOWN: usize = 300;
/// Refusals that are about the receiver, its rights or its load and not about the lines: these are offered again.
const PASSING: [StatusCode; 6] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::PROXY_AUTHENTICATION_REQUIRED,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::TOO_MANY_REQUESTS,
];

/// A receiver.
pub(super) struct Push {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    content_type: &'static str,
    counters: Arc<Counters>,
}

impl Push {
    /// `base` is what stands in the configuration; servers are believed by the system's CAs.
    pub(super) fn new(base: &str, path: &str, content_type: &'static str, counters: Arc<Counters>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(ANSWER));
        let connector = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => builder.https_or_http().enable_http1().wrap_connector(http),
            Err(error) => {
                warn!(%error, "the system has no CA certificates: receivers of logs can only be reached without TLS");
                let none = link::rustls::ClientConfig::builder()
                    .with_root_certificates(link::rustls::RootCertStore::empty())
                    .with_no_client_auth();
                HttpsConnectorBuilder::new().with_tls_config(none).https_or_http().enable_http1().wrap_connector(http)
            }
        };
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, url: format!("{}{path}", base.trim_end_matches('/')), content_type, counters }
    }

    /// Sends so many lines. What the receiver refuses for good is counted, told and dropped.
    pub(super) async fn send(&self, body: Vec<u8>, tenant: &str, lines: usize) -> Result<(), OutputError> {
        let unreachable = |error: Box<dyn Error + Send + Sync>| OutputError::Unreachable(self.url.clone(), error);
        let mut request = Request::post(&self.url).header(header::CONTENT_TYPE, self.content_type);
        if !tenant.is_empty() {
            request = request.header("x-scope-orgid", tenant);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| unreachable(error.into()))?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| unreachable(error.into()))?;
            let status = answer.status();
            let text = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let text = text.map(|text| text.to_bytes()).unwrap_or_default();
            Ok((status, String::from_utf8_lossy(&text).trim().chars().take(SHOWN).collect::<String>()))
        };
        let late = || Err(unreachable(format!("no answer within {} s", ANSWER.as_secs()).into()));
        let (status, text) = tokio::time::timeout(ANSWER, exchange).await.unwrap_or_else(|_| late())?;
        if status.is_success() {
            return Ok(());
        }
        if !status.is_client_error() || PASSING.contains(&status) {
            return Err(OutputError::Refused(self.url.clone(), status, text));
        }
        self.counters.dropped.fetch_add(lines as u64, Ordering::Relaxed);
        warn!(url = self.url, %status, answer = text, lines, "a receiver refused collected lines: they are dropped");
        Ok(())
    }
}
