//! EdgeStream: the node's end of the tunnel by which the cloud asks it: logs, exec, attach, port-forward, metrics.
//!
//! The node connects, so that nothing needs to reach it; what then comes through the tunnel is answered by the node's API, in process.
//! `http2` is the tunnel to a cloudcore of ours, which goes on when its connection is cut (`resumed`); `upstream` is that to a Go
//! cloudcore, `connection` one stream in the latter. This file joins them: connect when the cloud asks for it
//! ([`wire::on_demand`]), or all the time where it never does; serve; wait; again.

mod connection;
mod http2;
mod resumed;
mod upstream;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::edgecore::{EdgeHub as HubSettings, EdgeStream as Settings};
use beehive::{BoxFuture, Context, Inbox, Module, ModuleError};
use edged::api::NodeApi;
use edged::node::facts;
use link::backoff::Backoff;
use link::resume::{Id, Resume};
use link::rustls::ClientConfig;
use link::tunnel::{self, FEATURES, HTTP2, PATH, RESUME};
use link::ws::{LinkError, Target};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wire::tunnel::FrameError;
use wire::{Content, Message, module, on_demand, operation};

use crate::edgehub::{CertificateError, present};
use resumed::Connected;

/// Waits before connecting again. Not every cloud has a tunnel, so the longest is longer than EdgeHub's.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A tunnel that lasted so long was a good one; after one that the cloud ends at once, waits go on growing.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// Who waits in the cloud for a tunnel gives up after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one try to go on with a tunnel may take; there are to be several in the time for which it is kept.
const RESUMING: Duration = Duration::from_secs(10);
/// How often it is looked whether EdgeHub has got the certificate.
const CERTIFICATE: Duration = Duration::from_secs(1);

/// The module.
pub struct EdgeStream {
    settings: Settings,
    hub: HubSettings,
    agent: edged::Settings,
    api: NodeApi,
    wanted: watch::Sender<Wanted>,
    /// The name of the tunnel that is served.
    served: Mutex<Option<Id>>,
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
    #[error("the cloud does not know this tunnel any more")]
    Forgotten,
    #[error("edgecore stops")]
    Stopping,
}

/// When the node has a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nobody asks for one.
    Nothing,
    /// All the time: this cloud never asks.
    Always,
    /// The cloud asked for one at this time; that which stands is not known there.
    Since(Instant),
}

impl EdgeStream {
    /// A tunnel with these settings, the hub's certificate and the agent's name and address; `api` answers.
    pub fn new(settings: Settings, hub: HubSettings, agent: edged::Settings, api: NodeApi) -> Self {
        Self { settings, hub, agent, api, wanted: watch::Sender::new(Wanted::Nothing), served: Mutex::default() }
    }

