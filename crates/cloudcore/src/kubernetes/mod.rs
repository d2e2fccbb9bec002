//! The way to the Kubernetes API, whichever it is: requests whose objects stay JSON text.

pub mod definitions;
pub mod kinds;
mod reflector;

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::net::UdpSocket;
use wire::Status;

pub use reflector::{Change, Reflector};

/// A longer answer is refused; lists come in pages.
const MAX_ANSWER: usize = 64 << 20;
/// How long an answer may take. A connection that died without a word would be waited for otherwise until the system gives it
/// up, which takes a quarter of an hour.
const ANSWER: Duration = Duration::from_secs(60);

/// A client of the API server. Cloning is cheap.
#[derive(Clone)]
pub struct Kubernetes {
    /// The newest one: [`Kubernetes::reconnect`] replaces it for all clones.
    client: Arc<RwLock<kube::Client>>,
    /// PEM.
    ca: Arc<str>,
    /// Host and port.
    server: Arc<(String, u16)>,
    requests: Arc<AtomicU64>,
}

/// The API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {0:?} cannot be used")]
    Kubeconfig(String, #[source] kube::config::KubeconfigError),
    /// Not inside a cluster.
    #[error("no kubeconfig is configured (kubeAPIConfig.kubeConfig), and this is no pod in a cluster")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client cannot be built.
    #[error("the Kubernetes client cannot be made")]
    Client(#[source] kube::Error),
    /// The request did not reach the API server, or its answer broke off.
    #[error("the Kubernetes API does not answer")]
    Request(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server refused.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
}

impl KubernetesError {
    /// The API server's status, or one that says that it does not answer.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Refused(status) => status.as_ref().clone(),
            other => {
                let cause = std::error::Error::source(other).map(|cause| format!(": {cause}")).unwrap_or_default();
                Status::failure(503, "ServiceUnavailable", format!("{other}{cause}"))
            }
        }
    }

    /// The HTTP code of a refusal, 0 when there was no answer.
    pub fn code(&self) -> u16 {
        match self {
            Self::Refused(status) => status.code,
            _ => 0,
        }
    }
}

