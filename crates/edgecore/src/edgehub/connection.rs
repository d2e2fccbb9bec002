//! One connection: from the upgrade until it breaks.

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox, compose};
use link::ws::{self, Incoming, Reader, Target, Writer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};
use wire::{Content, Message, group, kind, module, operation, source};

use super::certificates::Certificates;
use super::outbox::Outbox;
use super::rate::Rate;
use super::{Ended, HubError, keep_or_refuse, tell_connection};

/// Connects and serves until the connection ends.
pub(super) async fn run(
    settings: &Settings,
    certificates: &mut Certificates,
    context: &Context,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
) -> Ended {
    let before = |cause| Ended { cause, was_connected: false };
    // The bus must not stand still meanwhile: requests are refused, the rest is kept.
    let connected = {
        let connecting = connect(settings, certificates);
        tokio::pin!(connecting);
        loop {
            tokio::select! {
                connected = &mut connecting => break connected,
                Some(message) = inbox.recv() => keep_or_refuse(context, outbox, message),
            }
        }
    };
    let (reader, writer) = match connected {
        Ok(halves) => halves,
        Err(cause) => return before(cause),
    };
    info!(server = settings.server, "connected to the cloud");
    tell_connection(context, true).await;
    let (heard, last_heard) = watch::channel(Instant::now());
    let mut reading = JoinSet::new();
    reading.spawn(read(reader, context.clone(), heard));
    let mut sending = Sending {
        settings,
        context,
        writer,
        rate: Rate::new(settings.message_qps, settings.message_burst),
        held: None,
    };
    let cause = tokio::select! {
        cause = sending.run(inbox, outbox, last_heard) => cause,
        Some(cause) = reading.join_next() => cause.unwrap_or_else(|error| HubError::Closed(error.to_string())),
        () = certificates.rotate_in_time() => HubError::Rotated,
    };
    if let Some(message) = sending.held.take() {
        keep_or_refuse(context, outbox, message);
    }
    Ended { cause, was_connected: true }
}

async fn connect(settings: &Settings, certificates: &mut Certificates) -> Result<(Reader, Writer), HubError> {
    let tls = certificates.tls().await.map_err(HubError::Certificate)?;
    let node = certificates.node().to_owned();
    let target = Target {
        url: format!("wss://{}/{}/{node}/events", settings.server, settings.project_id),
        headers: vec![
            ("node_id", node),
            ("project_id", settings.project_id.clone()),
            ("connectionuse", "msg".to_owned()),
        ],
        tls,
        connect_deadline: settings.handshake_timeout,
        write_deadline: settings.write_deadline,
    };
    let (reader, writer, _) = ws::connect(&target).await.map_err(HubError::Link)?;
    Ok((reader, writer))
}

/// Hands what arrives to the modules. It runs apart from the sending, so that neither waits for the other.
async fn read(mut reader: Reader, context: Context, heard: watch::Sender<Instant>) -> HubError {
    loop {
        let incoming = match reader.next().await {
            Ok(incoming) => incoming,
            Err(error) => return HubError::Link(error),
        };
        heard.send_replace(Instant::now());
        match incoming {
            Incoming::Alive => {}
            Incoming::Closed(reason) => return HubError::Closed(reason),
            Incoming::Message(frame) => match Message::parse(&frame) {
                Ok(message) => route(&context, message).await,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    error!(%error, cause, bytes = frame.len(), "the cloud sent what is no message; it is left out");
                }
            },
        }
    }
}

/// Which module a message is for (KubeEdge v1.23: by group, then by whether it answers something).
async fn route(context: &Context, message: Message) {
    let answers = !message.header.parent_msg_id.is_empty();
    let target = match message.route.group.as_str() {
        group::RESOURCE | group::FUNC if answers => {
            if !context.respond(message) {
                debug!("an answer came too late");
            }
            return;
        }
        group::RESOURCE | group::FUNC => module::META_MANAGER,
        group::TWIN => module::TWIN,
        group::USER if message.route.source == source::ROUTER_EVENT_BUS => module::EVENT_BUS,
        group::USER if message.route.source == source::ROUTER_SERVICE_BUS => module::SERVICE_BUS,
        group::TASK_MANAGER => module::TASK_MANAGER,
        _ => {
            let route = &message.route;
            error!(group = route.group, resource = route.resource, "a message of an unknown group is left out");
            return;
        }
    };
    let resource = message.route.resource.clone();
    if let Err(error) = context.send(target, message).await {
        error!(%error, resource, "a message of the cloud cannot be handed over");
    }
}

struct Sending<'a> {
    settings: &'a Settings,
    context: &'a Context,
    writer: Writer,
    rate: Rate,
    /// A message that waits for the rate, or whose sending failed.
    held: Option<Message>,
}

impl Sending<'_> {
    async fn run(&mut self, inbox: &mut Inbox, outbox: &mut Outbox, heard: watch::Receiver<Instant>) -> HubError {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut allowed_at = Instant::now();
        loop {
            let may_send = Instant::now() >= allowed_at;
            tokio::select! {
                biased;
                _ = heartbeat.tick() => {
                    let silent = heard.borrow().elapsed();
                    if silent > self.settings.read_deadline {
                        return HubError::Silent(silent);
                    }
                    if let Err(cause) = self.beat().await {
                        return cause;
                    }
                }
                () = tokio::time::sleep_until(allowed_at), if !may_send => {}
                message = next(&mut self.held, outbox, inbox), if may_send => {
                    // The bus lives longer than this module.
                    let Some(message) = message else { return HubError::Closed("edgecore ends".to_owned()) };
                    if !is_urgent(&message) && let Err(at) = self.rate.take() {
                        allowed_at = at;
                        self.held = Some(message);
                        continue;
                    }
                    if let Err(error) = self.writer.send(line(&message)).await {
                        self.held = Some(message);
                        return HubError::Link(error);
                    }
                }
            }
        }
    }

    /// The heartbeat that the cloud expects, and a ping that it must answer.
    async fn beat(&mut self) -> Result<(), HubError> {
        let beat = compose::message(
            source::EDGE_HUB,
            group::RESOURCE,
            operation::KEEPALIVE,
            kind::NODE,
            Content::text("ping"),
        );
        let _ = self.context;
        self.writer.send(line(&beat)).await.map_err(HubError::Link)?;
        self.writer.ping().await.map_err(HubError::Link)
    }
}

async fn next(held: &mut Option<Message>, outbox: &mut Outbox, inbox: &mut Inbox) -> Option<Message> {
    if let Some(message) = held.take() {
        return Some(message);
    }
    match outbox.take() {
        Some(message) => Some(message),
        None => inbox.recv().await,
    }
}

/// A late lease makes a living node look dead; a late acknowledgement makes the cloud send again.
fn is_urgent(message: &Message) -> bool {
    message.route.operation == operation::RESPONSE || message.route.resource.contains("/lease/")
}

fn line(message: &Message) -> Vec<u8> {
    let mut line = message.to_json();
    if line.len() > wire::MAX_MESSAGE_BYTES {
        warn!(
            resource = message.route.resource,
            bytes = line.len(),
            "a message is over the limit; the cloud will refuse it"
        );
    }
    line.push(b'\n');
    line
}