    async fn serve(&self, stopping: &CancellationToken) {
        let mut wanted = self.wanted.subscribe();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut is_told = false;
        // One that closes or does not answer is left for the next.
        for server in self.settings.servers.iter().cycle() {
            if stopping.run_until_cancelled(wanted.wait_for(|wanted| *wanted != Wanted::Nothing)).await.is_none() {
                return;
            }
            let (ended, lasted) = self.once(server, &mut wanted, stopping).await;
            if stopping.is_cancelled() {
                return;
            }
            let cause = chain(&ended);
            if lasted.is_some() {
                is_told = false;
            }
            if self.is_done(&mut wanted, lasted.is_some()) {
                match lasted.is_some() {
                    true => info!(cause, "the stream tunnel is closed until it is wanted again"),
                    false => warn!(server, cause, "no stream tunnel: kubectl logs and exec do not reach this node"),
                }
                is_told = false;
                backoff.reset();
                continue;
            }
            if lasted.is_some_and(|lasted| lasted >= GOOD_AFTER) {
                backoff.reset();
            }
            let wait = backoff.next_wait();
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
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // Somebody waits.
                _ = wanted.changed() => backoff.reset(),
            }
        }
    }

    /// Whether the cloud that asked for a tunnel has had it, or has given up, and has not asked again.
    fn is_done(&self, wanted: &mut watch::Receiver<Wanted>, stood: bool) -> bool {
        let is_same = !wanted.has_changed().unwrap_or_default();
        let served = *wanted.borrow();
        let Wanted::Since(asked) = served else { return false };
        is_same
            && (stood || asked.elapsed() >= PATIENCE)
            && self.wanted.send_if_modified(|now| {
                let is_same = *now == served;
                if is_same {
                    *now = Wanted::Nothing;
                }
                is_same
            })
    }

    /// One tunnel; how long it lasted, if it came about. `wanted` has seen then what it was for.
    async fn once(
        &self,
        server: &str,
        wanted: &mut watch::Receiver<Wanted>,
        stopping: &CancellationToken,
    ) -> (Ended, Option<Duration>) {
        let connected = stopping.run_until_cancelled(self.connect(server, None)).await;
        wanted.mark_unchanged();
        let (frames, headers) = match connected {
            Some(Ok(connected)) => connected,
            Some(Err(ended)) => return (ended, None),
            None => return (Ended::Stopping, None),
        };
        let is_ours = tunnel::has_http2(&headers);
        info!(server, http2 = is_ours, "the stream tunnel stands");
        let began = Instant::now();
        *self.served() = tunnel::name(&headers).filter(|_| is_ours);
        let serving = async {
            match is_ours {
                true => self.serve_ours(server, (frames, headers), stopping).await,
                false => upstream::serve(frames, &self.api, stopping).await,
            }
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = asked_again(wanted.clone()) => Ended::Forgotten,
        };
        *self.served() = None;
        (ended, Some(began.elapsed()))
    }

    /// A tunnel to a cloudcore of ours.
    async fn serve_ours(&self, server: &str, first: Connected<tunnel::Io>, stopping: &CancellationToken) -> Ended {
        let again = |server, resume| self.connect(server, Some(resume));
        resumed::serve(first, (server, &self.settings.servers), again, &self.api, stopping).await
    }

    /// What EdgeHub says of the cloud, and what the cloud asks for.
    fn hear(&self, message: &Message) {
        let is = |text: &str| message.content == Content::text(text);
        match message.route.operation.as_str() {
            on_demand::OPEN if self.served().is_some_and(|id| is(&id.to_string())) => {
                debug!("the cloud waits for the tunnel that was cut");
            }
            on_demand::OPEN => drop(self.wanted.send_replace(Wanted::Since(Instant::now()))),
            operation::CONNECT => {
                let asks = is(on_demand::OPEN);
                self.wanted.send_if_modified(|wanted| {
                    let now = match *wanted {
                        _ if !asks => Wanted::Always,
                        Wanted::Always => Wanted::Nothing,
                        other => other,
                    };
                    std::mem::replace(wanted, now) != now
                });
            }
            other => debug!(operation = other, "a message that EdgeStream does not know"),
        }
    }

    fn served(&self) -> MutexGuard<'_, Option<Id>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, to go on with a tunnel or for another one.
    async fn connect(&self, server: &str, resume: Option<Resume>) -> Result<Connected<tunnel::Io>, Ended> {
        let tls = self.certificate().await.map_err(Ended::Certificate)?;
        let mut headers = vec![("sessionhostnameoverride", self.agent.node_name.clone()), (FEATURES, HTTP2.to_owned())];
        let address = facts::addresses(&self.agent).into_iter().next();
        headers.extend(address.map(|address| ("sessioninternalip", address.to_string())));
        headers.push((on_demand::PROCESS, crate::process()));
        let mut deadline = self.settings.handshake_timeout;
        if let Some(resume) = resume {
            headers.push((RESUME, resume.to_string()));
            deadline = deadline.min(RESUMING);
        }
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
        module::EDGE_STREAM
    }

    fn group(&self) -> &'static str {
        module::EDGE_STREAM
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            if !context.has_module(module::EDGE_HUB) {
                self.wanted.send_replace(Wanted::Always);
            }
            let listening = async {
                while let Some(message) = inbox.recv().await {
                    self.hear(&message);
                }
            };
            tokio::select! {
                () = self.serve(context.token()) => {}
                () = listening => {}
            }
            Ok(())
        })
    }
}

/// Resolves when the cloud asks for a tunnel from now on.
async fn asked_again(mut wanted: watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {
        if matches!(*wanted.borrow_and_update(), Wanted::Since(_)) {
            return;
        }
    }
    std::future::pending().await
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
