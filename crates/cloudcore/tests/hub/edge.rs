//! Stand-in for our own edge at the other end of a stream tunnel, a node with a pod, and a client of the stream server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use cloudcore::Addresses;
use futures_util::SinkExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper_util::rt::TokioIo;
use link::frames::{self, Frames};
use link::http_server::Body;
use link::resume::{Handle, Id, Resumable, Resume};
use link::tunnel::{self, Io};
use link::ws::Target;
use serde_json::json;
use testkit::go_edge::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::cloud::{Cloud, SOON};

/// Of the edgecore that opens tunnels.
pub const PROCESS: &str = "11111111111111111111111111111111";

/// A tunnel as edgecore opens it.
pub async fn open(cloud: &Cloud, credentials: &Credentials, node: &str, ours: bool) -> Result<Frames<Io>> {
    Ok(connect(cloud.addresses(), credentials, node, ours, None).await?.0)
}

/// The same to this cloudcore, to go on with a tunnel or for another one; also gives the answer's headers.
pub async fn connect(
    addresses: Addresses,
    credentials: &Credentials,
    node: &str,
    ours: bool,
    resume: Option<Resume>,
) -> Result<(Frames<Io>, HeaderMap)> {
    let (_, tunnel) = addresses.streams.context("no streams")?;
    let mut headers = vec![("sessionhostnameoverride", node.to_owned()), ("sessioninternalip", "192.0.2.7".to_owned())];
    headers.push(("x-ferroedge-process", PROCESS.to_owned()));
    if ours {
        headers.push((tunnel::FEATURES, tunnel::HTTP2.to_owned()));
    }
    headers.extend(resume.map(|resume| (tunnel::RESUME, resume.to_string())));
    let target = Target {
        url: format!("wss://{tunnel}{}", tunnel::PATH),
        headers,
        tls: link::tls::client(&credentials.ca, Some(&credentials.own))?,
        connect_deadline: SOON,
        write_deadline: SOON,
    };
    let (frames, answer) = tunnel::connect(&target).await?;
    ensure!(tunnel::has_http2(&answer) == ours);
    Ok((frames, answer))
}

/// An edge of ours: it answers logs with their path, and streams with what comes in.
pub async fn own_edge(
    cloud: &Cloud,
    credentials: &Credentials,
    node: &str,
    open_streams: Arc<AtomicUsize>,
) -> Result<JoinSet<()>> {
    Ok(resumable_edge(cloud.addresses(), credentials, node, open_streams).await?.0)
}

/// The same to this cloudcore, with what its tunnel is resumed by.
pub async fn resumable_edge(
    addresses: Addresses,
    credentials: &Credentials,
    node: &str,
    open_streams: Arc<AtomicUsize>,
) -> Result<(JoinSet<()>, Id, Handle<Io>)> {
    let (frames, headers) = connect(addresses, credentials, node, true, None).await?;
    let (bytes, handle) = Resumable::new(frames);
    let service = hyper::service::service_fn(move |request| answer(request, open_streams.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = tunnel::server().serve_connection(TokioIo::new(bytes), service).await;
    });
    Ok((tasks, tunnel::name(&headers).context("the tunnel has no name")?, handle))
}