impl Kubernetes {
    /// By kubeconfig, or from inside a pod.
    ///
    /// # Errors
    /// The configuration cannot be used. Whether the server answers shows later.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, KubernetesError> {
        let config = configuration(kubeconfig).await?;
        let certificates = config.root_cert.iter().flatten();
        let ca: String = certificates.map(|der| link::files::to_pem("CERTIFICATE", der)).collect();
        let server = Arc::new(server(&config));
        Ok(Self { client: Arc::new(RwLock::new(client(config)?)), ca: ca.into(), server, requests: Arc::default() })
    }

    /// Takes the kubeconfig as it is now: its client certificate was renewed. What is under way goes on over its connection.
    ///
    /// # Errors
    /// It cannot be used; the client stays as it was.
    pub async fn reconnect(&self, kubeconfig: &Path) -> Result<(), KubernetesError> {
        let client = client(configuration(Some(kubeconfig)).await?)?;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    fn client(&self) -> kube::Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For tests: without encryption.
    #[cfg(test)]
    pub(crate) fn at(url: &str) -> Self {
        link::tls::install_provider();
        let config = kube::Config::new(url.parse().expect("a URL"));
        let server = Arc::new(server(&config));
        Self {
            client: Arc::new(RwLock::new(client(config).expect("a client"))),
            ca: "".into(),
            server,
            requests: Arc::default(),
        }
    }

    /// The API server's CA in PEM; empty when the system's CAs are trusted.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The IP address by which this machine reaches the API server.
    pub async fn own_address(&self) -> Option<IpAddr> {
        let (host, port) = &*self.server;
        // Connecting a datagram socket sends nothing; it asks for the route.
        for any in ["0.0.0.0:0", "[::]:0"] {
            let Ok(socket) = UdpSocket::bind(any).await else { continue };
            if socket.connect((host.as_str(), *port)).await.is_ok() {
                return socket.local_addr().ok().map(|address| address.ip());
            }
        }
        None
    }

    /// Requests that were sent so far, by all clones; those that open a watch are not counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// An object or list as JSON text.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn get(&self, path: &str) -> Result<Bytes, KubernetesError> {
        self.send(Method::GET, path, "", Bytes::new()).await
    }

    /// An object or list, parsed.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn get_value(&self, path: &str) -> Result<Value, KubernetesError> {
        parse(&self.get(path).await?)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn create(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, KubernetesError> {
        self.send(Method::POST, path, "application/json", body.into()).await
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn replace(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, KubernetesError> {
        self.send(Method::PUT, path, "application/json", body.into()).await
    }

    /// Patches an object; `kind` is `merge-patch` or `strategic-merge-patch`.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn patch(&self, path: &str, kind: &str, body: impl Into<Bytes>) -> Result<Bytes, KubernetesError> {
        self.send(Method::PATCH, path, &format!("application/{kind}+json"), body.into()).await
    }

    /// Deletes an object; the body holds DeleteOptions.
    ///
    /// # Errors
    /// The server refused or does not answer.
    pub async fn delete(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, KubernetesError> {
        self.send(Method::DELETE, path, "application/json", body.into()).await
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Bytes, KubernetesError> {
        in_time(ANSWER, self.exchange(method, path, kind, body)).await
    }

    async fn exchange(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Bytes, KubernetesError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = Request::builder().method(method).uri(path);
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Body::from(body.to_vec())).map_err(|e| KubernetesError::Request(e.into()))?;
        let answer = self.client().send(request).await.map_err(|e| KubernetesError::Request(e.into()))?;
        let status = answer.status();
        let body =
            Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(KubernetesError::Request)?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let told: Option<Status> = serde_json::from_slice(&body).ok().filter(|told: &Status| told.code != 0);
        let refusal = told.unwrap_or_else(|| {
            let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            Status::failure(status.as_u16(), status.canonical_reason().unwrap_or("Unknown"), text)
        });
        Err(KubernetesError::Refused(Box::new(refusal)))
    }
}

async fn configuration(kubeconfig: Option<&Path>) -> Result<kube::Config, KubernetesError> {
    let Some(path) = kubeconfig else { return kube::Config::incluster().map_err(KubernetesError::InCluster) };
    let fail = |error| KubernetesError::Kubeconfig(path.display().to_string(), error);
    let file = Kubeconfig::read_from(path).map_err(fail)?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(fail)
}

fn client(config: kube::Config) -> Result<kube::Client, KubernetesError> {
    kube::Client::try_from(config).map_err(KubernetesError::Client)
}

/// An answer, or the error that there was none in time.
async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, KubernetesError>>,
) -> Result<T, KubernetesError> {
    let late = || KubernetesError::Request(format!("no answer within {} s", limit.as_secs()).into());
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
}

fn server(config: &kube::Config) -> (String, u16) {
    let url = &config.cluster_url;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    (host, url.port_u16().unwrap_or(443))
}

/// JSON text as a value.
///
/// # Errors
/// It is no JSON.
pub fn parse(text: &[u8]) -> Result<Value, KubernetesError> {
    serde_json::from_slice(text).map_err(|error| KubernetesError::Request(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn a_renewed_kubeconfig_holds_for_all_who_have_the_client() {
        link::tls::install_provider();
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("kubeconfig");
        let write = |server: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: {server}}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\ncurrent-context: c\n"
            );
            std::fs::write(&file, text).expect("written");
        };
        let (old, new) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await);
        let (old, new) = (old.expect("port"), new.expect("port"));
        write(&format!("http://{}", old.local_addr().expect("address")));
        let kubernetes = Kubernetes::connect(Some(&file)).await.expect("usable");
        let clone = kubernetes.clone();
        std::fs::write(&file, "nonsense: [").expect("written");
        kubernetes.reconnect(&file).await.expect_err("it cannot be read");
        tokio::select! {
            _ = clone.get("/version") => panic!("nobody answers"),
            accepted = old.accept() => drop(accepted.expect("the client as it was")),
        }
        write(&format!("http://{}", new.local_addr().expect("address")));
        kubernetes.reconnect(&file).await.expect("usable");
        tokio::select! {
            _ = clone.get("/version") => panic!("nobody answers"),
            accepted = new.accept() => drop(accepted.expect("the new server")),
        }
    }

    /// An API server whose host has lost its power: connections stand, and nobody answers.
    async fn silent() -> (Kubernetes, JoinSet<Vec<TcpStream>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.push(connection);
            }
            connections
        });
        (Kubernetes::at(&url), accepting)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_api_is_given_up() {
        let (kubernetes, _accepting) = silent().await;
        let began = tokio::time::Instant::now();
        let asking = tokio::time::timeout(ANSWER * 5, kubernetes.get("/api/v1/nodes"));
        let error = asking.await.expect("given up").expect_err("no answer");
        assert!(error.to_status().message.contains("no answer within 60 s"), "{error:?}");
        assert_eq!((error.code(), began.elapsed().as_secs()), (0, ANSWER.as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_opened_again() {
        let (kubernetes, _accepting) = silent().await;
        let reflector = Reflector { kubernetes, path: "/api/v1/nodes".to_owned(), query: String::new() };
        let (changes, _incoming) = mpsc::channel(1);
        let mut version = "5".to_owned();
        let watching = reflector.watch(&mut version, &changes, &|change| change);
        let watched = tokio::time::timeout(ANSWER * 5, watching).await.expect("given up");
        watched.expect_err("no answer");
        assert_eq!(version, "5", "its place is kept");
    }
}
