//! What goes to the cloud: heartbeats, and the modules' messages in their order and at a bounded rate.

use std::time::Duration;

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox, compose};
use link::ws::{Received, Writer};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::error;
use wire::{Content, MAX_MESSAGE_BYTES, Message, group, kind, operation, source};

use super::outbox::Outbox;
use super::rate::Rate;
use super::{HubError, keep_or_refuse, refuse};

/// At the end, what the modules still say is sent: until they are quiet for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … or this is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The sending half of a connection.
pub(super) struct Sending<'a> {
    settings: &'a Settings,
    context: &'a Context,
    writer: Writer,
    pulse: Pulse,
    rate: Rate,
    /// A message that waits for the rate, or whose sending failed.
    held: Option<Message>,
}

impl<'a> Sending<'a> {
    pub(super) fn new(settings: &'a Settings, context: &'a Context, writer: Writer, received: Received) -> Self {
        let pulse = Pulse { received, deadline: settings.read_deadline, asked: None };
        let rate = Rate::new(settings.message_qps, settings.message_burst);
        Self { settings, context, writer, pulse, rate, held: None }
    }

    /// Sends until the connection breaks.
    pub(super) async fn run(&mut self, inbox: &mut Inbox, outbox: &mut Outbox) -> HubError {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut allowed_at = Instant::now();
        loop {
            let may_send = Instant::now() >= allowed_at;
            tokio::select! {
                biased;
                _ = heartbeat.tick() => {
                    if let Err(error) = self.beat().await {
                        return HubError::Link(error);
                    }
                }
                silent = self.pulse.missed() => return HubError::Silent(silent),
                () = tokio::time::sleep_until(allowed_at), if !may_send => {}
                message = next(&mut self.held, outbox, inbox), if may_send => {
                    // The bus lives longer than this module.
                    let Some(message) = message else { return HubError::Closed("edgecore ends".to_owned()) };
                    if !is_urgent(&message) && let Err(at) = self.rate.take() {
                        allowed_at = at;
                        self.held = Some(message);
                        continue;
                    }
                    if let Err(error) = self.put(message).await {
                        return HubError::Link(error);
                    }
                }
            }
        }
    }

    /// After the process was asked to stop: what the modules have said, then the end of the connection.
    pub(super) async fn finish(mut self, inbox: &mut Inbox, outbox: &mut Outbox) {
        let last_words = async {
            while let Ok(Some(message)) = tokio::time::timeout(QUIET, next(&mut self.held, outbox, inbox)).await {
                if self.put(message).await.is_err() {
                    return;
                }
            }
            self.writer.close("edgecore stops").await;
        };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
    }

    /// After the connection broke: the message that was not sent waits with the others.
    pub(super) fn give_back(self, outbox: &mut Outbox) {
        if let Some(message) = self.held {
            keep_or_refuse(self.context, outbox, message);
        }
    }

    async fn put(&mut self, mut message: Message) -> Result<(), link::ws::LinkError> {
        // Only the bus knows this mark.
        message.header.sync = false;
        let mut line = message.to_json();
        line.push(b'\n');
        if line.len() > MAX_MESSAGE_BYTES {
            let resource = message.route.resource.as_str();
            let (bytes, limit) = (line.len(), MAX_MESSAGE_BYTES);
            error!(resource, bytes, limit, "a message is over the limit and not sent: make the object smaller");
            refuse(self.context, &message, &format!("{resource} has {bytes} bytes, over the limit of {limit}"));
            return Ok(());
        }
        let sent = self.writer.send(line).await;
        if sent.is_err() {
            self.held = Some(message);
        }
        sent
    }

    /// The heartbeat that the cloud expects, and a ping that it must answer.
    async fn beat(&mut self) -> Result<(), link::ws::LinkError> {
        let ping = Content::text("ping");
        let beat =
            compose::message(source::EDGE_HUB, group::RESOURCE, operation::KEEPALIVE, kind::NODE, ping).to_json();
        self.writer.send([beat.as_slice(), b"\n"].concat()).await?;
        self.pulse.ask();
        self.writer.ping().await
    }
}

/// Whether the cloud is alive: something must arrive within the deadline after each ping. Bytes count, not messages, so
/// that a long message on a slow line is life.
struct Pulse {
    received: Received,
    deadline: Duration,
    /// When the cloud was asked, and how much had arrived by then.
    asked: Option<(Instant, u64)>,
}

impl Pulse {
    fn ask(&mut self) {
        let count = self.received.count();
        match self.asked {
            // The last question has no answer yet: its deadline stands.
            Some((_, before)) if before == count => {}
            _ => self.asked = Some((Instant::now(), count)),
        }
    }

    /// Resolves when the cloud was silent for too long; never while nothing was asked. May be dropped and called again.
    async fn missed(&mut self) -> Duration {
        if let Some((at, before)) = self.asked {
            tokio::time::sleep_until(at + self.deadline).await;
            if self.received.count() == before {
                return at.elapsed();
            }
            self.asked = None;
        }
        std::future::pending().await
    }
}

async fn next(held: &mut Option<Message>, outbox: &mut Outbox, inbox: &mut Inbox) -> Option<Message> {
    match held.take().or_else(|| outbox.take()) {
        Some(message) => Some(message),
        None => inbox.recv().await,
    }
}

/// A late lease makes a living node look dead; a late acknowledgement makes the cloud send again.
fn is_urgent(message: &Message) -> bool {
    message.route.operation == operation::RESPONSE || message.route.resource.contains("/lease/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_after_the_deadline_and_bytes_are_life() {
        let received = Received::default();
        let mut pulse = Pulse { received: received.clone(), deadline: Duration::from_secs(15), asked: None };
        let wait = Duration::from_secs(40);
        assert!(tokio::time::timeout(wait, pulse.missed()).await.is_err(), "nothing was asked");
        pulse.ask();
        received.add(1);
        assert!(tokio::time::timeout(wait, pulse.missed()).await.is_err(), "one byte came");
        pulse.ask();
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        pulse.ask();
        pulse.missed().await;
        assert!(asked.elapsed() < Duration::from_secs(16), "a second question does not put the deadline off");
    }
}
