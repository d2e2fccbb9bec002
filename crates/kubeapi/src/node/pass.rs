//! Hands a request on to a node, and its answer back.

use std::time::Duration;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use link::http_server::Body;
use serde_json::Value;

use super::{Nodes, route};
use crate::api::{Api, ResourceRef};
use crate::http::target::Query;
use crate::{ApiError, http::MAX_BODY};

/// How long a node may take to begin its answer; a log that is followed may be silent for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest text of a refusal.
const MAX_REFUSAL: usize = 16 << 10;
/// How long the text of a refusal may take.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
/// A WebSocket of a browser may carry its token as a protocol of this name.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// By this header a node is found that shares its address with others.
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// What concerns one connection only, and what is said anew.
const NOT_PASSED: [HeaderName; 12] = [
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
    // It names a node to whom it is passed on: this API says that, no client.
    HeaderName::from_static("x-forwarded-uri"),
];

/// A request of a client that a node is to answer.
pub(crate) struct Call {
    pub method: Method,
    pub version: Version,
    pub headers: HeaderMap,
    /// As the client wrote it.
    pub path: String,
    /// As the client wrote it.
    pub query_text: String,
    pub query: Query,
    pub body: Incoming,
    pub upgrade: OnUpgrade,
}

/// Whether a node answers this.
pub(crate) fn is_handed_on(what: &ResourceRef) -> bool {
    let (plural, subresource) = (what.resource.plural.as_str(), what.subresource.as_str());
    what.resource.group.is_empty() && (matches!((plural, subresource), ("pods", "log")) || opens_streams(what))
}

/// Whether this leads into a node for more than reading: an upgrade of it needs the right to `create`, whatever its method
/// (Kubernetes 1.35).
pub(crate) fn opens_streams(what: &ResourceRef) -> bool {
    let (plural, subresource) = (what.resource.plural.as_str(), what.subresource.as_str());
    matches!((plural, subresource), ("pods", "exec" | "attach" | "portforward") | ("nodes", "proxy"))
}

/// Whether the client asks for another protocol.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}

/// Hands the request on.
///
/// # Errors
/// The request is not one that a node could answer, or the node refused; of the proxy of a node every answer is passed on.
pub(crate) async fn hand_on(
    api: &Api,
    nodes: &Nodes,
    what: &ResourceRef,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    match (what.resource.plural.as_str(), what.subresource.as_str()) {
        ("nodes", _) => proxy(api, nodes, what, call).await,
        (_, "log") => log(api, nodes, what, &call).await,
        _ => stream(api, nodes, what, call).await,
    }
}

async fn log(api: &Api, nodes: &Nodes, what: &ResourceRef, call: &Call) -> Result<Response<Body>, ApiError> {
    if call.method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let pod = api.get(what)?;
    let target = route::of_pod("log", &pod, &call.query)?;
    let patience = (!call.query.says("follow")).then_some(PATIENCE);
    let request = request(Method::GET, &target, HeaderMap::new(), empty())?;
    let answer = nodes.kubelets.ask(api, route::node_of(&pod)?, request, patience).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let mut passed = Response::new(answer.into_body());
    passed.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    passed.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(passed)
}

/// `exec`, `attach`, `portforward`: the upgrade is between client and node.
async fn stream(api: &Api, nodes: &Nodes, what: &ResourceRef, call: Call) -> Result<Response<Body>, ApiError> {
    if !matches!(call.method, Method::GET | Method::POST) {
        return Err(ApiError::method_not_allowed());
    }
    check_upgrade(&call, &format!("pods/{}", what.subresource))?;
    let pod = api.get(what)?;
    let target = route::of_pod(&what.subresource, &pod, &call.query)?;
    let mut request = request(call.method, &target, passed_on(&call.headers, true), empty())?;
    request.extensions_mut().insert(call.upgrade);
    let answer = nodes.kubelets.ask(api, route::node_of(&pod)?, request, Some(PATIENCE)).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    Ok(answer)
}

