//! A GET as probes and hooks send it: no proxy, no keep-alive, certificates not verified, a bounded answer, redirects
//! followed as long as they stay on the host. Texts of errors are those of Go's client, which users know from events.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Uri,
    body::Bytes,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;
use podlife::probe::HttpGet;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

/// Longest part of an answer's body that is read.
const MAX_BODY: usize = 10 << 10;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// The start of the body.
    pub body: String,
    location: Option<String>,
}

/// A GET without an answer.
#[derive(Debug, thiserror::Error)]
#[error("Get \"{url}\": {cause}")]
pub struct GetError {
    url: String,
    cause: Cause,
}

impl GetError {
    /// The server does not speak TLS.
    pub fn is_plain_server(&self) -> bool {
        matches!(self.cause, Cause::PlainServer)
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("{0}")]
    Dial(String),
    #[error("http: server gave HTTP response to HTTPS client")]
    PlainServer,
    #[error("tls: {0}")]
    Tls(String),
    #[error("EOF")]
    Eof,
    #[error("{0}")]
    Exchange(String),
    #[error("failed to parse Location header {0:?}")]
    Location(String),
    #[error("stopped after {MAX_REDIRECTS} redirects")]
    Redirects,
}

/// Sends the request to its own host or else to `address`. Has no time limit of its own.
///
/// # Errors
/// There is no answer: nobody listens, the connection breaks, redirects do not end.
pub async fn get(get: &HttpGet, address: &str, user_agent: &str) -> Result<Reply, GetError> {
    let host = get.host.clone().unwrap_or_else(|| address.to_owned());
    let mut target = Target { https: get.https, host, port: get.port, path: escape(&get.path), keeps_host: true };
    let first = target.clone();
    for _ in 0..=MAX_REDIRECTS {
        let failed = |cause| GetError { url: target.to_string(), cause };
        let headers = headers(&get.headers, &target, user_agent).map_err(failed)?;
        let reply = target.exchange(headers).await.map_err(failed)?;
        let redirect = matches!(reply.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = reply.location.as_deref().filter(|_| redirect) else { return Ok(reply) };
        let next = target.join(location).ok_or_else(|| failed(Cause::Location(location.to_owned())))?;
        if next.host != first.host {
            return Ok(reply);
        }
        target = next;
    }
    Err(GetError { url: target.to_string(), cause: Cause::Redirects })
}

/// The address and port as connections are told: IPv6 in brackets.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The words of Go for a connection that was not made.
pub fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let cause = match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {cause}", join_host_port(host, port))
}

/// Where a request goes.
#[derive(Clone)]
struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    /// A `Host` header of the probe applies: not after a redirect that names its host.
    keeps_host: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", join_host_port(&self.host, self.port), self.path)
    }
}

