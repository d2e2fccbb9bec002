//! The owner of sessions, subscriptions and retained messages: one task that does what connections ask for, in order.
//!
//! It never waits for a client: messages go into the [`Outbox`] of each. It waits for the disk only when that is far behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::access::Rights;
use crate::client_session::Session;
use crate::encode::{Version, reason, subscription_ack};
use crate::journal::{Change, Journal, Kept, Op};
use crate::message::{Message, Qos, Storing, unix_now};
use crate::outbox::{Bounds, Incoming, Outbox, Waiting};
use crate::packet::{Options, Refusal};
use crate::replies::{End, Replies, Token};
use crate::retained::Retained;
use crate::room::Place;
use crate::topic::Tree;

/// How often the router looks for what has expired.
const TICK: Duration = Duration::from_secs(1);
/// Filters of one client at most, and bytes in them.
const MAX_FILTERS: usize = 1000;
const MAX_FILTER_BYTES: usize = 256 << 10;

/// What connections and the broker ask of the router.
pub(crate) enum Event {
    Connect {
        join: Join,
        reply: oneshot::Sender<Result<Welcome, Refusal>>,
    },
    Publish {
        from: Option<u64>,
        message: Message,
        incoming: Option<(u16, bool)>,
        token: Option<Arc<Token>>,
        place: Place,
    },
    Subscribe {
        from: u64,
        packet_id: u16,
        filters: Vec<Result<(String, Options), u8>>,
        replies: Arc<Replies>,
        version: Version,
    },
    Unsubscribe {
        from: u64,
        packet_id: u16,
        filters: Vec<String>,
        replies: Arc<Replies>,
        version: Version,
    },
    Disconnect {
        from: u64,
        epoch: u64,
        expiry: Option<u32>,
    },
}

/// A client comes.
pub(crate) struct Join {
    pub(crate) client: Arc<str>,
    pub(crate) rights: Rights,
    pub(crate) clean: bool,
    /// Seconds; `u32::MAX` is for ever.
    pub(crate) keep: u32,
    pub(crate) receive_maximum: u16,
    /// Tells the connection that it is sent away, and why.
    pub(crate) kick: oneshot::Sender<Refusal>,
    /// Cancelled when the client is back before its will is due.
    pub(crate) is_back: CancellationToken,
}

/// A client has come.
pub(crate) struct Welcome {
    pub(crate) session: u64,
    pub(crate) epoch: u64,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) wake: Arc<tokio::sync::Notify>,
    pub(crate) present: bool,
    pub(crate) stored: bool,
}

/// What the router shall hold at most.
pub(crate) struct Limits {
    pub(crate) client: Bounds,
    pub(crate) sessions: usize,
    pub(crate) longest_keep: u32,
}

/// The task's state.
pub(crate) struct Router {
    limits: Limits,
    next: u64,
    numbers: HashMap<Arc<str>, u64>,
    sessions: HashMap<u64, Session>,
    tree: Tree<u64, Options>,
    retained: Retained,
    journal: Journal,
}

impl Router {
    pub(crate) fn new(limits: Limits, retained: Retained, journal: Journal) -> Self {
        let (numbers, sessions) = (HashMap::new(), HashMap::new());
        Self { limits, next: 1, numbers, sessions, tree: Tree::default(), retained, journal }
    }

    /// Takes in what an earlier run has left.
    pub(crate) fn restore(&mut self, sessions: Vec<Kept>, retained: Vec<Message>) {
        for message in retained {
            self.retained.set(Arc::new(message));
        }
        let now = unix_now();
        for kept in sessions {
            let outbox = Arc::new(Outbox::new(self.limits.client, self.next));
            for (waiting, released) in kept.queued {
                outbox.restore(waiting, released);
            }
            for (packet_id, local) in kept.incoming {
                outbox.restore_incoming(packet_id, if local { Incoming::LocalAgain } else { Incoming::Done });
            }
            let number = self.add(kept.client, outbox, kept.user, kept.keep, kept.ended.unwrap_or(now));
            for (filter, options) in kept.subscriptions {
                self.subscribe(number, filter, options);
            }
        }
    }

    fn add(&mut self, client: Arc<str>, outbox: Arc<Outbox>, user: Option<String>, keep: u32, ended: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(client.clone(), number);
        let session = Session {
            client,
            user,
            outbox,
            epoch: 0,
            connected: None,
            is_back: CancellationToken::new(),
            filters: HashSet::new(),
            filter_bytes: 0,
            keep,
            ended,
            stored: self.journal.keeps() && keep > 0,
            told_of_loss: false,
        };
        self.sessions.insert(number, session);
        number
    }