async fn answer(mut request: Request<Incoming>, open: Arc<AtomicUsize>) -> Result<Response<Body>> {
    let full = |text: String| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if request.method() == Method::CONNECT {
        let protocol = request.extensions().get::<hyper::ext::Protocol>().context("no protocol")?.as_str().to_owned();
        let is_socket = protocol == "websocket";
        if target.contains("missing") {
            return Ok(Response::builder().status(404).body(full("container not found\n".into()))?);
        }
        let upgrade = hyper::upgrade::on(&mut request);
        open.fetch_add(1, Ordering::SeqCst);
        #[allow(clippy::disallowed_methods, reason = "a stand-in: it ends with its stream")]
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                if is_socket {
                    let _ = command(TokioIo::new(upgraded)).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                let mut io = TokioIo::new(upgraded);
                let mut buffer = [0; 1 << 10];
                while let Ok(read @ 1..) = io.read(&mut buffer).await {
                    if io.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
        let mut answer = Response::builder().header("x-stream-protocol-version", protocol);
        if let Some(offered) = request.headers().get("sec-websocket-protocol").filter(|_| target.contains("command=")) {
            answer = answer.header("sec-websocket-protocol", offered);
        }
        return Ok(answer.body(full(String::new()))?);
    }
    if target.contains("follow=true") {
        open.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(open);
        let endless = futures_util::stream::repeat_with(move || {
            let _ = &counted;
            Ok(BodyFrame::data(Bytes::from(vec![b'x'; 1 << 14])))
        });
        return Ok(Response::new(BodyExt::boxed(StreamBody::new(endless))));
    }
    if target.contains("missing") {
        return Ok(Response::builder().status(404).body(full("container not found\n".into()))?);
    }
    Ok(Response::new(full(target)))
}

/// A stream that is open.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A process whose errors are the sizes of its terminal, and whose output is its input; at the end of that it exits with 3.
async fn command(io: Io) -> Result<()> {
    let mut frames = Frames::new(io, frames::Side::Server);
    let message = |channel: u8, content: &[u8]| frames::Frame::binary([&[channel], content].concat());
    frames.send(message(1, b"")).await?;
    while let Some((_, bytes)) = frames::message(&mut frames).await? {
        match *bytes {
            [0, ref content @ ..] => frames.send(message(1, content)).await?,
            [4, ref size @ ..] => frames.send(message(2, size)).await?,
            [255, 0] => {
                let status = json!({
                    "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with exit code 3",
                    "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
                });
                return Ok(frames.send(message(3, status.to_string().as_bytes())).await?);
            }
            _ => bail!("{bytes:?} is not for an edge"),
        }
    }
    Ok(())
}

/// A client of the stream server.
pub struct Client {
    pub address: SocketAddr,
    pub tls: Arc<link::rustls::ClientConfig>,
    pub token: String,
}

impl Client {
    pub async fn new(cloud: &Cloud) -> Result<Self> {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "asker", "namespace": "default"}});
        cloud.create("/api/v1/namespaces/default/serviceaccounts", &account).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "asker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "asker", "namespace": "default"}],
        });
        cloud.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
        Self::of(cloud, "asker").await
    }

    /// One with the token of this ServiceAccount.
    pub async fn of(cloud: &Cloud, account: &str) -> Result<Self> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{account}/token");
        let token = cloud.create(&path, &review).await?["status"]["token"].as_str().context("no token")?.to_owned();
        let (address, _) = cloud.addresses().streams.context("no streams")?;
        let ca = cloud.secret("casecret", "cadata").await?;
        Ok(Self { address, tls: link::tls::client(&ca.into(), None)?, token })
    }

    /// Asks; the answer's body is still to be read.
    pub async fn ask(
        &self,
        tasks: &mut JoinSet<()>,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>> {
        let tcp = tokio::net::TcpStream::connect(self.address).await?;
        let name = self.address.ip().into();
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tasks.spawn(async move { drop(connection.with_upgrades().await) });
        let mut request = Request::get(target).header(header::HOST, "192.0.2.7:10003");
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(tokio::time::timeout(SOON, sender.send_request(request.body(Empty::<Bytes>::new())?)).await??)
    }

    pub async fn text(&self, target: &str, headers: &[(&str, &str)]) -> Result<(StatusCode, String)> {
        let mut tasks = JoinSet::new();
        let answer = self.ask(&mut tasks, target, headers).await?;
        let status = answer.status();
        let body = tokio::time::timeout(SOON, answer.into_body().collect()).await??.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// A node, and a pod on it.
pub async fn node_with_pod(cloud: &Cloud, node: &str, pod: &str) -> Result<Credentials> {
    let credentials = cloud.register(node).await?;
    cloud.create("/api/v1/nodes", &json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}}},
    })).await?;
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "i"}]},
    });
    cloud.create("/api/v1/namespaces/default/pods", &object).await?;
    Ok(credentials)
}
