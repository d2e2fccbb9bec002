//! Both halves against each other over a link that breaks, with ends that crash and databases that are lost. After every step: the
//! node's versions never go back, what the cloud notes as acknowledged is durable at the edge, memory is bounded. In the end both
//! sides agree.
//!
//! A failing run prints its shortest steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use session::cloud::{NodeQueue, Window};
use session::edge::Outbox;
use wire::{Content, Message, Route, acks};

const OBJECTS: usize = 6;
const KEYS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// An object is made or changed in the cluster; with the name of a deleted one it is another object.
    Change(usize),
    Delete(usize),
    /// An object stays in the cluster, but is not the node's any more, until it changes again.
    Leave(usize),
    /// The cloud sends one message.
    Send,
    /// The node's queue drops one message, as a Go edge's does.
    Lose,
    /// A message arrives twice.
    Repeat,
    /// One message arrives at the edge.
    Arrive,
    /// The edge commits what has arrived and acknowledges it.
    Commit,
    /// One message arrives in the cloud.
    ArriveUp,
    /// The edge has something to say about an object: the latest counts.
    Report(usize),
    /// Or an event: each counts.
    Event,
    SendUp,
    Wait(u64),
    Break,
    /// The edge is killed: what was not committed is lost.
    KillEdge,
    /// The cloud is killed: its notes are those that were written last.
    KillCloud,
    /// The notes are written.
    Note,
    /// The edge's database is lost.
    LoseDatabase,
}

/// One side's view of an object: its uid and version.
type Version = (String, u64);

struct World {
    now: Instant,
    own_ends: bool,
    revision: u64,
    cluster: BTreeMap<String, Version>,
    /// What was the node's and exists still.
    away: BTreeMap<String, String>,
    queue: Option<NodeQueue>,
    notes: HashMap<String, (String, u64)>,
    written: HashMap<String, (String, u64)>,
    down: VecDeque<Message>,
    arrived: VecDeque<Message>,
    up: VecDeque<Message>,
    store: BTreeMap<String, Version>,
    outbox: Outbox,
    said: u64,
    reports: BTreeMap<String, u64>,
    events: BTreeSet<u64>,
    heard_reports: BTreeMap<String, u64>,
    heard_events: BTreeSet<u64>,
}

impl World {
    fn new(own_ends: bool) -> Self {
        Self {
            now: Instant::now(),
            own_ends,
            revision: 0,
            cluster: BTreeMap::new(),
            away: BTreeMap::new(),
            queue: None,
            notes: HashMap::new(),
            written: HashMap::new(),
            down: VecDeque::new(),
            arrived: VecDeque::new(),
            up: VecDeque::new(),
            store: BTreeMap::new(),
            outbox: Outbox::default(),
            said: 0,
            reports: BTreeMap::new(),
            events: BTreeSet::new(),
            heard_reports: BTreeMap::new(),
            heard_events: BTreeSet::new(),
        }
    }

    /// The object exists still and may come back.
    fn withdraw(&mut self, uid: &str, path: &str) {
        // It may be deleted, and not yet be said to be so.
        self.notes.entry(uid.to_owned()).and_modify(|(_, version)| *version = 0);
        let Some(queue) = &mut self.queue else { return };
        self.said += 1;
        let content = Content::json(&(uid, self.revision)).expect("json");
        let route = Route::new("devicecontroller", "resource", "delete", path);
        queue.withdraw(uid, self.revision, Message::new(format!("c{}", self.said), 0, route, content));
    }

    fn push(&mut self, uid: &str, version: u64, verb: &str, path: &str) {
        let Some(queue) = &mut self.queue else { return };
        if !self.own_ends && verb != "delete" {
            // Noted before it is sent: the node may have it without a word.
            self.notes.entry(uid.to_owned()).or_insert_with(|| (path.to_owned(), 0));
            self.written.entry(uid.to_owned()).or_insert_with(|| (path.to_owned(), 0));
        }
        self.said += 1;
        let content = Content::json(&(uid, version)).expect("json");
        let route = Route::new("edgecontroller", "resource", verb, path);
        queue.offer(uid, version, Message::new(format!("c{}", self.said), 0, route, content));
    }