    /// Runs until nobody can ask any more.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                _ = tick.tick() => self.expire(),
            };
            let is_empty = change.ops.is_empty() && change.message.is_none() && change.token.is_none();
            if !is_empty {
                self.journal.write(change).await;
            }
        }
    }

    fn handle(&mut self, event: Event) -> Change {
        match event {
            Event::Connect { join, reply } => {
                let (answer, ops) = self.connect(join);
                // When the connection has gone meanwhile, it says so itself.
                let _ = reply.send(answer);
                Change { ops, ..Change::default() }
            }
            Event::Publish { from, message, incoming, token, place } => {
                Change { place, ..self.publish(from, message, incoming, token) }
            }
            Event::Subscribe { from, packet_id, filters, replies, version } => {
                let mut change = Change::default();
                let codes: Vec<u8> = filters
                    .into_iter()
                    .map(|filter| match filter {
                        Ok((filter, options)) => self.subscribed(from, filter, options, &mut change.ops),
                        Err(code) => code,
                    })
                    .collect();
                let answer = subscription_ack(version, false, packet_id, &codes);
                change.token = Some(Token::new(End::Answered(replies, answer)));
                change
            }
            Event::Unsubscribe { from, packet_id, filters, replies, version } => {
                let mut change = Change::default();
                let codes: Vec<u8> =
                    filters.into_iter().map(|filter| self.unsubscribe(from, filter, &mut change.ops)).collect();
                let answer = subscription_ack(version, true, packet_id, &codes);
                change.token = Some(Token::new(End::Answered(replies, answer)));
                change
            }
            Event::Disconnect { from, epoch, expiry } => {
                Change { ops: self.disconnect(from, epoch, expiry), ..Change::default() }
            }
        }
    }

    fn connect(&mut self, join: Join) -> (Result<Welcome, Refusal>, Vec<Op>) {
        let mut ops = Vec::new();
        let keep = join.keep.min(self.limits.longest_keep);
        let before = self.numbers.get(&join.client).copied();
        if let Some(session) = before.and_then(|number| self.sessions.get_mut(&number)) {
            if session.user.as_deref() != join.rights.user() {
                // A session with what waits in it belongs to its user.
                return (Err(Refusal(reason::NOT_AUTHORIZED)), ops);
            }
            if let Some(kick) = session.connected.take() {
                let _ = kick.send(Refusal(reason::TAKEN_OVER));
            }
            if !join.clean {
                session.is_back.cancel();
            }
        }
        let present = before.filter(|_| !join.clean);
        if let Some(number) = before.filter(|_| present.is_none()) {
            ops.extend(self.remove(number));
        }
        let number = match present {
            Some(number) => number,
            None => {
                if self.sessions.len() >= self.limits.sessions && !self.make_room(&mut ops) {
                    return (Err(Refusal(reason::QUOTA)), ops);
                }
                let outbox = Arc::new(Outbox::new(self.limits.client, self.next));
                let user = join.rights.user().map(str::to_owned);
                self.add(join.client.clone(), outbox, user, keep, 0)
            }
        };
        let Some(session) = self.sessions.get_mut(&number) else { return (Err(Refusal(reason::UNSPECIFIED)), ops) };
        session.keep = keep;
        session.stored |= self.journal.keeps() && keep > 0;
        session.connected = Some(join.kick);
        session.is_back = join.is_back;
        session.told_of_loss = false;
        if session.stored {
            ops.push(Op::Session { client: session.client.clone(), user: session.user.clone(), keep });
        }
        let (epoch, wake) = session.outbox.attach(join.receive_maximum);
        session.epoch = epoch;
        let (outbox, stored) = (session.outbox.clone(), session.stored);
        let lost: Vec<String> =
            session.filters.iter().filter(|filter| !join.rights.may_read(filter)).cloned().collect();
        for filter in lost {
            self.unsubscribe(number, filter, &mut ops);
        }
        (Ok(Welcome { session: number, epoch, outbox, wake, present: present.is_some(), stored }), ops)
    }

    /// Ends the session of whoever has been away longest. `false` when all are here.
    fn make_room(&mut self, ops: &mut Vec<Op>) -> bool {
        let away = self.sessions.iter().filter(|(_, session)| session.connected.is_none());
        let Some((&number, session)) = away.min_by_key(|(_, session)| session.ended) else { return false };
        warn!(client = %session.client, "too many MQTT sessions: the one that was away longest is ended");
        ops.extend(self.remove(number));
        true
    }

    fn remove(&mut self, number: u64) -> Option<Op> {
        let session = self.sessions.remove(&number)?;
        self.numbers.remove(&session.client);
        for filter in &session.filters {
            self.tree.remove(filter, &number);
        }
        session.stored.then_some(Op::Gone(session.client))
    }

    fn disconnect(&mut self, number: u64, epoch: u64, expiry: Option<u32>) -> Vec<Op> {
        let Some(session) = self.sessions.get_mut(&number).filter(|session| session.epoch == epoch) else {
            return Vec::new();
        };
        session.connected = None;
        session.outbox.detach();
        if session.keep > 0 {
            session.keep = expiry.unwrap_or(session.keep).min(self.limits.longest_keep);
        }
        if session.keep == 0 {
            return self.remove(number).into_iter().collect();
        }
        session.ended = unix_now();
        let ended = Op::Ended { client: session.client.clone(), keep: session.keep, at: session.ended };
        if session.stored { vec![ended] } else { Vec::new() }
    }

    fn publish(
        &mut self,
        from: Option<u64>,
        message: Message,
        incoming: Option<(u16, bool)>,
        token: Option<Arc<Token>>,
    ) -> Change {
        if message.qos != Qos::AtMostOnce && self.journal.keeps() {
            message.set_storing(Storing::Pending);
        }
        let message = Arc::new(message);
        let mut ops = Vec::new();
        if message.retain {
            self.retain(&message, &mut ops);
        }
        let mut matched: Vec<(u64, &Options)> = Vec::new();
        self.tree.matches(&message.topic, &mut |number, options| matched.push((*number, options)));
        // Whoever has several filters for it gets it once, with the best of them.
        matched.sort_by_key(|(number, _)| *number);
        let mut wake = Vec::new();
        for group in matched.chunk_by(|a, b| a.0 == b.0) {
            let wanted = || group.iter().map(|(_, options)| *options);
            let (Some((number, _)), Some(best)) = (group.first(), wanted().map(|options| options.qos).max()) else {
                continue;
            };
            if from == Some(*number) && wanted().all(|options| options.no_local) {
                continue;
            }
            let Some(session) = self.sessions.get_mut(number) else { continue };
            let waiting = Waiting {
                message: message.clone(),
                qos: best.min(message.qos),
                retain: message.retain && wanted().any(|options| options.as_published),
                packet_id: 0,
                identifiers: wanted().filter_map(|options| options.identifier).collect(),
            };
            if session.put(waiting, false, &mut ops) && message.storing() == Storing::Pending {
                wake.push(session.outbox.clone());
            }
        }
        if let (Some((packet_id, local)), Some(session)) = (incoming, from.and_then(|from| self.sessions.get(&from)))
            && session.stored
        {
            ops.push(Op::Incoming { client: session.client.clone(), packet_id, local });
        }
        let pending = message.storing() == Storing::Pending;
        Change { ops, message: pending.then_some(message), wake, token, place: None }
    }

    fn retain(&mut self, message: &Arc<Message>, ops: &mut Vec<Op>) {
        if message.payload.is_empty() {
            if self.retained.remove(&message.topic) && self.journal.keeps() {
                ops.push(Op::Unretained(message.topic.clone()));
            }
        } else if !self.retained.set(message.clone()) {
            warn!(topic = message.topic, "too many retained messages: this one is delivered, but not kept");
        } else if self.journal.keeps() {
            ops.push(Op::Retained(message.clone()));
        }
    }

    fn subscribed(&mut self, from: u64, filter: String, options: Options, ops: &mut Vec<Op>) -> u8 {
        let Some(session) = self.sessions.get_mut(&from) else { return reason::UNSPECIFIED };
        let is_new = !session.filters.contains(&filter);
        let room = session.filters.len() < MAX_FILTERS && session.filter_bytes + filter.len() <= MAX_FILTER_BYTES;
        if is_new && !room {
            return reason::QUOTA;
        }
        if session.stored {
            ops.push(Op::Subscribed(session.client.clone(), filter.clone(), options.clone()));
        }
        if options.retained == 0 || options.retained == 1 && is_new {
            for message in self.retained.matching(&filter, unix_now()) {
                let qos = options.qos.min(message.qos);
                let identifiers = options.identifier.into_iter().collect();
                let waiting = Waiting { message: message.clone(), qos, retain: true, packet_id: 0, identifiers };
                session.put(waiting, true, ops);
            }
        }
        let granted = options.qos as u8;
        self.subscribe(from, filter, options);
        granted
    }

    fn subscribe(&mut self, number: u64, filter: String, options: Options) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if self.tree.insert(&filter, number, options).is_none() {
            session.filter_bytes += filter.len();
            session.filters.insert(filter);
        }
    }

    fn unsubscribe(&mut self, from: u64, filter: String, ops: &mut Vec<Op>) -> u8 {
        let Some(session) = self.sessions.get_mut(&from) else { return reason::UNSPECIFIED };
        if !session.filters.remove(&filter) {
            return reason::NO_SUBSCRIPTION;
        }
        session.filter_bytes -= filter.len();
        self.tree.remove(&filter, &from);
        if session.stored {
            ops.push(Op::Unsubscribed(session.client.clone(), filter));
        }
        0
    }

    fn expire(&mut self) -> Change {
        let now = unix_now();
        let is_over = |session: &Session| {
            let away = session.connected.is_none() && session.keep != u32::MAX;
            away && session.ended + u64::from(session.keep) <= now
        };
        let over = self.sessions.iter().filter(|(_, session)| is_over(session));
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        let mut ops: Vec<Op> = over.into_iter().filter_map(|number| self.remove(number)).collect();
        let unretained = self.retained.expire(now).into_iter().filter(|_| self.journal.keeps());
        ops.extend(unretained.map(Op::Unretained));
        Change { ops, ..Change::default() }
    }
}
