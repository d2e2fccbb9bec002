//! Who may ask nodes, as a kubelet decides it: a client certificate of the API's CA or a bearer token says who, a SubjectAccessReview
//! whether he may (`nodes/proxy`, `nodes/log`, `nodes/stats`, `nodes/metrics`; for gRPC also `pods/log`, `pods/exec`).
//!
//! The CA is in ConfigMap `kube-system/extension-apiserver-authentication` on every cluster.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use link::http_server::Peer;
use link::identity::{Identity, verify_client};
use link::rustls::ServerConfig;
use link::rustls::pki_types::CertificateDer;
use link::rustls::pki_types::pem::PemObject;
use link::tls::{Certificate, ClientAuth, TlsError, server};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::kubernetes::{Kubernetes, KubernetesError, parse};

const CONFIG_MAP: &str = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
/// How often it is read again, and when it could not be.
const REFRESH: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(10);
/// How long an answer of the API counts (a kubelet's values).
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
const IDENTIFIED: Duration = Duration::from_secs(120);
/// Answers that are remembered.
const MAX_REMEMBERED: usize = 1024;
/// No token is longer.
const MAX_TOKEN: usize = 16 << 10;

/// Somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// Who is it?
    #[error("Unauthorized: {0}")]
    Unauthorized(&'static str),
    /// He may not.
    #[error("Forbidden (user={user}, {action})")]
    Forbidden {
        /// Who.
        user: String,
        /// What.
        action: Action,
    },
    /// It could not be found out.
    #[error("whether this is allowed could not be asked: {0}")]
    Unknown(String),
}

impl Denied {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    verb: &'static str,
    /// `None` for nodes.
    namespace: Option<String>,
    subresource: &'static str,
    /// Of the node or pod; empty for all nodes.
    name: String,
}

impl Action {
    /// With a pod.
    pub fn on_pod(verb: &'static str, subresource: &'static str, namespace: &str, pod: &str) -> Self {
        Self { verb, namespace: Some(namespace.to_owned()), subresource, name: pod.to_owned() }
    }

    /// A request for a page of a node; of all nodes when `node` is empty.
    pub fn on_node(method: &Method, path: &str, node: &str) -> Self {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let is_below = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
        let subresource = match path {
            _ if is_below("/stats") => "stats",
            _ if is_below("/metrics") => "metrics",
            _ if is_below("/logs") => "log",
            _ => "proxy",
        };
        Self { verb, namespace: None, subresource, name: node.to_owned() }
    }

    fn resource(&self) -> &'static str {
        if self.namespace.is_some() { "pods" } else { "nodes" }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verb={}, resource={}, subresource={}", self.verb, self.resource(), self.subresource)?;
        match &self.namespace {
            Some(namespace) => write!(f, ", namespace={namespace}, pod={}", self.name),
            None if self.name.is_empty() => f.write_str(", all nodes"),
            None => write!(f, ", node={}", self.name),
        }
    }
}

/// Decides. Cloning is cheap.
#[derive(Clone)]
pub struct Access {
    kubernetes: Kubernetes,
    cas: watch::Receiver<Vec<CertificateDer<'static>>>,
    remembered: Arc<Mutex<Remembered>>,
}

type Question = (User, Action);

#[derive(Default)]
struct Remembered {
    /// By the token's hash.
    users: HashMap<[u8; 32], (User, Instant)>,
    answers: HashMap<Question, (bool, Instant)>,
}