    fn change(&mut self, object: usize) {
        self.revision += 1;
        let path = format!("default/pod/{object}");
        let back = self.away.remove(&path);
        let known = self.cluster.get(&path).map(|(uid, _)| uid.clone()).or(back);
        let uid = known.unwrap_or_else(|| format!("u{}", self.revision));
        self.cluster.insert(path.clone(), (uid.clone(), self.revision));
        self.push(&uid, self.revision, "update", &path);
    }

    fn leave(&mut self, object: usize) {
        let path = format!("default/pod/{object}");
        if let Some((uid, _)) = self.cluster.remove(&path) {
            self.revision += 1;
            self.withdraw(&uid, &path);
            self.away.insert(path, uid);
        }
    }

    fn delete(&mut self, object: usize) {
        let path = format!("default/pod/{object}");
        if let Some(uid) = self.away.remove(&path) {
            self.push(&uid, u64::MAX, "delete", &path);
        }
        if let Some((uid, _)) = self.cluster.remove(&path) {
            self.push(&uid, u64::MAX, "delete", &path);
        }
    }

    /// Breaks what there is, connects, and finds out what the node lacks: as `cloudcore` does it, by the node's own list between own
    /// ends, by the notes otherwise.
    fn connect(&mut self) {
        self.down.clear();
        self.up.clear();
        assert_eq!(self.outbox.disconnected(), 0);
        self.queue = None;
        if self.own_ends {
            // The list is made when nothing of the link before is on its way within the edge.
            self.commit();
            self.notes = self.store.iter().map(|(path, (uid, v))| (uid.clone(), (path.clone(), *v))).collect();
        }
        self.queue = Some(NodeQueue::new(if self.own_ends { Window::WIDE } else { Window::UPSTREAM }));
        for (uid, (path, _)) in self.notes.clone() {
            match self.cluster.get(&path) {
                Some((now, _)) if *now == uid => {}
                _ if self.away.get(&path) == Some(&uid) => self.withdraw(&uid, &path),
                _ => self.push(&uid, u64::MAX, "delete", &path),
            }
        }
        for (path, (uid, version)) in self.cluster.clone() {
            if self.notes.get(&uid).is_none_or(|(_, noted)| *noted != version) {
                self.push(&uid, version, "update", &path);
            }
        }
    }

    fn commit(&mut self) {
        for message in std::mem::take(&mut self.arrived) {
            let (uid, version): (String, u64) = message.content.parse().expect("json");
            let path = message.route.resource.clone();
            let held = self.store.get(&path).cloned();
            match message.route.operation.as_str() {
                "delete" if held.as_ref().is_some_and(|(held, _)| *held == uid) => drop(self.store.remove(&path)),
                "delete" => {}
                _ => {
                    if let Some((_, old)) = held.filter(|(held, _)| *held == uid) {
                        assert!(version >= old, "{path} goes back from {old} to {version}");
                    }
                    self.store.insert(path, (uid, version));
                }
            }
            self.said += 1;
            if self.queue.is_some() {
                self.up.push_back(message.response(format!("e{}", self.said), 0, Content::ok()));
            }
        }
    }

    fn arrive(&mut self) {
        let Some(message) = self.down.pop_front() else { return };
        match acks::read(&message) {
            Some(ids) => ids.iter().for_each(|id| self.outbox.acknowledged(id)),
            None => self.arrived.push_back(message),
        }
    }

    fn arrive_up(&mut self) {
        let Some(message) = self.up.pop_front() else { return };
        if let Some(id) = acks::single(&message) {
            let Some((uid, message)) = self.queue.as_mut().and_then(|queue| queue.acknowledge(id)) else { return };
            let (_, version): (String, u64) = message.content.parse().expect("json");
            match message.route.operation.as_str() {
                "delete" => drop(self.notes.remove(&uid)),
                _ => drop(self.notes.insert(uid, (message.route.resource, version))),
            }
            return;
        }
        let value: u64 = message.content.parse().expect("json");
        if message.route.resource.contains("/event/") {
            self.heard_events.insert(value);
        } else {
            let heard = self.heard_reports.entry(message.route.resource.clone()).or_default();
            *heard = value;
        }
        if self.own_ends {
            self.said += 1;
            let ack = acks::of(&[message.header.msg_id], "cloudhub", format!("c{}", self.said), 0);
            self.queue.as_mut().expect("connected").post(ack).expect("room");
        }
    }