impl Target {
    /// Follows a `Location`; `None` when it cannot be understood.
    fn join(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let absolute = if location.starts_with("//") {
            Some(format!("{}:{location}", if self.https { "https" } else { "http" }))
        } else {
            location.contains("://").then(|| location.to_owned())
        };
        if let Some(absolute) = absolute {
            let uri: Uri = escape(&absolute).parse().ok()?;
            let https = match uri.scheme_str()? {
                "http" => false,
                "https" => true,
                _ => return None,
            };
            return Some(Self {
                https,
                host: uri.host()?.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
                path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
                keeps_host: false,
            });
        }
        let own = self.path.split('?').next().unwrap_or_default();
        let path = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{own}{location}"),
            _ => format!("{}/{location}", own.rsplit_once('/').map_or("", |(directory, _)| directory)),
        };
        Some(Self { path: escape(&path), ..self.clone() })
    }

    async fn exchange(&self, headers: HeaderMap) -> Result<Reply, Cause> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| Cause::Dial(dial_error(&self.host, self.port, &error)))?;
        let stream: Box<dyn Stream> = if self.https { Box::new(self.encrypt(stream).await?) } else { Box::new(stream) };
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.path.parse().map_err(|_| Cause::Exchange("invalid path".into()))?;
        *request.headers_mut() = headers;
        let connecting =
            hyper::client::conn::http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream));
        let (mut sender, connection) = connecting.await.map_err(exchange_error)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(exchange_error)?;
            let status = response.status().as_u16();
            let location = response.headers().get(header::LOCATION);
            let location = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            let (mut body, mut read) = (response.into_body(), Vec::new());
            while read.len() < MAX_BODY
                && let Some(frame) = body.frame().await
            {
                read.extend_from_slice(frame.map_err(exchange_error)?.data_ref().map_or(&[], |data| data));
            }
            read.truncate(MAX_BODY);
            Ok(Reply { status, body: String::from_utf8_lossy(&read).into_owned(), location })
        };
        // The answer fails by itself when the connection breaks, and may be there after the connection has ended.
        let drive = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            reply = answer => reply,
            () = drive => Err(Cause::Eof),
        }
    }

    async fn encrypt(&self, stream: TcpStream) -> Result<impl Stream + use<>, Cause> {
        static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
        let config = CONFIG.get_or_init(|| link::tls::client_without_verification().ok());
        let config = config.clone().ok_or_else(|| Cause::Tls("no TLS on this machine".into()))?;
        let address = stream.peer_addr().map_err(|error| Cause::Tls(error.to_string()))?.ip();
        let name = ServerName::try_from(self.host.clone()).unwrap_or_else(|_| ServerName::from(address));
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
            let invalid = error.to_string().contains("InvalidContentType");
            if invalid { Cause::PlainServer } else { Cause::Tls(error.to_string()) }
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn exchange_error(error: hyper::Error) -> Cause {
    if error.is_incomplete_message() || error.is_canceled() {
        return Cause::Eof;
    }
    Cause::Exchange(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
}

/// The probe's own headers win; an empty `User-Agent` or `Accept` leaves that header out.
fn headers(own: &[HTTPHeader], target: &Target, user_agent: &str) -> Result<HeaderMap, Cause> {
    let mut headers = HeaderMap::new();
    for HTTPHeader { name, value } in own {
        let invalid = |what| Cause::Exchange(format!("net/http: invalid header field {what} {name:?}"));
        let key = HeaderName::try_from(name.as_str()).map_err(|_| invalid("name"))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| invalid("value for"))?;
        headers.append(key, value);
    }
    let host = join_host_port(&target.host, target.port);
    for (name, default) in [(header::USER_AGENT, user_agent), (header::ACCEPT, "*/*"), (header::HOST, &host)] {
        match headers.get(&name) {
            Some(value) if value.is_empty() && name != header::HOST => drop(headers.remove(&name)),
            Some(value) if !value.is_empty() && (name != header::HOST || target.keeps_host) => {}
            _ => {
                let default = HeaderValue::try_from(default);
                headers.insert(name, default.map_err(|_| Cause::Exchange("invalid host".into()))?);
            }
        }
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

/// Escapes what may not stand in a URL.
fn escape(path: &str) -> String {
    path.bytes().fold(String::with_capacity(path.len()), |mut escaped, byte| {
        if byte.is_ascii_graphic() && !br#""<>\^`{|}"#.contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        Target { https: false, host: "10.0.0.1".into(), port: 8080, path: path.into(), keeps_host: true }
    }

    #[test]
    fn locations() {
        for (location, expected) in [
            ("/b?x=1#part", "http://10.0.0.1:8080/b?x=1"),
            ("c", "http://10.0.0.1:8080/dir/c"),
            ("?y", "http://10.0.0.1:8080/dir/a?y"),
            ("https://10.0.0.1/z", "https://10.0.0.1:443/z"),
            ("//other:81", "http://other:81/"),
            ("http://[::1]:9/", "http://[::1]:9/"),
            ("/a b", "http://10.0.0.1:8080/a%20b"),
        ] {
            assert_eq!(target("/dir/a?q").join(location).unwrap().to_string(), expected, "{location}");
        }
        assert!(target("/").join("ftp://10.0.0.1/").is_none());
    }

    #[test]
    fn own_headers_win_and_empty_ones_remove() {
        let header = |name: &str, value: &str| HTTPHeader { name: name.into(), value: value.into() };
        let own = [header("host", "shop.example"), header("Accept", ""), header("X-A", "1"), header("X-A", "2")];
        let map = headers(&own, &target("/"), "kube-probe/1.32").unwrap();
        assert_eq!(map["host"], "shop.example");
        assert_eq!(map["user-agent"], "kube-probe/1.32");
        assert!(!map.contains_key("accept"));
        assert_eq!(map.get_all("x-a").iter().count(), 2);
        let error = headers(&[header("a b", "")], &target("/"), "").unwrap_err();
        assert_eq!(error.to_string(), "net/http: invalid header field name \"a b\"");
    }
}
