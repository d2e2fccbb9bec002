//! The certificate endpoint: `/ca.crt`, `/edge.crt`, `/node/{nodename}` (KubeEdge v1.23, port 10002); and what the API server asks, the
//! conversion of devices.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::edgecore::is_node_name;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use link::http_server::{Body, Peer};
use link::identity::{IdentityError, verify_client};
use link::token;
use tracing::{info, warn};

use super::certificates::Material;
use super::register;
use crate::conversion::webhook::Webhook;
use crate::kubernetes::Kubernetes;

/// A certificate request is not longer.
const MAX_REQUEST: usize = 1 << 20;
/// Go's number for client authentication: what a node asks for when it does not say.
const CLIENT_AUTH: i64 = 2;
/// Subject of certificates that very old edges have; it is good for no node in particular, and therefore not for renewal.
const LEGACY: &str = "kubeedge.io";

/// Answers requests of joining nodes.
#[derive(Clone)]
pub struct Https {
    pub(super) kubernetes: Kubernetes,
    pub(super) material: Arc<Material>,
    pub(super) validity: Duration,
    pub(super) conversion: Webhook,
}

struct Refused {
    status: StatusCode,
    text: String,
}

impl Https {
    /// Answers one request. Only who knows the webhook's path may keep his connection, and with it one of the port's places.
    pub async fn handle(self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if request.uri().path() == self.conversion.path() {
            return self.conversion.handle(request).await;
        }
        let mut answer = self.join(request, peer).await;
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        answer
    }

    /// Answers those who join.
    async fn join(self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let get = request.method() == Method::GET;
        match path.as_str() {
            "/ca.crt" if get => {
                answer(StatusCode::OK, "application/octet-stream", self.material.ca.certificate().to_vec())
            }
            "/edge.crt" if get || request.method() == Method::POST => match self.issue(request, &peer).await {
                Ok(certificate) => answer(StatusCode::OK, "application/octet-stream", certificate),
                Err(refused) => {
                    warn!(peer = %peer.address, reason = refused.text, "no certificate was issued");
                    text(refused.status, refused.text)
                }
            },
            "/ca.crt" => not_allowed("GET"),
            "/edge.crt" => not_allowed("GET, POST"),
            path => match path.strip_prefix("/node/") {
                Some(node) if get => self.node(node).await,
                Some(_) => not_allowed("GET"),
                None => text(StatusCode::NOT_FOUND, "404: Page Not Found".to_owned()),
            },
        }
    }

    /// Whether a Node of this name exists; `keadm join` asks.
    async fn node(&self, node: &str) -> Response<Body> {
        if !is_node_name(node) {
            return text(StatusCode::NOT_FOUND, "Node not found".to_owned());
        }
        match self.kubernetes.get(&format!("/api/v1/nodes/{node}")).await {
            Ok(_) => text(StatusCode::OK, "Node founded".to_owned()),
            Err(error) if error.code() == 404 => text(StatusCode::NOT_FOUND, "Node not found".to_owned()),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "Failed to query node information".to_owned()),
        }
    }

    async fn issue(&self, request: Request<Incoming>, peer: &Peer) -> Result<Vec<u8>, Refused> {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let node = header("nodename").to_owned();
        if !is_node_name(&node) {
            return Err(unauthorized(
                &node,
                "the header NodeName must hold the node's name: lower-case letters, digits, '-' and '.'",
            ));
        }
        // A certificate that is shown decides, also when there is a token besides.
        let renewal = peer.certificate.is_some();
        match &peer.certificate {
            Some(certificate) => self.check_certificate(&node, certificate)?,
            None => self.check_token(&node, header("authorization"))?,
        }
        let usages: Vec<i64> = match header("extkeyusages") {
            "" => vec![CLIENT_AUTH],
            text => {
                serde_json::from_str(text).map_err(|error| failed(&node, &format!("header ExtKeyUsages: {error}")))?
            }
        };
        let request = Limited::new(body, MAX_REQUEST)
            .collect()
            .await
            .map_err(|_| failed(&node, "the request is too long or broke off"))?
            .to_bytes();
        let certificate = self
            .material
            .ca
            .sign_node(&request, &node, &usages, self.validity)
            .map_err(|error| failed(&node, &error.to_string()))?;
        info!(node, renewal, peer = %peer.address, "a certificate was issued");
        register::record(&self.kubernetes, &node, &request, &certificate, renewal).await;
        Ok(certificate.to_vec())
    }

    fn check_token(&self, node: &str, authorization: &str) -> Result<(), Refused> {
        // The scheme's name does not matter, as upstream has it.
        let mut words = authorization.split(' ');
        let (Some(_), Some(jwt), None) = (words.next(), words.next(), words.next()) else {
            return Err(unauthorized(
                node,
                "there is neither a client certificate nor a token in the header Authorization",
            ));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        token::verify(jwt, self.material.ca.key(), now).map_err(|error| unauthorized(node, &error.to_string()))
    }

    fn check_certificate(
        &self,
        node: &str,
        certificate: &link::rustls::pki_types::CertificateDer<'static>,
    ) -> Result<(), Refused> {
        let refuse = |error: IdentityError| unauthorized(node, &error.to_string());
        let identity = verify_client(self.material.ca.certificate(), certificate, SystemTime::now()).map_err(refuse)?;
        if identity.node() == Some(node) {
            return Ok(());
        }
        let why = if identity.common_name == LEGACY {
            "a certificate for all nodes renews for none: join again with a token".to_owned()
        } else {
            format!("the certificate is for {:?}", identity.common_name)
        };
        Err(unauthorized(node, &why))
    }
}

fn unauthorized(node: &str, why: &str) -> Refused {
    Refused { status: StatusCode::UNAUTHORIZED, text: format!("node {node:?} may not have a certificate: {why}") }
}

fn failed(node: &str, why: &str) -> Refused {
    Refused { status: StatusCode::INTERNAL_SERVER_ERROR, text: format!("no certificate for node {node:?}: {why}") }
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed".to_owned());
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text.into_bytes())
}

fn answer(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