async fn proxy(api: &Api, nodes: &Nodes, what: &ResourceRef, call: Call) -> Result<Response<Body>, ApiError> {
    let upgrades = wants_upgrade(&call.headers);
    if upgrades {
        check_upgrade(&call, "nodes/proxy")?;
    }
    let node = node_and_port(api, &what.name)?;
    // `api/v1/nodes/NAME/proxy/REST`, with REST as the client wrote it.
    let rest = call.path.trim_start_matches('/').splitn(6, '/').nth(5).unwrap_or_default();
    let target = if call.query_text.is_empty() { format!("/{rest}") } else { format!("/{rest}?{}", call.query_text) };
    let body = if upgrades { empty() } else { bounded(&call.headers, call.body)? };
    let mut request = request(call.method, &target, passed_on(&call.headers, upgrades), body)?;
    say_node(&mut request, node, rest)?;
    if upgrades {
        request.extensions_mut().insert(call.upgrade);
    }
    let mut answer = nodes.kubelets.ask(api, node, request, Some(PATIENCE)).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let headers = answer.headers_mut();
        NOT_PASSED.iter().filter(|name| **name != header::CONTENT_LENGTH).for_each(|name| {
            headers.remove(name);
        });
    }
    Ok(answer)
}

/// A request about the node itself, which names it: several may share an address.
pub(super) fn about_node(node: &str, target: &str) -> Result<Request<Body>, ApiError> {
    let mut request = request(Method::GET, &format!("/{target}"), HeaderMap::new(), empty())?;
    let path = target.split('?').next().unwrap_or_default();
    say_node(&mut request, node, path)?;
    Ok(request)
}

fn say_node(request: &mut Request<Body>, node: &str, path: &str) -> Result<(), ApiError> {
    let uri = HeaderValue::from_str(&format!("/api/v1/nodes/{node}/proxy/{path}"));
    let uri = uri.map_err(|_| ApiError::bad_request("the path cannot stand in a header"))?;
    request.headers_mut().insert(FORWARDED_URI, uri);
    Ok(())
}

/// `NAME`, `NAME:PORT` or `https:NAME:PORT`; only the kubelet is behind the proxy of a node.
fn node_and_port<'a>(api: &Api, text: &'a str) -> Result<&'a str, ApiError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, node, port) = match parts.as_slice() {
        [node] => ("", *node, ""),
        [node, port] => ("", *node, *port),
        [scheme, node, port] => (*scheme, *node, *port),
        _ => return Err(ApiError::bad_request(format!("invalid node request \"{text}\""))),
    };
    let found = api.get(&api.reference("", "nodes", "", node)?)?;
    let own = &found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let is_own = port.is_empty() || own.as_u64().is_some_and(|own| port.parse() == Ok(own));
    if !matches!(scheme, "" | "https") || !is_own {
        return Err(ApiError::bad_request(format!(
            "\"{text}\": of a node only its kubelet can be reached, https at port {own}: leave scheme and port out"
        )));
    }
    Ok(node)
}

fn check_upgrade(call: &Call, what: &str) -> Result<(), ApiError> {
    if call.version != Version::HTTP_11 {
        let why = format!("{what} needs an upgrade of the connection, which {:?} has not: use HTTP/1.1", call.version);
        return Err(ApiError::bad_request(why));
    }
    if !wants_upgrade(&call.headers) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    Ok(())
}

fn request(method: Method, target: &str, headers: HeaderMap, body: Body) -> Result<Request<Body>, ApiError> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().map_err(|_| ApiError::bad_request("the path cannot be passed on"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn bounded(headers: &HeaderMap, body: Incoming) -> Result<Body, ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(ApiError::too_large(MAX_BODY));
    }
    Ok(Limited::new(body, MAX_BODY).boxed())
}

