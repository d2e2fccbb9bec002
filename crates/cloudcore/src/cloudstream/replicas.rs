//! Several cloudcores on one cluster: what is wanted of a node goes to the one that has its session or its tunnel.
//!
//! Each keeps a Lease that says where its tunnel server listens. Who has a node is written nowhere: the others are asked when it is not
//! here. They know each other by certificates of the hub's CA, whose key all of them have. A request that was passed on is not passed on
//! to a session again, so that none goes round in circles.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use link::http_server::Body;
use link::rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::tunnels::{Answer, End, Tunnel, TunnelError};
use crate::cloudhub::Material;
use crate::kubernetes::{Kubernetes, KubernetesError};

/// Below this path, on the tunnel server, other cloudcores ask.
pub(super) const ROOT: &str = "/ferroedge/nodes/";
/// The organisation of a cloudcore's client certificate.
pub(super) const GROUP: &str = "ferroedge:cloudcores";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kubeedge/leases";
const LABEL: &str = "ferroedge.io/streams";
/// How often a Lease is written, and how old one may be whose cloudcore still counts.
const RENEWAL: Duration = Duration::from_secs(60);
const VALID: SignedDuration = SignedDuration::from_mins(5);
/// Older ones are removed.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// How long the list of the others serves.
const FRESH: Duration = Duration::from_secs(5);
/// How long another may take to say whether it has a node, and to be connected to.
const ANSWER: Duration = Duration::from_secs(3);
/// How long another may take to get the head of a node's answer: longer than the node may.
const SLOWEST: Duration = Duration::from_secs(150);
/// A certificate is made for each connection.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
const MAX_ANSWER: usize = 4 << 10;

/// What a cloudcore knows of a node.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// The node's tunnel ends here.
    pub(super) tunnel: bool,
    /// The node's session does, and would open a tunnel.
    pub(super) session: bool,
    /// Since when it is not connected here (RFC 3339).
    pub(super) since: Option<String>,
}

/// The other cloudcores. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Replicas(Arc<Shared>);

struct Shared {
    kubernetes: Kubernetes,
    material: Arc<Material>,
    /// What the certificate of each is for.
    host: ServerName<'static>,
    own: SocketAddr,
    tasks: TaskTracker,
    others: Mutex<(Option<Instant>, Vec<SocketAddr>)>,
}

/// A node at another cloudcore. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Replica {
    replicas: Replicas,
    at: SocketAddr,
}

