//! What goes to the cloud: heartbeats, and the modules' messages in their order and at a bounded rate.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox, compose};
use link::rate::Rate;
use link::ws::{LinkError, Received, Writer};
use session::edge::Outbox;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::error;
use wire::{Content, Features, MAX_MESSAGE_BYTES, Message, Route, acks, batch, group, kind, operation, source};

use super::acked::Acked;
use super::{HubError, OUT_OF_REACH, is_said_again, refuse, tell_lost};

/// The part of the sending rate's burst that events leave for requests and status: many pods that start at once make many
/// events.
const KEPT_FROM_EVENTS: f64 = 0.75;
/// At the end, what the modules still say is sent: until they are quiet for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … or this is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Messages that are sent together at most, and bytes of contents; one message may have any size.
const MAX_TOGETHER: usize = 128;
const MAX_BYTES_TOGETHER: usize = 128 << 10;

/// Requests that are remembered before those with an answer are forgotten.
const MAX_ANSWERED: usize = 256;

/// The sending half of a connection.
pub(super) struct Sending<'a> {
    settings: &'a Settings,
    context: &'a Context,
    writer: Writer,
    pulse: Pulse,
    rate: Rate,
    features: Features,
    acked: Acked,
    /// What is being sent; it stays here when that fails or is broken off.
    in_hand: VecDeque<Message>,
    /// What was sent and has no answer yet.
    asked: Asked,
}

/// Requests on their way: id and path.
#[derive(Default)]
struct Asked(HashMap<String, String>);

