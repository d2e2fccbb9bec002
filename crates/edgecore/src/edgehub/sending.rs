//! What goes to the cloud: heartbeats, and the modules' messages in their order and at a bounded rate.

use std::collections::HashMap;
use std::time::Duration;

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox, compose};
use link::ws::{LinkError, Received, Writer};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::error;
use wire::{Content, MAX_MESSAGE_BYTES, Message, Route, group, kind, operation, source};

use super::outbox::Outbox;
use super::rate::Rate;
use super::{HubError, OUT_OF_REACH, refuse};

/// The part of the sending rate's burst that events leave for requests and status: many pods that start at once make many
/// events.
const KEPT_FROM_EVENTS: f64 = 0.75;
/// At the end, what the modules still say is sent: until they are quiet for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … or this is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Requests that are remembered before those with an answer are forgotten.
const MAX_ANSWERED: usize = 256;

/// The sending half of a connection.
pub(super) struct Sending<'a> {
    settings: &'a Settings,
    context: &'a Context,
    writer: Writer,
    pulse: Pulse,
    rate: Rate,
    /// What is being sent; it stays here when that fails or is broken off.
    in_hand: Option<Message>,
    /// What was sent and has no answer yet.
    asked: Asked,
}

/// Requests on their way: id and path.
#[derive(Default)]
struct Asked(HashMap<String, String>);

impl<'a> Sending<'a> {
    pub(super) fn new(settings: &'a Settings, context: &'a Context, writer: Writer, received: Received) -> Self {
        let pulse = Pulse { received, deadline: settings.read_deadline, asked: None };
        let rate = Rate::new(settings.message_qps, settings.message_burst);
        Self { settings, context, writer, pulse, rate, in_hand: None, asked: Asked::default() }
    }

    /// Sends until the connection breaks. The bus is read all the time: what may not be sent yet waits in the outbox, and
    /// what is urgent overtakes it.
    pub(super) async fn run(&mut self, inbox: &mut Inbox, outbox: &mut Outbox) -> HubError {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reserve = if outbox.has_only_events() { KEPT_FROM_EVENTS } else { 0.0 };
            let ready_at = self.rate.ready_at(reserve);
            let sent = tokio::select! {
                biased;
                _ = heartbeat.tick() => self.beat().await,
                silent = self.pulse.missed() => return HubError::Silent(silent),
                message = inbox.recv(), if outbox.has_room() => match message {
                    Some(message) if is_urgent(&message) => self.put(message).await,
                    Some(message) => {
                        outbox.queue(message);
                        Ok(())
                    }
                    // The bus lives longer than this module.
                    None => return HubError::Closed("edgecore ends".to_owned()),
                },
                () = tokio::time::sleep_until(ready_at), if !outbox.is_empty() => {
                    self.rate.take();
                    self.put_next(outbox).await
                }
            };
            if let Err(error) = sent {
                return HubError::Link(error);
            }
        }
    }

    /// After the process was asked to stop: what the modules have said, then the end of the connection.
    pub(super) async fn finish(mut self, inbox: &mut Inbox, outbox: &mut Outbox) {
        let last_words = async {
            while !outbox.is_empty() {
                self.put_next(outbox).await?;
            }
            while let Ok(Some(message)) = tokio::time::timeout(QUIET, inbox.recv()).await {
                self.put(message).await?;
            }
            Ok::<(), LinkError>(())
        };
        if let Ok(Ok(())) = tokio::time::timeout(LAST_WORDS, last_words).await {
            self.writer.close("edgecore stops").await;
        }
    }

    async fn put_next(&mut self, outbox: &mut Outbox) -> Result<(), LinkError> {
        match outbox.take() {
            Some(message) => self.put(message).await,
            None => Ok(()),
        }
    }

    async fn put(&mut self, mut message: Message) -> Result<(), LinkError> {
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
        let message = self.in_hand.insert(message);
        self.writer.send(line).await?;
        self.asked.add(self.context, message);
        self.in_hand = None;
        Ok(())
    }

    /// After the connection broke: who was asked cannot answer any more, and what was not sent comes back.
    pub(super) fn into_unsent(self) -> Option<Message> {
        self.asked.refuse_all(self.context);
        self.in_hand
    }

    /// The heartbeat that the cloud expects, and a ping that it must answer.
    async fn beat(&mut self) -> Result<(), LinkError> {
        let ping = Content::text("ping");
        let beat =
            compose::message(source::EDGE_HUB, group::RESOURCE, operation::KEEPALIVE, kind::NODE, ping).to_json();
        self.writer.send([beat.as_slice(), b"\n"].concat()).await?;
        self.pulse.ask();
        self.writer.ping().await
    }
}

impl Asked {
    fn add(&mut self, context: &Context, message: &Message) {
        if self.0.len() >= MAX_ANSWERED {
            self.0.retain(|id, _| context.is_waiting(id));
        }
        // Of what nobody waits for, an answer is not missed.
        if context.is_waiting(&message.header.msg_id) {
            self.0.insert(message.header.msg_id.clone(), message.route.resource.clone());
        }
    }

    /// Answers come by the connection of their request alone: those who wait hear at once that none will come.
    fn refuse_all(self, context: &Context) {
        for (id, resource) in self.0.into_iter().filter(|(id, _)| context.is_waiting(id)) {
            let route = Route::new(source::EDGED, group::META, operation::QUERY, &resource);
            refuse(context, &Message::new(id, compose::now(), route, Content::null()), OUT_OF_REACH);
        }
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

/// A late lease makes a living node look dead; a late acknowledgement makes the cloud send again.
fn is_urgent(message: &Message) -> bool {
    message.route.operation == operation::RESPONSE || message.route.resource.contains("/lease/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;
    use wire::module;

    #[tokio::test]
    async fn a_broken_link_ends_the_wait_for_answers() {
        let (context, mut inboxes) = Context::new(&[(module::EDGE_HUB, group::HUB)], CancellationToken::new());
        let request = compose::message("edged", "meta", operation::QUERY, "default/secret/s", Content::null());
        let asking = context.send_sync(module::EDGE_HUB, request, Duration::from_secs(60));
        let breaking = async {
            let sent = inboxes[0].recv().await.expect("the request");
            let mut asked = Asked::default();
            asked.add(&context, &sent);
            for number in 0..2 * MAX_ANSWERED {
                // Answered long ago, or no request at all.
                asked.0.insert(number.to_string(), "default/secret/s".to_owned());
            }
            asked.add(&context, &sent);
            assert_eq!(asked.0.len(), 1, "memory is bounded");
            asked.refuse_all(&context);
        };
        let (answer, ()) = tokio::join!(asking, breaking);
        let answer = answer.expect("an answer");
        assert_eq!((answer.route.operation.as_str(), answer.content), ("error", Content::text(OUT_OF_REACH)));
    }

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
