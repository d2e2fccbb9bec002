//! TCP to a server, by way of an HTTP proxy where the environment names one (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, as curl reads
//! them). What is on this machine is reached directly.

use std::io;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Request, Uri};
use http_body_util::Empty;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Connects to this host and port.
///
/// # Errors
/// Server or proxy cannot be reached, or the proxy refuses; the text says which.
pub async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = match proxy(&Matcher::from_env(), host, port) {
        Some(proxy) => through(&proxy, host, port).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    // A delay costs more than a packet.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn proxy(matcher: &Matcher, host: &str, port: u16) -> Option<Intercept> {
    let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let uri: Uri = format!("https://{}", authority(host, port)).parse().ok()?;
    matcher.intercept(&uri).filter(|_| !is_here)
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn through(proxy: &Intercept, host: &str, port: u16) -> io::Result<TcpStream> {
    let uri = proxy.uri();
    // It may hold a password.
    let name = authority(uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let failed = |why: String| io::Error::other(format!("HTTP proxy {name}: {why}"));
    if uri.scheme_str() != Some("http") {
        return Err(failed("only proxies of the form http://host:port are supported".to_owned()));
    }
    let address = (uri.host().unwrap_or_default().trim_matches(['[', ']']), uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    let target = authority(host, port);
    let mut request = Request::connect(&target).header(HOST, &target);
    if let Some(credentials) = proxy.basic_auth() {
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("it answered {} to CONNECT {target}", answer.status())));
        }
        hyper::upgrade::on(answer).await.map_err(|error| failed(error.to_string()))
    };
    tokio::pin!(exchange);
    let upgraded = tokio::select! {
        upgraded = &mut exchange => upgraded?,
        // It moves the exchange on, and ends with the upgrade or an error that the exchange tells better.
        _ = connection.with_upgrades() => exchange.await?,
    };
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| failed("it is no TCP connection".to_owned()))?;
    match parts.read_buf.is_empty() {
        true => Ok(parts.io.into_inner()),
        // In TLS the client speaks first.
        false => Err(failed("something was sent before TLS began".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn matcher(proxy: &str) -> Matcher {
        Matcher::builder().https(proxy).no("inside.example").build()
    }

    #[test]
    fn what_is_near_needs_no_proxy() {
        let matcher = matcher("http://user:secret@proxy.example:3128");
        for (host, proxied) in [
            ("cloud.example", true),
            ("192.0.2.7", true),
            ("2001:db8::1", true),
            ("inside.example", false),
            ("localhost", false),
            ("127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(proxy(&matcher, host, 10000).is_some(), proxied, "{host}");
        }
    }

    /// A proxy that gives this answer; what it was asked, and what was said after that.
    async fn exchange(answer: &'static str) -> (io::Result<TcpStream>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let matcher = matcher(&format!("http://user:secret@{}", listener.local_addr().expect("address")));
        let proxy = proxy(&matcher, "cloud.example", 10000).expect("proxy");
        let serving = async {
            let (mut client, _) = listener.accept().await.expect("client");
            let mut request = vec![0; 1024];
            let count = client.read(&mut request).await.expect("request");
            client.write_all(answer.as_bytes()).await.expect("answer");
            request.truncate(count);
            (client, String::from_utf8(request).expect("text"))
        };
        let (reached, (mut client, request)) = tokio::join!(through(&proxy, "cloud.example", 10000), serving);
        if reached.is_ok() {
            client.write_all(b"x").await.expect("written");
        }
        (reached, request)
    }

    #[tokio::test]
    async fn the_proxy_connects() {
        let (reached, request) = exchange("HTTP/1.1 200 Connection established\r\n\r\n").await;
        assert!(request.starts_with("CONNECT cloud.example:10000 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("proxy-authorization: Basic dXNlcjpzZWNyZXQ="), "{request}");
        assert_eq!(reached.expect("connected").read_u8().await.expect("a byte"), b'x');
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_without_its_password() {
        let (reached, _) = exchange("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        let error = reached.expect_err("refused").to_string();
        assert!(error.contains("407") && error.contains("127.0.0.1") && !error.contains("secret"), "{error}");
    }
}
