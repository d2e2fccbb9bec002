//! EdgeStream: the node's end of the tunnel by which the cloud asks it: logs, exec, attach, port-forward, metrics.
//!
//! The node connects, so that nothing needs to reach it; what then comes through the tunnel is answered by the node's API, in process.
//! `http2` is the tunnel to a cloudcore of ours, `upstream` that to a Go cloudcore, `connection` one stream in the latter. This file
//! joins them: connect, serve, wait a little, again.

mod connection;
mod http2;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use api::edgecore::{EdgeHub as HubSettings, EdgeStream as Settings};
use beehive::{BoxFuture, Context, Inbox, Module, ModuleError};
use edged::api::NodeApi;
use edged::node::facts;
use link::backoff::Backoff;
use link::rustls::ClientConfig;
use link::tunnel::{self, FEATURES, HTTP2, PATH};
use link::ws::{LinkError, Target};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wire::tunnel::FrameError;

use crate::edgehub::{CertificateError, present};

/// Name and group of the module.
const EDGE_STREAM: &str = "edgestream";
/// Waits before connecting again. Not every cloud has a tunnel, so the longest is longer than EdgeHub's.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A tunnel that lasted so long was a good one; after one that the cloud ends at once, waits go on growing.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked whether EdgeHub has got the certificate.
const CERTIFICATE: Duration = Duration::from_secs(1);

/// The module.
pub struct EdgeStream {
    settings: Settings,
    hub: HubSettings,
    agent: edged::Settings,
    api: NodeApi,
}

/// How a tunnel ended, or why there is none.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the node's certificate cannot be used")]
    Certificate(#[source] CertificateError),
    #[error("the tunnel cannot be made")]
    Connect(#[source] LinkError),
    #[error("the cloud closed the tunnel: {0}")]
    Closed(String),
    #[error("the tunnel broke")]
    Broken(#[from] std::io::Error),
    #[error("the tunnel broke")]
    Http2(#[source] hyper::Error),
    #[error("the cloud sent what is no frame of the tunnel")]
    Frame(#[from] FrameError),
    #[error("edgecore stops")]
    Stopping,
}

impl EdgeStream {
    /// A tunnel with these settings, the hub's certificate and the agent's name and address; `api` answers.
    pub fn new(settings: Settings, hub: HubSettings, agent: edged::Settings, api: NodeApi) -> Self {
        Self { settings, hub, agent, api }
    }

    async fn serve(&self, stopping: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut is_told = false;
        // One that closes or does not answer is left for the next.
        for server in self.settings.servers.iter().cycle() {
            let (ended, lasted) = self.once(server, stopping).await;
            if let Some(lasted) = lasted {
                is_told = false;
                if lasted >= GOOD_AFTER {
                    backoff.reset();
                }
            }
            if stopping.is_cancelled() {
                return;
            }
            let wait = backoff.next_wait();
            let cause = chain(&ended);
            if is_told {
                debug!(server, cause, wait_ms = wait.as_millis(), "still no stream tunnel");
            } else {
                warn!(
                    server,
                    cause,
                    "no stream tunnel: kubectl logs and exec do not reach this node; it is tried again and again"
                );
                is_told = true;
            }
            if stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// One tunnel; how long it lasted, if it came about.
    async fn once(&self, server: &str, stopping: &CancellationToken) -> (Ended, Option<Duration>) {
        let connected = stopping.run_until_cancelled(self.connect(server)).await;
        let (frames, headers) = match connected {
            Some(Ok(connected)) => connected,
            Some(Err(ended)) => return (ended, None),
            None => return (Ended::Stopping, None),
        };
        let is_ours = tunnel::has_http2(&headers);
        info!(server, http2 = is_ours, "the stream tunnel stands");
        let began = Instant::now();
        let ended = if is_ours {
            http2::serve(frames, &self.api, stopping).await
        } else {
            upstream::serve(frames, &self.api, stopping).await
        };
        (ended, Some(began.elapsed()))
    }

    async fn connect(&self, server: &str) -> Result<(link::frames::Frames<tunnel::Io>, http::HeaderMap), Ended> {
        let tls = self.certificate().await.map_err(Ended::Certificate)?;
        let mut headers = vec![("sessionhostnameoverride", self.agent.node_name.clone()), (FEATURES, HTTP2.to_owned())];
        let address = facts::addresses(&self.agent).into_iter().next();
        headers.extend(address.map(|address| ("sessioninternalip", address.to_string())));
        let deadline = self.settings.handshake_timeout;
        let url = format!("wss://{server}{PATH}");
        let target = Target { url, headers, tls, connect_deadline: deadline, write_deadline: deadline };
        tunnel::connect(&target).await.map_err(Ended::Connect)
    }

    /// The node's certificate of the time; EdgeHub gets and renews it.
    async fn certificate(&self) -> Result<Arc<ClientConfig>, CertificateError> {
        loop {
            match present(&self.hub, &self.agent.node_name)? {
                Some(tls) => return Ok(tls),
                None => tokio::time::sleep(CERTIFICATE).await,
            }
        }
    }
}

impl Module for EdgeStream {
    fn name(&self) -> &'static str {
        EDGE_STREAM
    }

    fn group(&self) -> &'static str {
        EDGE_STREAM
    }

    /// Nobody sends it messages.
    fn run<'a>(&'a mut self, context: Context, _: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            self.serve(context.token()).await;
            Ok(())
        })
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        text.push_str(": ");
        text.push_str(&error.to_string());
        inner = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
