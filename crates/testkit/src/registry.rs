//! A registry of images in the test's process: plain HTTP on loopback, the part of the OCI distribution protocol that a pull
//! uses, with logins (Basic, or a token that Basic buys) and slow layers where a test wants them.
//!
//! A runtime speaks plain HTTP to `127.0.0.1` without being told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::containerd::images;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A registry that serves until it is dropped.
pub struct Registry {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    _serving: JoinSet<()>,
}

/// Who must log in, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// User and password with every request.
    Basic,
    /// They buy a token for every request.
    Token,
}

/// A manifest that was asked for by its tag.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Repository.
    pub repository: String,
    /// When.
    pub at: Instant,
    /// The user, where the request came with one.
    pub user: Option<String>,
    /// Status of the answer.
    pub status: u16,
}

#[derive(Default)]
struct Shared {
    /// Manifests by repository and tag.
    tags: BTreeMap<(String, String), Bytes>,
    /// Everything by digest.
    blobs: BTreeMap<String, Bytes>,
    logins: BTreeMap<String, Login>,
    layer_pause: Duration,
    asked: Vec<Asked>,
    /// Layers on their way, and the most at the same time.
    busy: (usize, usize),
}

struct Login {
    scheme: Scheme,
    user: String,
    password: String,
}

impl Registry {
    /// Serves at a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, port, shared.clone()));
        Ok(Self { port, shared, _serving: serving })
    }

    /// `127.0.0.1:PORT`, the first part of its images' names.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts the busybox image there, with a layer that no other repository has. Returns the image's name.
    pub fn push(&self, repository: &str, tag: &str) -> Result<String> {
        let layer = images::layer(Some(repository))?;
        let diff_id = digest(&layer);
        let config = images::config(&json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}), &diff_id).into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": diff_id, "size": layer.len()}],
        })
        .to_string()
        .into_bytes();
        let mut shared = self.shared();
        for blob in [layer, config, manifest.clone()] {
            shared.blobs.insert(digest(&blob), blob.into());
        }
        shared.tags.insert((repository.to_owned(), tag.to_owned()), manifest.into());
        Ok(format!("{}/{repository}:{tag}", self.host()))
    }

    /// The repository's layer is cut short: its digest does not match.
    pub fn break_layers(&self, repository: &str) {
        let mut shared = self.shared();
        let manifests: Vec<Bytes> =
            shared.tags.iter().filter(|((found, _), _)| found == repository).map(|(_, m)| m.clone()).collect();
        for manifest in manifests {
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
            let digest = manifest["layers"][0]["digest"].as_str().unwrap_or_default().to_owned();
            if let Some(blob) = shared.blobs.get_mut(&digest) {
                *blob = vec![0; blob.len()].into();
            }
        }
    }

    /// From now on this repository wants a login.
    pub fn require(&self, repository: &str, scheme: Scheme, user: &str, password: &str) {
        let login = Login { scheme, user: user.to_owned(), password: password.to_owned() };
        self.shared().logins.insert(repository.to_owned(), login);
    }

    /// Every layer is held back for this long.
    pub fn slow_layers(&self, pause: Duration) {
        self.shared().layer_pause = pause;
    }

    /// Manifests that were asked for so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared().asked.clone()
    }

    /// The most layers that were on their way at the same time.
    pub fn most_at_once(&self) -> usize {
        self.shared().busy.1
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn serve(listener: TcpListener, port: u16, shared: Arc<Mutex<Shared>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let service = service_fn(move |request| answer(request, port, shared.clone()));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move { drop(connection.await) });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: Request<Incoming>, port: u16, shared: Arc<Mutex<Shared>>) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let (user, password) = basic(&request).unwrap_or_default();
    if path == "/token" {
        // The token is the login itself: nobody else can read it here.
        let answer = if request.method() == Method::GET {
            plain(StatusCode::OK, json!({"token": STANDARD.encode(format!("{user}:{password}"))}).to_string())
        } else {
            plain(StatusCode::NOT_FOUND, String::new())
        };
        return Ok(answer);
    }
    let mut parts = path.strip_prefix("/v2/").unwrap_or_default().rsplitn(3, '/');
    let (Some(name), Some(kind), Some(repository)) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(plain(StatusCode::OK, String::new()));
    };
    let refused = refusal(&lock(&shared), repository, (&user, &password), port);
    let by_tag = kind == "manifests" && !name.starts_with("sha256:");
    if by_tag {
        let found = lock(&shared).tags.contains_key(&(repository.to_owned(), name.to_owned()));
        let status = if refused.is_some() {
            401
        } else if found {
            200
        } else {
            404
        };
        let user = Some(user).filter(|user| !user.is_empty());
        lock(&shared).asked.push(Asked { repository: repository.to_owned(), at: Instant::now(), user, status });
    }
    if let Some(refused) = refused {
        return Ok(refused);
    }
    let (content, pause) = {
        let shared = lock(&shared);
        let content = if by_tag {
            shared.tags.get(&(repository.to_owned(), name.to_owned())).cloned()
        } else {
            shared.blobs.get(name).cloned()
        };
        (content, shared.layer_pause)
    };
    let Some(content) = content else { return Ok(plain(StatusCode::NOT_FOUND, String::new())) };
    let is_layer = kind == "blobs" && !content.starts_with(b"{");
    if is_layer && request.method() == Method::GET {
        {
            let mut shared = lock(&shared);
            shared.busy.0 += 1;
            shared.busy.1 = shared.busy.1.max(shared.busy.0);
        }
        tokio::time::sleep(pause).await;
        lock(&shared).busy.0 -= 1;
    }
    let kind = if kind == "manifests" { MANIFEST } else { "application/octet-stream" };
    let digest = if by_tag { digest(&content) } else { name.to_owned() };
    let answer = Response::builder().header(header::CONTENT_TYPE, kind).header("Docker-Content-Digest", digest);
    let answer = answer.header(header::CONTENT_LENGTH, content.len());
    let body = if request.method() == Method::HEAD { Bytes::new() } else { content };
    Ok(answer.body(Full::new(body)).unwrap_or_default())
}

fn plain(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}

/// User and password of a request, also out of a token.
fn basic(request: &Request<Incoming>) -> Option<(String, String)> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let encoded = value.strip_prefix("Basic ").or_else(|| value.strip_prefix("Bearer "))?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn refusal(shared: &Shared, repository: &str, given: (&str, &str), port: u16) -> Option<Answer> {
    let login = shared.logins.get(repository)?;
    if given == (&login.user, &login.password) {
        return None;
    }
    let wanted = match login.scheme {
        Scheme::Basic => "Basic realm=\"test\"".to_owned(),
        Scheme::Token => {
            format!(
                "Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\",scope=\"repository:{repository}:pull\""
            )
        }
    };
    let mut answer = plain(StatusCode::UNAUTHORIZED, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#.to_owned());
    if let Ok(wanted) = wanted.parse() {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, wanted);
    }
    Some(answer)
}
