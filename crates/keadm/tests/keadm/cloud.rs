//! The parts of a cloud that keadm asks: the certificate endpoint, the message channel's port, and the Kubernetes API.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use link::ca::CertificateAuthority;
use link::http_server::HttpServer;
use link::tls::{Certificate, ClientAuth, server};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What `/node/{name}` answers.
#[derive(Clone, Copy)]
pub struct NodeAnswer(pub u16, pub &'static str);

/// Answered by cloudcore when there is no such Node.
pub const FREE: NodeAnswer = NodeAnswer(404, "Node not found");

/// A certificate endpoint and a listening message channel.
pub struct Cloud {
    pub ca: CertificateAuthority,
    https: SocketAddr,
    channel: TcpListener,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Cloud {
    pub async fn start(node: NodeAnswer) -> Self {
        Self::start_for(node, "127.0.0.1").await
    }

    /// With a server certificate for this host.
    pub async fn start_for(node: NodeAnswer, host: &str) -> Self {
        let ca = CertificateAuthority::generate().expect("CA");
        let issued = ca.issue_server("KubeEdge", "KubeEdge", &[host.to_owned()]).expect("certificate");
        let own = Certificate { certificate: issued.certificate, key: issued.key };
        let tls = server(&own, ClientAuth::Requested, &[b"http/1.1"]).expect("TLS");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (log, certificate) = (asked.clone(), ca.certificate().to_vec());
        let (https, _tasks) = serve(Some(tls), move |path| {
            log.lock().expect("log").push(path.to_owned());
            match path {
                "/ca.crt" => (200, certificate.clone()),
                path if path.starts_with("/node/") => (node.0, node.1.into()),
                _ => (404, b"404: Page Not Found".to_vec()),
            }
        })
        .await;
        let channel = TcpListener::bind("127.0.0.1:0").await.expect("port");
        Self { ca, https, channel, asked, _tasks }
    }

    pub fn token(&self) -> String {
        link::token::mint(self.ca.certificate(), self.ca.key(), 1 << 40)
    }

    /// The flags of a join with this cloud.
    pub fn flags(&self) -> Vec<String> {
        let channel = self.channel.local_addr().expect("address");
        vec![format!("--cloudcore-ipport={channel}"), format!("--certport={}", self.https.port())]
    }

    pub fn channel(&self) -> String {
        self.channel.local_addr().expect("address").to_string()
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("log").clone()
    }
}

/// Serves every request by its path; HTTP without TLS when there is none.
pub async fn serve(
    tls: Option<Arc<link::rustls::ServerConfig>>,
    answer: impl Fn(&str) -> (u16, Vec<u8>) + Clone + Send + Sync + 'static,
) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (_keep, tls) = match tls {
            Some(tls) => {
                let (keep, tls) = tokio::sync::watch::channel(tls);
                (Some(keep), Some(tls))
            }
            None => (None, None),
        };
        let handler = move |request: http::Request<_>, _| {
            let (status, body) = answer(request.uri().path());
            async move {
                let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
                let mut response = Response::new(body);
                *response.status_mut() = http::StatusCode::from_u16(status).expect("status");
                response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
                response
            }
        };
        HttpServer { listener, tls, max_connections: 10, max_streams: link::http_server::MAX_STREAMS }
            .serve(handler, CancellationToken::new())
            .await;
    });
    (address, tasks)
}