impl Access {
    /// Reads the CA, now and again and again; also gives the TLS configuration of the server, which follows it.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub async fn start(
        kubernetes: Kubernetes,
        own: &Certificate,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Result<(Self, watch::Receiver<Arc<ServerConfig>>), TlsError> {
        let cas = client_cas(&kubernetes).await;
        // Asked for without naming a CA and verified afterwards: so the answer can say what is wrong, and the CA may change.
        let tls = server(own, ClientAuth::Requested, &[b"h2", b"http/1.1"])?;
        let (tls_keep, tls) = watch::channel(tls);
        let known = cas.is_ok();
        let (to_cas, cas) = watch::channel(cas.unwrap_or_default());
        let api = kubernetes.clone();
        let following = async move {
            let mut known = known;
            loop {
                tokio::time::sleep(if known { REFRESH } else { RETRY }).await;
                match client_cas(&api).await {
                    Ok(new) => {
                        known = true;
                        to_cas.send_if_modified(|old| {
                            let changed = *old != new;
                            *old = new;
                            changed
                        });
                    }
                    Err(error) => {
                        warn!(%error, "the API's client CA (ConfigMap kube-system/extension-apiserver-authentication) cannot be read: API servers that show a certificate are refused if it was never read")
                    }
                }
            }
        };
        let stop = stopping.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(following).await;
            drop(tls_keep);
        });
        info!(known, "the stream server's clients are verified by the API's CA");
        Ok((Self { kubernetes, cas, remembered: Arc::default() }, tls))
    }

    /// Who asks.
    ///
    /// # Errors
    /// It cannot be said.
    pub async fn identify(&self, headers: &HeaderMap, peer: &Peer) -> Result<User, Denied> {
        let certified = peer.certificate.as_ref().map(|certificate| self.certified(certificate));
        if let Some(Ok(user)) = certified {
            return Ok(user);
        }
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token =
            token.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = token.filter(|(_, token)| !token.trim().is_empty() && token.len() <= MAX_TOKEN) else {
            // A certificate of others, who have their own use for it, does not hide a token.
            let neither = Denied::Unauthorized("show a client certificate of the API's CA, or a bearer token");
            return certified.unwrap_or(Err(neither));
        };
        let hash: [u8; 32] = Sha256::digest(token.trim()).into();
        if let Some((user, until)) = self.remembered().users.get(&hash).cloned()
            && until > Instant::now()
        {
            return Ok(user);
        }
        let user = self.review_token(token.trim()).await?;
        let mut remembered = self.remembered();
        if remembered.users.len() >= MAX_REMEMBERED {
            remembered.users.clear();
        }
        remembered.users.insert(hash, (user.clone(), Instant::now() + IDENTIFIED));
        Ok(user)
    }

    /// Whether he may do this.
    ///
    /// # Errors
    /// He may not, or it cannot be found out.
    pub async fn authorize(&self, user: &User, action: Action) -> Result<(), Denied> {
        let question = (user.clone(), action);
        let known = self.remembered().answers.get(&question).copied().filter(|(_, until)| *until > Instant::now());
        let allowed = match known {
            Some((allowed, _)) => allowed,
            None => {
                let allowed = self.review_access(&question).await?;
                let until = Instant::now() + if allowed { ALLOWED } else { DENIED };
                let mut remembered = self.remembered();
                if remembered.answers.len() >= MAX_REMEMBERED {
                    remembered.answers.clear();
                }
                remembered.answers.insert(question.clone(), (allowed, until));
                allowed
            }
        };
        let (User { name: user, .. }, action) = question;
        if allowed { Ok(()) } else { Err(Denied::Forbidden { user, action }) }
    }

    fn certified(&self, certificate: &CertificateDer<'_>) -> Result<User, Denied> {
        let cas = self.cas.borrow().clone();
        let now = std::time::SystemTime::now();
        let identity = cas.iter().find_map(|ca| verify_client(ca, certificate, now).ok());
        let Some(Identity { common_name, mut organisations, .. }) = identity else {
            return Err(Denied::Unauthorized(
                "the client certificate is not of the API's client CA, or its time is over",
            ));
        };
        organisations.push("system:authenticated".to_owned());
        Ok(User { name: common_name, groups: organisations })
    }

    async fn review_token(&self, token: &str) -> Result<User, Denied> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self.review("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        if answer["status"]["authenticated"] != true {
            return Err(Denied::Unauthorized("the API does not know this token"));
        }
        let user = &answer["status"]["user"];
        let groups =
            user["groups"].as_array().into_iter().flatten().filter_map(|group| group.as_str().map(str::to_owned));
        Ok(User { name: user["username"].as_str().unwrap_or_default().to_owned(), groups: groups.collect() })
    }

    async fn review_access(&self, (user, action): &Question) -> Result<bool, Denied> {
        let attributes = json!({
            "resource": action.resource(), "subresource": action.subresource, "verb": action.verb, "version": "v1",
            "name": action.name, "namespace": action.namespace.as_deref().unwrap_or_default(),
        });
        let spec = json!({"user": user.name, "groups": user.groups, "resourceAttributes": attributes});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = self.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    async fn review(&self, path: &str, review: &Value) -> Result<Value, Denied> {
        let unknown = |error: KubernetesError| Denied::Unknown(error.to_string());
        parse(&self.kubernetes.create(path, review.to_string()).await.map_err(unknown)?).map_err(unknown)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn client_cas(kubernetes: &Kubernetes) -> Result<Vec<CertificateDer<'static>>, KubernetesError> {
    let config_map = kubernetes.get_value(CONFIG_MAP).await?;
    let pem = config_map["data"]["client-ca-file"].as_str().unwrap_or_default();
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).map(CertificateDer::into_owned).collect())
}
