//! EdgeHub: the node's link to the cloud.
//!
//! `certificates` gets and renews the node's identity; `connection` stands for one connection, with `reading` and `sending` as its
//! halves; what must not be lost while there is none is kept by [`session::edge`], [`link::rate`] holds the sending rate. This file joins
//! them: connect, serve, wait a little, again.

mod acked;
mod certificates;
mod connection;
mod reading;
mod sending;

use std::time::Duration;

use api::edgecore::{Config, EdgeHub as Settings};
use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, compose};
use link::backoff::Backoff;
use session::edge::Outbox;
use tracing::{error, info, warn};
use wire::{Content, Message, group, inventory, kind, module, on_demand, operation, source};

use certificates::Certificates;
pub(crate) use certificates::{CertificateError, present};

/// The first wait before connecting again; with jitter it is between a quarter and a half second.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait before connecting again: a node is back soon after the cloud is, and a thousand of them that try this often
/// cost the cloud nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// A connection that lasted so long was a good one; after one that the cloud ends at once, waits go on growing.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// The module.
pub struct EdgeHub {
    settings: Settings,
    agent: edged::Settings,
    certificates: Certificates,
    outbox: Outbox,
}

impl EdgeHub {
    /// With the settings of `modules.edgeHub`; nothing is done before the module runs.
    pub fn new(config: &Config) -> Self {
        let settings = config.edge_hub();
        let certificates = Certificates::new(config.node_name(), settings.clone(), &config.path);
        Self { settings, agent: crate::settings::edged(config), certificates, outbox: Outbox::default() }
    }

    async fn serve(&mut self, context: &Context, inbox: &mut Inbox) -> Result<(), ModuleError> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        // One that closes or does not answer is left for the next.
        for server in self.settings.servers.clone().into_iter().cycle() {
            let target = connection::Cloud { settings: &self.settings, server: &server, agent: &self.agent };
            let ended = connection::run(&target, &mut self.certificates, context, inbox, &mut self.outbox).await;
            if matches!(ended.cause, HubError::Stopping) {
                return Ok(());
            }
            if let Some(lasted) = ended.lasted {
                if lasted >= GOOD_AFTER {
                    backoff.reset();
                }
                keeping(context, inbox, &mut self.outbox, tell_connection(context, false)).await;
            }
            report(&ended.cause);
            let wait = backoff.next_wait();
            info!(wait_ms = wait.as_millis(), "connecting again soon");
            tokio::select! {
                () = context.stopping() => return Ok(()),
                () = self.keep_while_waiting(context, inbox, wait) => {}
            }
        }
        // Validated settings name one at least.
        Ok(())
    }

    /// Requests get their answer at once while there is no link; the rest is kept.
    async fn keep_while_waiting(&mut self, context: &Context, inbox: &mut Inbox, wait: Duration) {
        let end = tokio::time::Instant::now() + wait;
        while let Ok(Some(message)) = tokio::time::timeout_at(end, inbox.recv()).await {
            keep_or_refuse(context, &mut self.outbox, message);
        }
        tokio::time::sleep_until(end).await;
    }
}

impl Module for EdgeHub {
    fn name(&self) -> &'static str {
        module::EDGE_HUB
    }

    fn group(&self) -> &'static str {
        group::HUB
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move { self.serve(&context, inbox).await })
    }
}

/// Why there is no connection (any more).
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The node has no usable certificate and cannot get one.
    #[error("the node has no valid certificate")]
    Certificate(#[source] CertificateError),
    /// Connecting, reading or writing failed.
    #[error("the link to the cloud failed")]
    Link(#[source] link::ws::LinkError),
    /// Nothing was heard for too long.
    #[error("nothing was heard from the cloud for {} s", .0.as_secs())]
    Silent(Duration),
    /// The cloud closed the connection.
    #[error("the cloud closed the connection: {0}")]
    Closed(String),
    /// The node has a new certificate.
    #[error("connecting again with the new certificate")]
    Rotated,
    /// The process is to stop.
    #[error("edgecore stops")]
    Stopping,
}

/// How a connection ended.
struct Ended {
    cause: HubError,
    /// `None` when it did not come about.
    lasted: Option<Duration>,
}

/// Waits, and keeps the bus moving meanwhile: who is waited for may himself wait for room in this inbox.
async fn keeping<T>(
    context: &Context,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    waiting: impl std::future::Future<Output = T>,
) -> T {
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            biased;
            ended = &mut waiting => return ended,
            Some(message) = inbox.recv() => keep_or_refuse(context, outbox, message),
        }
    }
}

/// A message without link: a request is refused, an acknowledgement is void, the rest waits.
fn keep_or_refuse(context: &Context, outbox: &mut Outbox, message: Message) {
    if context.is_waiting(&message.header.msg_id) {
        refuse(context, &message, OUT_OF_REACH);
    } else if message.route.operation != operation::RESPONSE && !is_said_again(&message) {
        tell_lost(outbox.keep(message));
    }
}