impl<'a> Sending<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        context: &'a Context,
        writer: Writer,
        received: Received,
        features: Features,
        acked: Acked,
    ) -> Self {
        let pulse = Pulse { received, deadline: settings.read_deadline, asked: None };
        let rate = Rate::new(settings.message_qps, settings.message_burst);
        let (in_hand, asked) = (VecDeque::new(), Asked::default());
        Self { settings, context, writer, pulse, rate, features, acked, in_hand, asked }
    }

    /// Sends until the connection breaks. The bus is read all the time: what may not be sent yet waits in the outbox, and
    /// what is urgent overtakes it.
    pub(super) async fn run(&mut self, inbox: &mut Inbox, outbox: &mut Outbox) -> HubError {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ready_at = self.rate.ready_at(reserve(outbox));
            let due = outbox.next_due();
            let mut beat = false;
            tokio::select! {
                biased;
                _ = heartbeat.tick() => beat = true,
                silent = self.pulse.missed() => return HubError::Silent(silent),
                () = self.acked.arrived() => {}
                message = inbox.recv(), if outbox.has_room() => match message {
                    Some(message) => self.sort(message, outbox),
                    // The bus lives longer than this module.
                    None => return HubError::Closed("edgecore ends".to_owned()),
                },
                () = tokio::time::sleep_until(ready_at), if !outbox.is_empty() => {}
                () = sleep_until(due) => tell_lost(outbox.repeat(std::time::Instant::now())),
            };
            self.acked.take().iter().for_each(|id| outbox.acknowledged(id));
            while outbox.has_room()
                && self.in_hand.len() < MAX_TOGETHER
                && let Some(message) = inbox.try_recv()
            {
                self.sort(message, outbox);
            }
            self.fill(outbox, true);
            let sent = match beat {
                true => self.beat(outbox).await,
                false => self.send(outbox).await,
            };
            if let Err(error) = sent {
                return HubError::Link(error);
            }
        }
    }

    /// After the process was asked to stop: what the modules have said, then the end of the connection.
    pub(super) async fn finish(mut self, inbox: &mut Inbox, outbox: &mut Outbox) {
        let last_words = async {
            loop {
                while !outbox.is_empty() || !self.in_hand.is_empty() {
                    self.fill(outbox, false);
                    self.send(outbox).await?;
                }
                match tokio::time::timeout(QUIET, inbox.recv()).await {
                    Ok(Some(message)) => self.in_hand.push_back(message),
                    _ => return Ok::<(), LinkError>(()),
                }
            }
        };
        if let Ok(Ok(())) = tokio::time::timeout(LAST_WORDS, last_words).await {
            self.writer.close("edgecore stops").await;
        }
    }

    /// What is urgent is sent next, the rest in its turn.
    fn sort(&mut self, message: Message, outbox: &mut Outbox) {
        match is_urgent(&message) {
            true => self.in_hand.push_back(message),
            false => tell_lost(outbox.queue(message)),
        }
    }

    /// Takes what may be sent now.
    fn fill(&mut self, outbox: &mut Outbox, limited: bool) {
        let mut bytes: usize = self.in_hand.iter().map(|message| message.content.raw().len()).sum();
        while self.in_hand.len() < MAX_TOGETHER && bytes < MAX_BYTES_TOGETHER {
            if limited && self.rate.ready_at(reserve(outbox)) > Instant::now() {
                return;
            }
            let Some(message) = outbox.take() else { return };
            self.rate.take();
            bytes += message.content.raw().len();
            self.in_hand.push_back(message);
        }
    }

    /// Sends what is in hand; it stays there when that fails or is broken off.
    async fn send(&mut self, outbox: &mut Outbox) -> Result<(), LinkError> {
        self.gather_acks();
        if self.features.batch && !self.in_hand.is_empty() {
            let documents: Vec<Vec<u8>> =
                self.in_hand.iter_mut().filter_map(|message| document(self.context, message)).collect();
            self.writer.send_binary(batch::encode(documents.iter().map(Vec::as_slice))).await?;
            while let Some(message) = self.in_hand.pop_front() {
                self.sent(message, outbox);
            }
        }
        while let Some(message) = self.in_hand.front_mut() {
            if let Some(mut line) = document(self.context, message) {
                line.push(b'\n');
                self.writer.send(line).await?;
            }
            if let Some(message) = self.in_hand.pop_front() {
                self.sent(message, outbox);
            }
        }
        Ok(())
    }

    /// Acknowledgements travel together where both ends agreed on it.
    fn gather_acks(&mut self) {
        if !self.features.acks {
            return;
        }
        let ids: Vec<String> = self.in_hand.iter().filter_map(acks::single).map(str::to_owned).collect();
        if ids.len() > 1 {
            self.in_hand.retain(|message| acks::single(message).is_none());
            // Behind an answer that says what the node had before it stored these.
            self.in_hand.push_back(acks::of(&ids, source::EDGE_HUB, compose::id(), compose::now()));
        }
    }

    fn sent(&mut self, message: Message, outbox: &mut Outbox) {
        self.asked.add(self.context, &message);
        let is_answer = matches!(message.route.operation.as_str(), operation::RESPONSE | operation::ERROR);
        // Who waits for an answer repeats his request himself.
        let is_repeated = is_said_again(&message) || self.context.is_waiting(&message.header.msg_id);
        if self.features.acks && !is_answer && !is_repeated {
            outbox.sent(message, std::time::Instant::now());
        }
    }

    /// After the connection broke: who was asked cannot answer any more, and what was not sent comes back.
    pub(super) fn into_unsent(self) -> VecDeque<Message> {
        self.asked.refuse_all(self.context);
        self.in_hand
    }

    /// The heartbeat that the cloud expects, with what is in hand, and a ping that it must answer.
    async fn beat(&mut self, outbox: &mut Outbox) -> Result<(), LinkError> {
        let ping = Content::text("ping");
        let beat = compose::message(source::EDGE_HUB, group::RESOURCE, operation::KEEPALIVE, kind::NODE, ping);
        if self.features.batch {
            self.writer.send_binary(batch::encode([beat.to_json().as_slice()])).await?;
        } else {
            self.writer.send([beat.to_json().as_slice(), b"\n"].concat()).await?;
        }
        self.pulse.ask();
        self.writer.ping().await?;
        self.send(outbox).await
    }
}

/// The part of the sending rate that is left for others than those who wait.
fn reserve(outbox: &Outbox) -> f64 {
    if outbox.has_only_events() { KEPT_FROM_EVENTS } else { 0.0 }
}

/// The JSON document of a message; `None` when it is too long: whoever waits for an answer hears so.
fn document(context: &Context, message: &mut Message) -> Option<Vec<u8>> {
    // Only the bus knows this mark.
    message.header.sync = false;
    let document = message.to_json();
    if document.len() < MAX_MESSAGE_BYTES {
        return Some(document);
    }
    let resource = message.route.resource.as_str();
    let (bytes, limit) = (document.len(), MAX_MESSAGE_BYTES);
    error!(resource, bytes, limit, "a message is over the limit and not sent: make the object smaller");
    refuse(context, message, &format!("{resource} has {bytes} bytes, over the limit of {limit}"));
    None
}

/// Never, when there is no time.
async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
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

/// A late lease or node status makes a living node look dead; a late acknowledgement makes the cloud send again. Of devices few reports are
/// under way at a time, and the cloud says when it can take more.
fn is_urgent(message: &Message) -> bool {
    let kind = message.route.resource.split('/').nth(1).unwrap_or_default();
    message.route.operation == operation::RESPONSE
        || is_said_again(message)
        || matches!(kind, kind::LEASE | kind::NODE | kind::NODE_PATCH | kind::NODE_STATUS)
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