    fn say(&mut self, path: &str) -> u64 {
        self.said += 1;
        let route = Route::new("edged", "meta", "update", path);
        let message = Message::new(format!("e{}", self.said), 0, route, Content::json(&self.said).expect("json"));
        assert_eq!(self.outbox.keep(message), 0);
        self.said
    }

    fn send_up(&mut self) {
        if self.queue.is_none() {
            return;
        }
        if let Some(message) = self.outbox.take() {
            self.up.push_back(message.clone());
            if self.own_ends {
                self.outbox.sent(message, self.now);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change(object) => self.change(object),
            Step::Delete(object) => self.delete(object),
            Step::Leave(object) => self.leave(object),
            Step::Send => self.down.extend(self.queue.as_mut().and_then(|queue| queue.next(self.now))),
            // Between own ends nothing is dropped but with the link.
            Step::Lose if self.own_ends => {}
            Step::Lose => drop(self.down.pop_front()),
            Step::Repeat => self.down.extend(self.down.back().cloned()),
            Step::Arrive => self.arrive(),
            Step::Commit => self.commit(),
            Step::ArriveUp => self.arrive_up(),
            Step::Report(key) => {
                let path = format!("default/podpatch/{key}");
                let value = self.say(&path);
                self.reports.insert(path, value);
            }
            Step::Event => {
                let value = self.say("default/event/e");
                self.events.insert(value);
            }
            Step::SendUp => self.send_up(),
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                assert_eq!(self.outbox.repeat(self.now), 0);
            }
            Step::Break => self.connect(),
            Step::KillEdge => {
                self.arrived.clear();
                self.connect();
            }
            Step::KillCloud => {
                self.notes = self.written.clone();
                self.connect();
            }
            Step::Note => self.written = self.notes.clone(),
            // A Go edge does not say so.
            Step::LoseDatabase if !self.own_ends => {}
            Step::LoseDatabase => {
                self.arrived.clear();
                self.store.clear();
                self.connect();
            }
        }
        for (uid, (path, noted)) in &self.notes {
            let durable = self.store.get(path).filter(|(held, _)| held == uid).map(|(_, version)| *version);
            // What was replaced by a namesake or deleted may be noted still.
            assert!(durable.is_none_or(|version| version >= *noted), "{path} {noted} is noted, {durable:?} is durable");
        }
        assert!(self.queue.as_ref().is_none_or(|queue| queue.pending() <= 4 * OBJECTS * 10));
    }

    fn settle(&mut self) {
        self.connect();
        for _ in 0..40 {
            self.step(Step::Wait(400));
            for _ in 0..200 {
                self.step(Step::Send);
                self.step(Step::Arrive);
                self.step(Step::Commit);
                self.step(Step::SendUp);
                self.step(Step::ArriveUp);
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..OBJECTS).prop_map(Step::Change),
        2 => (0..OBJECTS).prop_map(Step::Delete),
        2 => (0..OBJECTS).prop_map(Step::Leave),
        8 => Just(Step::Send),
        1 => Just(Step::Lose),
        1 => Just(Step::Repeat),
        8 => Just(Step::Arrive),
        5 => Just(Step::Commit),
        8 => Just(Step::ArriveUp),
        3 => (0..KEYS).prop_map(Step::Report),
        2 => Just(Step::Event),
        5 => Just(Step::SendUp),
        2 => (1..100_u64).prop_map(Step::Wait),
        1 => Just(Step::Break),
        1 => Just(Step::KillEdge),
        1 => Just(Step::KillCloud),
        1 => Just(Step::Note),
        1 => Just(Step::LoseDatabase),
    ];
    prop::collection::vec(step, 0..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree_in_the_end(own_ends: bool, steps in steps()) {
        let mut world = World::new(own_ends);
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(&world.store, &world.cluster);
        prop_assert_eq!(world.queue.as_ref().map(NodeQueue::pending), Some(0));
        if own_ends {
            prop_assert_eq!(&world.heard_events, &world.events);
            prop_assert_eq!(&world.heard_reports, &world.reports);
            prop_assert_eq!(world.outbox.len(), 0);
        }
    }
}
