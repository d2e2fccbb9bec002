//! The API server's way to the kubelets, as a kube-apiserver goes it: the address and port that the Node's status names, HTTPS, a client
//! certificate of the embedded CA. A cloudcore in the same process says once where it answers for all nodes ([`Gateway`]).
//!
//! `address` finds out where a node's API is and whose certificate is believed there. What is no more than a question goes by `shared`
//! connections; for the rest `dial` makes one, which `answer`, a body, brings along. Behind the address there may be cloudcore, which
//! serves the API of many nodes.

mod address;
mod answer;
mod dial;
mod shared;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use kubeapi::{Api, ApiError};
use link::http_server::Body;
use link::rustls::ClientConfig;
use link::rustls::pki_types::CertificateDer;
use link::splice::splice;
use link::tls::{Certificate, TlsError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use address::Address;
use dial::{Answer, DialError};
use shared::{Shared, is_plain};

/// Streams into pods that are open at once.
const MAX_STREAMS: usize = 1024;

/// Where one server answers for the APIs of all nodes.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Its name or IP address, which its certificate is for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The CA of its certificate.
    pub ca: CertificateDer<'static>,
}

/// Dials kubelets.
pub struct Kubelets {
    certificate: watch::Receiver<Arc<Certificate>>,
    gateway: watch::Receiver<Option<Gateway>>,
    /// The configuration of the last dial, and of which CA and certificate it is.
    tls: Mutex<Option<Tls>>,
    shared: Shared,
    places: Arc<Semaphore>,
    streams: TaskTracker,
    stop: CancellationToken,
}

type Tls = (CertificateDer<'static>, Arc<Certificate>, Arc<ClientConfig>);

impl Kubelets {
    /// Shows the newest of these certificates, and dials the gateway once there is one; streams end with `stop`.
    pub fn new(
        certificate: watch::Receiver<Arc<Certificate>>,
        gateway: watch::Receiver<Option<Gateway>>,
        streams: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            certificate,
            gateway,
            tls: Mutex::default(),
            shared: Shared::new(streams.clone(), stop.clone()),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            streams,
            stop,
        }
    }

    async fn exchange(
        &self,
        api: &Api,
        node: &str,
        mut request: Request<Body>,
        patience: Option<Duration>,
    ) -> Result<Response<Body>, ApiError> {
        let gateway = self.gateway.borrow().clone();
        let (address, ca) = match gateway {
            Some(Gateway { host, port, ca }) => {
                address::exists(api, node)?;
                (Address { host, port }, ca)
            }
            None => (address::of(api, node)?, address::hub_ca(api)?),
        };
        let client = request.extensions_mut().remove::<OnUpgrade>();
        let place = match client {
            Some(_) => Some(self.places.clone().try_acquire_owned().map_err(|_| {
                ApiError::too_many_requests(format!(
                    "{MAX_STREAMS} streams are open, which is the limit: try again later"
                ))
            })?),
            None => None,
        };
        if let Ok(host) = HeaderValue::from_str(&address.authority()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let answered = match self.tls(ca) {
            Ok(tls) if client.is_none() && is_plain(&request) => {
                self.shared.ask(&address, tls, request, patience).await
            }
            Ok(tls) => dial::ask(&address, tls, request, patience).await,
            Err(error) => Err(DialError::Certificate(error)),
        };
        match (answered.map_err(|error| unreachable(node, &address, &error))?, client) {
            (Answer::Plain(answer), _) => Ok(answer),
            (Answer::Upgraded(head, io), Some(client)) => {
                self.join(client, io, place);
                let mut answer = Response::from_parts(head, Empty::new().map_err(|never| match never {}).boxed());
                answer.headers_mut().remove(header::CONTENT_LENGTH);
                Ok(answer)
            }
            (Answer::Upgraded(..), None) => Err(ApiError::of_status(
                StatusCode::BAD_GATEWAY.as_u16(),
                format!("node {node} changed protocols unasked"),
            )),
        }
    }

    /// One configuration for all dials, as long as neither CA nor certificate change: it holds keys and sessions.
    fn tls(&self, ca: CertificateDer<'static>) -> Result<Arc<ClientConfig>, TlsError> {
        let own = self.certificate.borrow().clone();
        let mut known = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, with, tls)) = known.as_ref()
            && *of == ca
            && Arc::ptr_eq(with, &own)
        {
            return Ok(tls.clone());
        }
        let tls = link::tls::client(&ca, Some(&own))?;
        *known = Some((ca, own, tls.clone()));
        Ok(tls)
    }

    /// Gives the bytes of each side to the other until one ends.
    fn join(&self, client: OnUpgrade, node: Upgraded, place: Option<OwnedSemaphorePermit>) {
        self.streams.spawn(self.stop.clone().run_until_cancelled_owned(async move {
            match client.await {
                Ok(client) => splice(TokioIo::new(client), TokioIo::new(node), Duration::MAX).await,
                Err(error) => debug!(%error, "a client went away before its stream began"),
            }
            drop(place);
        }));
    }
}

impl kubeapi::Kubelets for Kubelets {
    fn ask<'a>(
        &'a self,
        api: &'a Api,
        node: &'a str,
        request: Request<Body>,
        patience: Option<Duration>,
    ) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
        Box::pin(self.exchange(api, node, request, patience))
    }
}

/// Which node, where, and why.
fn unreachable(node: &str, address: &address::Address, error: &DialError) -> ApiError {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why += &format!(": {cause}");
        source = cause.source();
    }
    let status = match error {
        DialError::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
        DialError::TooLarge => return ApiError::bad_request(why),
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    ApiError::of_status(
        status.as_u16(),
        format!("error dialing backend: node {node} at {}: {why}", address.authority()),
    )
}