/// What a node gets to see of a client's headers: not who he is.
fn passed_on(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    let is_passed = |name: &HeaderName| {
        let text = name.as_str();
        !NOT_PASSED.contains(name) && !text.starts_with("impersonate-") && !text.starts_with("x-remote-")
    };
    let wanted = headers.iter().filter(|(name, _)| is_passed(name));
    let mut passed: HeaderMap = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
    if upgrades {
        passed.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = headers.get(header::UPGRADE) {
            passed.insert(header::UPGRADE, protocol.clone());
        }
    }
    let protocols: Vec<HeaderValue> = passed
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| without_token(value.to_str().ok()?))
        .collect();
    passed.remove(header::SEC_WEBSOCKET_PROTOCOL);
    protocols.into_iter().for_each(|value| {
        passed.append(header::SEC_WEBSOCKET_PROTOCOL, value);
    });
    passed
}

/// A list of protocols without those that are a token.
fn without_token(protocols: &str) -> Option<HeaderValue> {
    let kept: Vec<&str> =
        protocols.split(',').map(str::trim).filter(|protocol| !protocol.starts_with(BEARER_PROTOCOL)).collect();
    HeaderValue::from_str(&kept.join(", ")).ok().filter(|value| !value.is_empty())
}

/// What a node said instead of what was asked for.
pub(super) async fn refusal(answer: Response<Body>) -> ApiError {
    let status = answer.status();
    let read = tokio::time::timeout(REFUSAL_PATIENCE, read(answer.into_body(), MAX_REFUSAL)).await;
    let text = read.unwrap_or_else(|_| Err("too slow".to_owned())).unwrap_or_default();
    refused(status, &text)
}

/// Everything that a node says, up to a limit.
pub(super) async fn read(mut body: Body, limit: usize) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("it broke off: {error}"))?;
        let Some(data) = frame.data_ref() else { continue };
        if all.len() + data.len() > limit {
            return Err(format!("it is longer than {limit} bytes"));
        }
        all.extend_from_slice(data);
    }
    Ok(all)
}

fn refused(status: StatusCode, body: &[u8]) -> ApiError {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(object) if object["kind"] == "Status" => object["message"].as_str().unwrap_or_default().to_owned(),
        _ => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let text = if text.is_empty() { format!("the node answered {status}, without a reason") } else { text };
    match status.as_u16() {
        // It is this server whom the node does not trust; the client has shown who he is.
        401 | 403 => ApiError::of_status(500, format!("the node does not serve the API server: {text}")),
        code @ 400.. => ApiError::of_status(code, text),
        _ => ApiError::of_status(500, format!("the node answered {status} where it should have changed protocols")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_not_told_who_asks() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer t"),
            ("impersonate-user", "bob"),
            ("x-remote-user", "bob"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("host", "api:6443"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dA"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.dA"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let told = |upgrades| {
            let passed = passed_on(&headers, upgrades);
            let mut told: Vec<String> =
                passed.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
            told.sort();
            told
        };
        let kept = [
            "sec-websocket-key: k",
            "sec-websocket-protocol: v5.channel.k8s.io",
            "x-stream-protocol-version: v4.channel.k8s.io",
            "x-stream-protocol-version: v5.channel.k8s.io",
        ];
        assert_eq!(told(false), kept);
        let mut all = vec!["connection: Upgrade", "upgrade: websocket"];
        all.extend(kept);
        all.sort_unstable();
        assert_eq!(told(true), all);
    }

    #[test]
    fn refusals_keep_the_nodes_words() {
        let said = |code: u16, text: &str| {
            let error = refused(StatusCode::from_u16(code).expect("a status"), text.as_bytes());
            (error.code, error.reason, error.message)
        };
        assert_eq!(said(404, "pod not found\n"), (404, "NotFound", "pod not found".to_owned()));
        let status = r#"{"kind": "Status", "message": "node edge-1 is not connected", "code": 503}"#;
        assert_eq!(said(503, status), (503, "ServiceUnavailable", "node edge-1 is not connected".to_owned()));
        assert_eq!(said(500, "").1, "InternalError");
        assert_eq!(said(401, "no").0, 500);
        assert_eq!(said(200, "fine").0, 500);
    }
}
