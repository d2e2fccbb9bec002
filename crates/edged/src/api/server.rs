//! The server: a port, and who answers what.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use link::http_server::{Body, HttpServer, Peer};
use link::rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::auth::{Auth, Denied};
use super::devices::DevicePages;
use super::query::Query;
use super::route::{Route, RouteError, route};
use super::upgrade::Target;
use super::{answer, configz, devices, health, logs, metrics, pods, upgrade};
use crate::access::Access;
use crate::node::facts;
use crate::settings::Settings;

/// Connections at once: more than streams at once, so that they leave room for questions.
const MAX_CONNECTIONS: usize = 640;
/// Between tries to get the port or the files.
const RETRY: Duration = Duration::from_secs(10);

/// The node's API.
pub struct Api {
    access: Arc<Access>,
    auth: Auth,
    devices: Option<DevicePages>,
    /// Tasks of upgraded connections.
    pub(super) streams: TaskTracker,
}

/// Takes the port. A failure is told, and [`Api::serve`] tries again: pods run without the API too.
pub async fn listen(settings: &Settings) -> Option<TcpListener> {
    let address = settings.api_address?;
    let bound = bind(settings, address).await;
    if let Err(error) = &bound {
        tracing::error!(
            %address, port = settings.read_only_port, %error,
            "the node's API is not served: is the port in use? free it, or set readOnlyPort and address in modules.edged.tailoredKubeletConfig"
        );
    }
    bound.ok()
}

async fn bind(settings: &Settings, address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(address, settings.read_only_port)).await
}

impl Api {
    /// An API on what the agent gives, and DeviceTwin if there is one.
    pub fn new(access: Arc<Access>, devices: Option<DevicePages>) -> Self {
        Self { auth: Auth::new(&access.settings), access, devices, streams: TaskTracker::new() }
    }

    /// Serves until the agent stops, and until the streams have ended.
    pub async fn serve(self: Arc<Self>, listener: Option<TcpListener>) {
        match self.access.settings.api_address {
            Some(address) => Arc::clone(&self).serve_at(address, listener).await,
            None => self.access.stopping().cancelled().await,
        }
        self.streams.close();
        self.streams.wait().await;
    }

    async fn serve_at(self: Arc<Self>, address: IpAddr, listener: Option<TcpListener>) {
        let stopping = self.access.stopping().clone();
        let api = self;
        let ready = async {
            let tls = retry(async || api.prepare().inspect_err(tell).ok()).await;
            let listener = match listener {
                Some(listener) => listener,
                None => retry(async || bind(&api.access.settings, address).await.ok()).await,
            };
            (tls, listener)
        };
        let (tls, listener) = tokio::select! {
            () = stopping.cancelled() => return,
            ready = ready => ready,
        };
        tracing::info!(
            address = listener.local_addr().ok().map(|address| address.to_string()),
            token = %api.auth.token_file().display(),
            "the node's API is served"
        );
        let (_keep, tls) = watch::channel(tls);
        let server = HttpServer {
            listener,
            tls: Some(tls),
            max_connections: MAX_CONNECTIONS,
            max_streams: link::http_server::MAX_STREAMS,
        };
        let handler = Arc::clone(&api);
        let answer = move |request, peer| Arc::clone(&handler).answer(request, peer);
        server.serve_with_local_plain(answer, stopping).await;
    }

    fn prepare(&self) -> Result<Arc<ServerConfig>, super::auth::AuthError> {
        let settings = &self.access.settings;
        self.auth.prepare(&settings.node_name, &facts::addresses(settings))
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let found = route(request.method(), request.uri().path());
        if let Ok(Route::Health(check)) = found {
            return health::check(&self.access, check).await;
        }
        if let Err(denied) = self.auth.check(request.headers(), &peer) {
            return refuse(&denied, &peer, request.uri().path());
        }
        self.answer_found(found, request.map(drop)).await
    }

    /// Answers as if the one who asks had shown the token.
    pub async fn answer_authorised(&self, request: Request<()>) -> Response<Body> {
        let found = route(request.method(), request.uri().path());
        self.answer_found(found, request).await
    }

    async fn answer_found(&self, found: Result<Route, RouteError>, request: Request<()>) -> Response<Body> {
        match found {
            Ok(found) => self.answer_known(found, request).await,
            Err(error @ RouteError::NotFound) => answer::text(StatusCode::NOT_FOUND, error.to_string()),
            Err(error @ RouteError::Method(allowed)) => {
                let mut answer = answer::text(StatusCode::METHOD_NOT_ALLOWED, error.to_string());
                let allowed = HeaderValue::from_str(&allowed.replace(" or ", ", "));
                answer.headers_mut().extend(allowed.ok().map(|allowed| (header::ALLOW, allowed)));
                answer
            }
        }
    }

    async fn answer_known(&self, route: Route, request: Request<()>) -> Response<Body> {
        let access = &self.access;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match route {
            Route::Health(check) => health::check(access, check).await,
            Route::Pods => pods::configured(access).await,
            Route::RunningPods => pods::running(access).await,
            Route::Devices(path) => devices::answer(self.devices.as_ref(), path, &query).await,
            Route::Configz => configz::answer(access).await,
            Route::Summary => metrics::summary(access, &query).await,
            Route::Metrics(page) => metrics::answer(access, page).await,
            Route::Logs(name) => logs::answer(access, &name, &query).await,
            Route::Run(name) => upgrade::run(access, &name, &query).await,
            Route::Exec(name) => upgrade::stream(self, access, Target::Exec(name), &query, request).await,
            Route::Attach(name) => upgrade::stream(self, access, Target::Attach(name), &query, request).await,
            Route::PortForward { namespace, pod, uid } => {
                upgrade::stream(self, access, Target::PortForward { namespace, pod, uid }, &query, request).await
            }
        }
    }
}

fn refuse(denied: &Denied, peer: &Peer, path: &str) -> Response<Body> {
    tracing::info!(peer = %peer.address, path, reason = %denied, "a request to the node's API was refused");
    match denied {
        Denied::Unauthorized(_) => {
            let mut answer = answer::text(StatusCode::UNAUTHORIZED, denied.to_string());
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            answer
        }
        Denied::Forbidden(_) => answer::text(StatusCode::FORBIDDEN, denied.to_string()),
    }
}

fn tell(error: &super::auth::AuthError) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(%error, cause, "the node's API is not served yet");
}

/// Tries until it works.
async fn retry<T, F: Future<Output = Option<T>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Some(done) => return done,
            None => tokio::time::sleep(RETRY).await,
        }
    }
}
