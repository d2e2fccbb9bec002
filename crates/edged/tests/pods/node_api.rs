//! A client of the node's API.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use edged::api::{DevicePages, DeviceQuestion};
use edged::streams::dial::{self, DialError, Io};
use http::{HeaderMap, HeaderName, HeaderValue, Request, response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::cloud::Cloud;

/// For an answer of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API of a node, with its token.
#[derive(Clone)]
pub struct NodeApi {
    pub address: SocketAddr,
    pub token: String,
}

/// An answer whose body comes in pieces.
pub struct Answer {
    pub head: response::Parts,
    pub body: Incoming,
    _connection: JoinSet<()>,
}

/// Answers with the question, and knows no device that is called nobody.
pub fn devices() -> DevicePages {
    std::sync::Arc::new(|question: &DeviceQuestion| match question {
        DeviceQuestion::Twin(device) if device.name == "nobody" => {
            Err(Box::new(wire::Status::failure(404, "NotFound", "no device nobody is on this node")))
        }
        question => Ok(serde_json::json!({"question": format!("{question:?}")})),
    })
}

impl NodeApi {
    /// Finds the port where everybody does, in the node's status, and the token in its file.
    pub async fn find(cloud: &Cloud, root_dir: &Path) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let file = root_dir.join("pki/api-token");
        loop {
            let log = cloud.log();
            let port = log.iter().find_map(|(_, resource, content)| {
                let node = resource.contains("/node").then(|| match content.as_str() {
                    Some(text) => serde_json::from_str(text).unwrap_or_default(),
                    None => content.clone(),
                })?;
                node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()
            });
            if let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|_| file.is_file()) {
                return Self { address: ([127, 0, 0, 1], port).into(), token: std::fs::read_to_string(file).unwrap() };
            }
            assert!(Instant::now() < deadline, "no port in the node's status: {log:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Asks; the body is read by the caller.
    pub async fn ask(&self, method: &str, path: &str) -> Answer {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("authorization", format!("Bearer {}", self.token));
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let (head, body) = timeout(PATIENCE, answer).await.expect("an answer").unwrap().into_parts();
        Answer { head, body, _connection: tasks }
    }

    /// Asks and reads the whole answer.
    pub async fn request(&self, method: &str, path: &str) -> (u16, String) {
        let mut answer = self.ask(method, path).await;
        let mut text = Vec::new();
        while let Some(piece) = answer.piece().await {
            text.extend_from_slice(&piece);
        }
        (answer.head.status.as_u16(), String::from_utf8(text).unwrap())
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path).await
    }

    /// A successful answer.
    pub async fn text(&self, path: &str) -> String {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path).await).unwrap()
    }

    /// Upgrades; a refusal is a status and a text.
    pub async fn upgrade(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(HeaderMap, Io), (u16, String)> {
        let token = format!("Bearer {}", self.token);
        let headers = headers.iter().copied().chain([("authorization", token.as_str())]);
        let headers =
            headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        let url = format!("http://{}{path}", self.address);
        match dial::dial(&url, headers.collect()).await {
            Ok((head, io)) => Ok((head.headers, io)),
            Err(DialError::Refused { status, text }) => Err((status.as_u16(), text)),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub async fn piece(&mut self) -> Option<Bytes> {
        let frame = timeout(PATIENCE, self.body.frame()).await.expect("a piece or the end")?;
        Some(frame.unwrap().into_data().unwrap_or_default())
    }

    /// Reads until the text holds; what was read so far.
    pub async fn until(&mut self, text: &mut String, what: &str, holds: impl Fn(&str) -> bool) {
        while !holds(text) {
            let Some(piece) = self.piece().await else { panic!("ended before {what}: {text}") };
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}
