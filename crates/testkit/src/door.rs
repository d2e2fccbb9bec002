//! HTTP/1.1 to the Kubernetes API with the administrator's certificate, or to a node's own API with its token: the same requests for streams by the
//! long way and by the short one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use link::frames::{Frames, Side};
use link::tunnel::Io;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::deployment::{Cluster, Deployment, node_name};

/// Where the same log can be read.
#[derive(Clone)]
pub struct Door {
    address: String,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    token: Option<String>,
}

/// One connection.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    address: String,
    token: Option<String>,
    /// What moves it on; it ends with this.
    _driver: JoinSet<()>,
}

impl Door {
    /// The Kubernetes API.
    ///
    /// # Errors
    /// Its kubeconfig cannot be used.
    pub fn of_api(cluster: &Cluster) -> Result<Self> {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(cluster.kubeconfig())?)?;
        let (of_cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |part: &Value, key: &str| -> Result<Vec<u8>> {
            Ok(STANDARD.decode(part[key].as_str().with_context(|| format!("kubeconfig without {key}"))?)?)
        };
        let ca = CertificateDer::from_pem_slice(&pem(of_cluster, "certificate-authority-data")?)?;
        let certificate = CertificateDer::from_pem_slice(&pem(user, "client-certificate-data")?)?;
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&pem(user, "client-key-data")?)?;
        let own = link::tls::Certificate { certificate, key: key.secret_der().to_vec() };
        let server = of_cluster["server"].as_str().context("kubeconfig without a server")?;
        let address = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned();
        let tls = Some((link::tls::client(&ca, Some(&own))?, ServerName::try_from(host)?));
        Ok(Self { address, tls, token: None })
    }

    /// cloudcore's metrics.
    ///
    /// # Errors
    /// Its port is not known.
    pub fn of_monitor(deployment: &Deployment) -> Result<Self> {
        let address = format!("127.0.0.1:{}", deployment.layout.ports()?.monitor);
        Ok(Self { address, tls: None, token: None })
    }

    /// The API of the first node.
    ///
    /// # Errors
    /// Its configuration or token cannot be read.
    pub fn of_node(deployment: &Deployment) -> Result<Self> {
        let config = read_config(deployment)?;
        let edged = &config["modules"]["edged"];
        let port = &edged["tailoredKubeletConfig"]["readOnlyPort"];
        let root = edged["rootDirectory"].as_str().context("edgecore.yaml without modules.edged.rootDirectory")?;
        let file = PathBuf::from(root).join("pki/api-token");
        let token = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(Self { address: format!("127.0.0.1:{port}"), tls: None, token: Some(token.trim().to_owned()) })
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody is there.
    pub async fn open(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(&self.address).await.with_context(|| self.address.clone())?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => self.over(tcp).await,
            Some((tls, name)) => {
                self.over(tokio_rustls::TlsConnector::from(tls.clone()).connect(name.clone(), tcp).await?).await
            }
        }
    }

    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) -> Result<Connection> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        // How it ends is told by what was asked.
        driver.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Connection { sender, address: self.address.clone(), token: self.token.clone(), _driver: driver })
    }
}

impl Connection {
    fn request(&self, path: &str) -> http::request::Builder {
        let request = Request::get(path).header(header::HOST, &self.address);
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Asks; the body of an answer that is 200.
    ///
    /// # Errors
    /// It is not, or none comes.
    pub async fn get(&mut self, path: &str) -> Result<Incoming> {
        self.sender.ready().await?;
        let answer = self.sender.send_request(self.request(path).body(Empty::new())?).await?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let text = answer.into_body().collect().await?.to_bytes();
            bail!("GET {path}: {status} {}", String::from_utf8_lossy(&text));
        }
        Ok(answer.into_body())
    }

    /// Asks for a WebSocket with this subprotocol.
    ///
    /// # Errors
    /// It is not granted.
    pub async fn websocket(&mut self, path: &str, protocol: &str) -> Result<Frames<Io>> {
        self.sender.ready().await?;
        let request = self
            .request(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, STANDARD.encode([7; 16]))
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
            .body(Empty::new())?;
        let answer = self.sender.send_request(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            bail!("GET {path}: {}", answer.status());
        }
        Ok(Frames::new(TokioIo::new(hyper::upgrade::on(answer).await?), Side::Client))
    }
}

/// The first bytes of a body, which must be some.
///
/// # Errors
/// There are none.
pub async fn first(body: &mut Incoming) -> Result<Bytes> {
    loop {
        let frame = body.frame().await.context("an answer without a byte")??;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(data);
        }
    }
}

/// Reads to the end; how many bytes that were.
///
/// # Errors
/// The body breaks off.
pub async fn rest(body: &mut Incoming) -> Result<usize> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

/// Has the first node rotate no log before it is this large, from its next start on.
///
/// # Errors
/// Its configuration cannot be changed.
pub fn keep_logs(deployment: &Deployment, size: &str) -> Result<()> {
    let mut config = read_config(deployment)?;
    config["modules"]["edged"]["tailoredKubeletConfig"]["containerLogMaxSize"] = size.into();
    Ok(std::fs::write(config_file(deployment), serde_saphyr::to_string(&config)?)?)
}

fn read_config(deployment: &Deployment) -> Result<Value> {
    let file = config_file(deployment);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
}

fn config_file(deployment: &Deployment) -> PathBuf {
    deployment.layout.edge(&node_name(1)).join("config/edgecore.yaml")
}