impl Replicas {
    /// Tells the others of this one, whose tunnel server is at this address, until `stopping`; `None` when none could find it.
    pub(super) async fn start(
        (kubernetes, material): (Kubernetes, Arc<Material>),
        hosts: &[String],
        tunnel: SocketAddr,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Option<Self> {
        let address = match tunnel.ip() {
            // Behind a local proxy of the API all would have the same.
            any if any.is_unspecified() => kubernetes.own_address().await.filter(|address| !address.is_loopback())?,
            address => address,
        };
        let host = ServerName::try_from(hosts.first()?.clone()).ok()?;
        let (own, others, tasks) = (SocketAddr::new(address, tunnel.port()), Mutex::default(), tasks.clone());
        let replicas = Self(Arc::new(Shared { kubernetes, material, host, own, tasks, others }));
        replicas.0.tasks.spawn(replicas.clone().keep(stopping.clone()));
        Some(replicas)
    }

    /// The node where it is: who has its tunnel, else who has its session; and since when those know that it is gone.
    pub(super) async fn find(&self, node: &str) -> (Option<Tunnel>, Option<Timestamp>) {
        let found = self.ask_all(node).await;
        let has = |what: fn(&Known) -> bool| found.iter().find(|(_, known)| what(known));
        let at = has(|known| known.tunnel).or_else(|| has(|known| known.session)).map(|(at, _)| *at);
        let since = found.iter().filter_map(|(_, known)| known.since.as_ref()?.parse().ok()).max();
        (at.map(|at| self.tunnel(node, at)), since)
    }

    /// The node's tunnel, if it ends at another.
    pub(super) async fn tunnel_of(&self, node: &str) -> Option<Tunnel> {
        let found = self.ask_all(node).await;
        found.iter().find(|(_, known)| known.tunnel).map(|(at, _)| self.tunnel(node, *at))
    }

    fn tunnel(&self, node: &str, at: SocketAddr) -> Tunnel {
        Tunnel::new(node, End::Other(Replica { replicas: self.clone(), at }))
    }

    async fn ask_all(&self, node: &str) -> Vec<(SocketAddr, Known)> {
        let asking = self.others().await.into_iter().map(|at| async move {
            match tokio::time::timeout(ANSWER, self.ask(node, at)).await {
                Ok(Ok(known)) => Some((at, known)),
                Ok(Err(error)) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%at, cause, "another cloudcore cannot be asked: all must have the same modules.cloudHub.advertiseAddress and certificates");
                    None
                }
                Err(_) => {
                    warn!(%at, "another cloudcore does not answer: is its tunnel port reachable from here?");
                    None
                }
            }
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    async fn ask(&self, node: &str, at: SocketAddr) -> Result<Known, TunnelError> {
        let broken = |error| TunnelError::Broken(node.to_owned(), error);
        let request = Request::get(format!("{ROOT}{node}")).body(Full::default());
        let answer = self.exchange(at, request.map_err(|e| broken(e.into()))?).await.map_err(broken)?;
        let text = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(broken)?;
        serde_json::from_slice(&text.to_bytes()).map_err(|error| broken(error.into()))
    }

    async fn exchange(
        &self,
        at: SocketAddr,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        let Material { ca, .. } = &*self.0.material;
        let own = ca.issue_client("ferroedge:cloudcore", GROUP, VALIDITY)?;
        let own = link::tls::Certificate { certificate: own.certificate, key: own.key };
        let tls = link::tls::client(ca.certificate(), Some(&own))?;
        let connecting = async {
            let tcp = TcpStream::connect(at).await?;
            let _ = tcp.set_nodelay(true);
            link::http_server::keep_alive(&tcp);
            TlsConnector::from(tls).connect(self.0.host.clone(), tcp).await
        };
        let io = tokio::time::timeout(ANSWER, connecting).await??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        self.0.tasks.spawn(async move {
            // Its end is told by the answer, too.
            let _ = connection.with_upgrades().await;
        });
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("cloudcore"));
        Ok(sender.send_request(request).await?)
    }

    /// Where the others listen.
    async fn others(&self) -> Vec<SocketAddr> {
        let mut others = self.0.others.lock().await;
        if others.0.is_none_or(|listed| listed.elapsed() >= FRESH) {
            others.0 = Some(Instant::now());
            match tokio::time::timeout(ANSWER, self.list()).await.unwrap_or_else(|_| Err(late())) {
                Ok(found) => {
                    let is_other =
                        |(_, at, age): &(String, SocketAddr, SignedDuration)| *at != self.0.own && *age < VALID;
                    others.1 = found.into_iter().filter(is_other).map(|(_, at, _)| at).collect();
                }
                Err(error) => warn!(%error, "the other cloudcores (Leases of namespace kubeedge) cannot be listed"),
            }
        }
        others.1.clone()
    }

    /// Name, address and age of each Lease.
    async fn list(&self) -> Result<Vec<(String, SocketAddr, SignedDuration)>, KubernetesError> {
        let list =
            self.0.kubernetes.get_value(&format!("{LEASES}?labelSelector={}", LABEL.replace('/', "%2F"))).await?;
        let read = |lease: &serde_json::Value| {
            let at = lease["spec"]["holderIdentity"].as_str()?.parse().ok()?;
            let renewed: Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
            Some((lease["metadata"]["name"].as_str()?.to_owned(), at, Timestamp::now().duration_since(renewed)))
        };
        Ok(list["items"].as_array().into_iter().flatten().filter_map(read).collect())
    }

    async fn keep(self, stopping: CancellationToken) {
        let name = format!("cloudcore-{}", self.0.own).replace(['.', ':', '[', ']'], "-");
        let path = format!("{LEASES}/{name}");
        let keeping = async {
            self.remove_old().await;
            loop {
                if let Err(error) = self.write(&name, &path).await {
                    warn!(%error, lease = name, "other cloudcores do not learn where this one is: a node's logs are found here alone");
                }
                tokio::time::sleep(RENEWAL).await;
            }
        };
        stopping.run_until_cancelled(keeping).await;
        if let Err(error) = self.0.kubernetes.delete(&path, "{}").await {
            debug!(%error, lease = name, "a Lease stays until its time is over");
        }
    }

    async fn write(&self, name: &str, path: &str) -> Result<(), KubernetesError> {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let spec = json!({"holderIdentity": self.0.own.to_string(), "leaseDurationSeconds": VALID.as_secs(), "renewTime": now});
        let patch = json!({"spec": spec});
        match self.0.kubernetes.patch(path, "merge-patch", patch.to_string()).await {
            Err(error) if error.code() == 404 => {
                let metadata = json!({"name": name, "namespace": "kubeedge", "labels": {LABEL: ""}});
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
                self.0.kubernetes.create(LEASES, lease.to_string()).await.map(drop)
            }
            done => done.map(drop),
        }
    }

    /// Of cloudcores that ended without a word.
    async fn remove_old(&self) {
        let old = self.list().await.unwrap_or_default().into_iter().filter(|(_, _, age)| *age >= KEPT);
        for (name, at, _) in old {
            info!(%at, lease = name, "the Lease of a cloudcore that is gone is removed");
            // Another may be doing the same.
            let _ = self.0.kubernetes.delete(&format!("{LEASES}/{name}"), "{}").await;
        }
    }
}

impl Replica {
    /// Has the other ask the node.
    pub(super) async fn ask(&self, node: &str, mut request: Request<Full<Bytes>>) -> Result<Answer, TunnelError> {
        let broken = |error| TunnelError::Broken(node.to_owned(), error);
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = format!("{ROOT}{node}{target}").parse::<Uri>().map_err(|error| broken(error.into()))?;
        // Who asks is known here, and the body may have another length.
        [header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
            .iter()
            .for_each(|name| drop(request.headers_mut().remove(name)));
        let answer = tokio::time::timeout(SLOWEST, self.replicas.exchange(self.at, request)).await;
        let silent = || TunnelError::Silent { node: node.to_owned(), seconds: SLOWEST.as_secs() };
        let answer = answer.map_err(|_| silent())?.map_err(broken)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Answer::Plain(answer.map(boxed)));
        }
        let (head, body) = answer.into_parts();
        let upgraded = hyper::upgrade::on(Response::from_parts(head.clone(), body)).await;
        let upgraded = upgraded.map_err(|error| broken(error.into()))?;
        Ok(Answer::Upgraded(Response::from_parts(head, ()), Box::new(TokioIo::new(upgraded))))
    }
}

fn late() -> KubernetesError {
    KubernetesError::Request(format!("no answer within {} s", ANSWER.as_secs()).into())
}

fn boxed(body: Incoming) -> Body {
    body.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { Box::new(error) }).boxed()
}

/// The node and the rest of a path below [`ROOT`].
pub(super) fn split(path: &str) -> (&str, &str) {
    path.find('/').map_or((path, ""), |at| path.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_node_and_what_is_wanted_of_it() {
        assert_eq!(split("n1"), ("n1", ""));
        assert_eq!(split("n1/exec/default/p"), ("n1", "/exec/default/p"));
    }
}