/// Whether the one who says it does so again, in the latest version, until the cloud has confirmed it: DeviceTwin. An older one kept here would
/// come after that.
fn is_said_again(message: &Message) -> bool {
    message.route.source == source::TWIN
}

fn tell_lost(dropped: usize) {
    if dropped > 0 {
        warn!(dropped, "too much waits for the link; the oldest messages are dropped");
    }
}

/// Why a request is refused while there is no link.
const OUT_OF_REACH: &str = "the cloud is out of reach";

/// Tells the one who waits for an answer, if anybody does, that none will come.
fn refuse(context: &Context, request: &Message, why: &str) {
    let mut refusal = compose::error(request, why);
    refusal.route.source = source::META_MANAGER.to_owned();
    context.respond(refusal);
}

/// Tells the other modules that the link stands or does not.
async fn tell_connection(context: &Context, connected: bool) {
    let text = if connected { "cloud_connected" } else { "cloud_disconnected" };
    for module in [module::META_MANAGER, module::EDGED, module::TWIN] {
        if !context.has_module(module) {
            continue;
        }
        let news = compose::message(
            source::EDGE_HUB_EVENTS,
            group::META,
            operation::CONNECT,
            kind::NODE_CONNECTION,
            Content::text(text),
        );
        if let Err(error) = context.send(module, news).await {
            warn!(%error, "a module was not told of the connection");
        }
    }
}

/// Tells MetaManager that this cloud says when it has sent everything.
async fn tell_inventory(context: &Context) {
    let (from, about) = (source::EDGE_HUB_EVENTS, inventory::RESOURCE);
    let news = compose::message(from, group::META, operation::CONNECT, about, Content::null());
    if let Err(error) = context.send(module::META_MANAGER, news).await {
        warn!(%error, "MetaManager was not told of the cloud");
    }
}

/// Tells EdgeStream whether this cloud asks for the tunnel.
async fn tell_streams(context: &Context, is_asked: bool) {
    if !context.has_module(module::EDGE_STREAM) {
        return;
    }
    let (from, about) = (source::EDGE_HUB_EVENTS, on_demand::RESOURCE);
    let content = Content::text(if is_asked { on_demand::OPEN } else { "" });
    let news = compose::message(from, group::META, operation::CONNECT, about, content);
    if let Err(error) = context.send(module::EDGE_STREAM, news).await {
        warn!(%error, "EdgeStream was not told of the cloud");
    }
}

fn report(cause: &HubError) {
    let mut text = cause.to_string();
    let mut inner = std::error::Error::source(cause);
    while let Some(error) = inner {
        text.push_str(": ");
        text.push_str(&error.to_string());
        inner = error.source();
    }
    match cause {
        HubError::Certificate(error) if error.needs_a_person() => error!(cause = %text, "the node cannot join"),
        HubError::Rotated => info!(cause = %text, "disconnected"),
        _ => warn!(cause = %text, "no connection to the cloud"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beehive::INBOX;
    use tokio_util::sync::CancellationToken;

    fn status(number: usize) -> Message {
        let resource = format!("default/podpatch/{number}");
        compose::message(source::EDGED, group::META, operation::UPDATE, &resource, Content::null())
    }

    #[tokio::test(start_paused = true)]
    async fn telling_of_the_connection_waits_for_nobody_who_waits_for_the_hub() {
        let modules = [(module::EDGE_HUB, group::HUB), (module::META_MANAGER, group::META)];
        let (context, inboxes) = Context::new(&modules, CancellationToken::new());
        let [mut hub, mut meta]: [Inbox; 2] = inboxes.try_into().map_err(|_| "two").expect("two");
        for number in 0..INBOX {
            context.send(module::EDGE_HUB, status(number)).await.expect("room");
            context.send(module::META_MANAGER, status(number)).await.expect("room");
        }
        // As MetaManager does: a message is passed on before the next is taken.
        let passing_on = async {
            while let Some(message) = meta.recv().await {
                if message.route.resource == kind::NODE_CONNECTION {
                    return message.content;
                }
                context.send(module::EDGE_HUB, message).await.expect("hub");
            }
            Content::null()
        };
        let mut outbox = Outbox::default();
        let telling = async {
            // By now MetaManager has one message in hand, and another has taken its place.
            context.send(module::META_MANAGER, status(INBOX)).await.expect("room");
            keeping(&context, &mut hub, &mut outbox, tell_connection(&context, false)).await;
            keeping(&context, &mut hub, &mut outbox, std::future::pending::<()>()).await;
        };
        let both = async {
            tokio::select! {
                biased;
                told = passing_on => told,
                () = telling => Content::null(),
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(60), both).await.expect("neither waits for ever");
        assert_eq!(told, Content::text("cloud_disconnected"));
        assert!(!outbox.is_empty(), "what came meanwhile is kept");
    }
}
