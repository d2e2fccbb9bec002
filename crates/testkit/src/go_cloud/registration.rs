//! The certificate endpoint: `/ca.crt` and `/edge.crt` with upstream's decisions and words.

use std::convert::identity;
use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use link::ca::CertificateAuthority;
use link::http_server::{Body, HttpServer, MAX_STREAMS, Peer};
use link::identity::{IdentityError, NODE_PREFIX, verify_client};
use link::tls::{Certificate, ClientAuth, server};
use link::token::{self, TokenError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{HttpRequest, Shared};

const MAX_CONNECTIONS: usize = 64;

pub(super) fn serve(
    listener: TcpListener,
    own: &Certificate,
    authority: Arc<CertificateAuthority>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let (keep, tls) = watch::channel(server(own, ClientAuth::Requested, &[b"h2", b"http/1.1"])?);
    let http = HttpServer { listener, tls: Some(tls), max_connections: MAX_CONNECTIONS, max_streams: MAX_STREAMS };
    Ok(async move {
        let answer = move |request: Request<Incoming>, peer: Peer| {
            let (authority, shared) = (authority.clone(), shared.clone());
            async move { answer(request, peer, &authority, &shared).await }
        };
        http.serve(answer, stop).await;
        drop(keep);
    })
}

async fn answer(
    request: Request<Incoming>,
    peer: Peer,
    authority: &CertificateAuthority,
    shared: &Shared,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let node = header(&head.headers, "nodename");
    let (status, body) = match path.as_str() {
        "/ca.crt" | "/edge.crt" if head.method != "GET" => (405, b"405: Method Not Allowed".to_vec()),
        "/ca.crt" => (200, authority.certificate().to_vec()),
        "/edge.crt" => {
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            issue(&head.headers, &node, &peer, &body, authority, shared).unwrap_or_else(identity)
        }
        _ => (404, b"404: Page Not Found".to_vec()),
    };
    let with_certificate = peer.certificate.is_some();
    shared.change(|state| state.requests.push(HttpRequest { path, node, with_certificate, status }));
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    if let Ok(status) = status.try_into() {
        *answer.status_mut() = status;
    }
    answer
}

type Reply = (u16, Vec<u8>);

/// Any refusal is an `Err`.
fn issue(
    headers: &HeaderMap,
    node: &str,
    peer: &Peer,
    request: &[u8],
    authority: &CertificateAuthority,
    shared: &Shared,
) -> Result<Reply, Reply> {
    let refused = |text: String| (401, text.into_bytes());
    if let Some(certificate) = &peer.certificate {
        let holder = verify_client(authority.certificate(), certificate, SystemTime::now()).map_err(|error| {
            let cause = match error {
                IdentityError::Expired(_) => "x509: certificate has expired or is not yet valid",
                _ => "x509: certificate signed by unknown authority",
            };
            refused(format!(
                "failed to verify the certificate for edgenode: {node}, err: failed to verify edge certificate: {cause}"
            ))
        })?;
        if holder.common_name != format!("{NODE_PREFIX}{node}") {
            return Err(refused(format!(
                "failed to verify the certificate for edgenode: {node}, err: request node name is not match with the certificate"
            )));
        }
    } else {
        check_token(&header(headers, "authorization"), authority)
            .map_err(|cause| refused(format!("token validation failure, {cause}")))?;
    }
    let life = shared.state().certificate_life();
    let failed = |error: link::ca::CaError| {
        (500, format!("failed to sign certs for edgenode {node}, err: fail to signCerts, err: {error}").into_bytes())
    };
    let signed = authority.sign_node(request, node, &[2], life).map_err(failed)?;
    Ok((200, signed.to_vec()))
}

fn check_token(authorization: &str, authority: &CertificateAuthority) -> Result<(), &'static str> {
    if authorization.is_empty() {
        return Err("token is empty");
    }
    let parts: Vec<&str> = authorization.split(' ').collect();
    let &[_, jwt] = parts.as_slice() else { return Err("token cannot be split") };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    token::verify(jwt, authority.key(), now).map_err(|error| match error {
        TokenError::Malformed => "err: token is malformed: token contains an invalid number of segments",
        TokenError::WrongSignature => "err: token signature is invalid: signature is invalid",
        TokenError::Expired => "err: token has invalid claims: token is expired",
        TokenError::NotYet => "err: token has invalid claims: token is not valid yet",
    })
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
