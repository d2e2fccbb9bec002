//! A connected edge: keeps alive, stores what is pushed, acknowledges by upstream's rules, matches answers to requests.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::channel::{Channel, Read};
use super::judge::{SOURCES, faults};
use super::registration::Credentials;

/// Upstream's heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long an answer may take; a Go edge waits for 60 s.
const ANSWER: Duration = Duration::from_secs(20);
/// Messages that wait to be written.
const COMMANDS: usize = 256;

/// How an edge behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Acknowledges what it stored.
    pub acknowledge: bool,
    /// Sends heartbeats.
    pub keepalive: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { acknowledge: true, keepalive: true }
    }
}

/// What an edge has seen since it connected.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Messages from the cloud, in order.
    pub received: Vec<Value>,
    /// Ids of messages that it acknowledged.
    pub acknowledged: Vec<String>,
    /// What its database holds: objects by `{namespace}/{type}/{name}`.
    pub rows: BTreeMap<String, Value>,
    /// What upstream's edge would have choked on.
    pub faults: Vec<String>,
    /// Why the connection ended, once it did.
    pub ended: Option<String>,
}

impl Seen {
    /// Pushes (messages that answer nothing) of one object, in order.
    pub fn pushes(&self, resource: &str) -> Vec<&Value> {
        let is_push = |message: &&Value| {
            message["header"].get("parent_msg_id").is_none() && message["route"]["resource"] == resource
        };
        self.received.iter().filter(is_push).collect()
    }
}

/// A connected edge. Dropping it cuts the connection, as a crash does.
pub struct GoEdge {
    node: String,
    commands: mpsc::Sender<Command>,
    seen: watch::Receiver<Seen>,
    _task: JoinSet<()>,
}

enum Command {
    Send(String),
    Ask(Value, oneshot::Sender<Value>),
    Stop(oneshot::Sender<()>),
}

struct Waiter {
    answer: oneshot::Sender<Value>,
    acknowledged: bool,
}

struct Driver {
    channel: Channel,
    behaviour: Behaviour,
    waiters: HashMap<String, Waiter>,
    seen: watch::Sender<Seen>,
}

impl GoEdge {
    /// Connects as this node, which the certificate should name.
    ///
    /// # Errors
    /// TLS or the upgrade was refused.
    pub async fn connect(websocket: SocketAddr, credentials: &Credentials, node: &str) -> Result<Self> {
        Self::connect_with(websocket, credentials, node, Behaviour::default(), BTreeMap::new()).await
    }

    /// Connects with what an earlier connection left in the database.
    ///
    /// # Errors
    /// TLS or the upgrade was refused.
    pub async fn connect_with(
        websocket: SocketAddr,
        credentials: &Credentials,
        node: &str,
        behaviour: Behaviour,
        rows: BTreeMap<String, Value>,
    ) -> Result<Self> {
        let tls = link::tls::client(&credentials.ca, Some(&credentials.own))?;
        let channel = Channel::open(websocket, tls, node).await?;
        let (seen, watched) = watch::channel(Seen { rows, ..Seen::default() });
        let (commands, incoming) = mpsc::channel(COMMANDS);
        let driver = Driver { channel, behaviour, waiters: HashMap::new(), seen };
        let mut task = JoinSet::new();
        task.spawn(driver.run(incoming));
        Ok(Self { node: node.to_owned(), commands, seen: watched, _task: task })
    }

    /// Its name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it has seen until now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Sends a message and does not wait.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send(&self, message: &Value) -> Result<()> {
        self.send_text(go_json(message)).await
    }

    /// Sends any text, for example broken JSON.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send_text(&self, text: String) -> Result<()> {
        self.commands.send(Command::Send(text)).await.map_err(|_| self.gone())
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// None came, or the connection ended.
    pub async fn request(&self, message: Value) -> Result<Value> {
        let what = format!("{} {}", message["route"]["operation"], message["route"]["resource"]);
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Ask(message, answer)).await.map_err(|_| self.gone())?;
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(answer) => answer.map_err(|_| self.gone()).context(what),
            Err(_) => Err(anyhow!("{what}: no answer within {} s", ANSWER.as_secs())),
        }
    }

    /// Waits until `find` finds something in what was seen.
    ///
    /// # Errors
    /// It did not within `limit`, or the connection ended first.
    pub async fn wait<T>(&self, what: &str, limit: Duration, mut find: impl FnMut(&Seen) -> Option<T>) -> Result<T> {
        let mut seen = self.seen.clone();
        let mut found = None;
        let look = seen.wait_for(|seen| {
            found = find(seen);
            found.is_some()
        });
        let outcome = tokio::time::timeout(limit, look).await.map(|look| look.is_ok());
        match (found, outcome) {
            (Some(found), _) => Ok(found),
            (None, Ok(_)) => Err(self.gone()).with_context(|| format!("waiting for {what}")),
            (None, Err(_)) => {
                let received = self.seen().received;
                let brief = |m: &Value| {
                    format!(
                        "{} {}",
                        m["route"]["operation"].as_str().unwrap_or("?"),
                        m["route"]["resource"].as_str().unwrap_or("?")
                    )
                };
                let all: Vec<String> = received.iter().map(brief).collect();
                Err(anyhow!("waited {} s for {what}; received: {}", limit.as_secs(), all.join(", ")))
            }
        }
    }

    /// Waits until the cloud ends the connection; the reason that it gives.
    ///
    /// # Errors
    /// It does not.
    pub async fn wait_end(&self, limit: Duration) -> Result<String> {
        self.wait("the end of the connection", limit, |seen| seen.ended.clone()).await
    }

    /// Ends as a stopping edgecore does: an empty envelope is its last message, then TCP is cut.
    pub async fn stop(self) -> Seen {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).await.is_ok() {
            let _ = stopped.await;
        }
        self.seen()
    }

    fn gone(&self) -> anyhow::Error {
        anyhow!("the connection ended: {}", self.seen().ended.unwrap_or_default())
    }
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            let outcome = tokio::select! {
                read = self.channel.read() => match read {
                    Read::Message(text) => self.received(&text).await,
                    Read::End(reason) => Err(anyhow!(reason)),
                },
                command = commands.recv() => match command {
                    Some(Command::Send(text)) => self.channel.write(&text).await,
                    Some(Command::Ask(message, answer)) => self.ask(message, answer).await,
                    Some(Command::Stop(done)) => {
                        let empty = json!({"header": {"msg_id": "", "timestamp": 0}, "route": {}, "content": null});
                        let _ = self.channel.write(&go_json(&empty)).await;
                        self.seen.send_modify(|seen| seen.ended = Some(String::from("stopped")));
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                _ = heartbeat.tick(), if self.behaviour.keepalive => {
                    self.channel.write(&go_json(&message("websocket", "resource", "keepalive", "node", json!("ping")))).await
                }
            };
            if let Err(error) = outcome {
                self.seen.send_modify(|seen| seen.ended = Some(format!("{error}")));
                return;
            }
        }
    }

    async fn ask(&mut self, message: Value, answer: oneshot::Sender<Value>) -> Result<()> {
        let id = message["header"]["msg_id"].as_str().unwrap_or_default().to_owned();
        let text = |part: &str| message["route"][part].as_str().unwrap_or_default();
        // What passes MetaManager's remote query is acknowledged, the rest is not.
        let acknowledged = match text("operation") {
            "query" | "insert" => true,
            "update" => text("resource").contains("/lease/"),
            _ => false,
        };
        self.waiters.insert(id, Waiter { answer, acknowledged });
        self.channel.write(&go_json(&message)).await
    }

    async fn received(&mut self, text: &str) -> Result<()> {
        let Ok(received) = serde_json::from_str::<Value>(text) else {
            // A Go edge closes the connection.
            self.seen.send_modify(|seen| seen.faults.push(format!("no JSON: {text:.200}")));
            return Err(anyhow!("the cloud sent what is no JSON"));
        };
        let found = faults(&received);
        let part = |part: &str| received["route"][part].as_str().unwrap_or_default().to_owned();
        let (group, operation, resource, source) = (part("group"), part("operation"), part("resource"), part("source"));
        let mut acknowledge = false;
        if let Some(parent) = received["header"]["parent_msg_id"].as_str() {
            if let Some(waiter) = self.waiters.remove(parent) {
                acknowledge = waiter.acknowledged;
                let _ = waiter.answer.send(received.clone());
            }
        } else if ["resource", "func"].contains(&group.as_str()) {
            let stores = operation == "insert" || (operation == "update" && SOURCES.contains(&source.as_str()));
            acknowledge = stores || operation == "delete";
        }
        self.seen.send_modify(|seen| {
            if acknowledge && operation == "delete" {
                seen.rows.remove(&resource);
            } else if acknowledge && operation != "response" {
                seen.rows.insert(resource.clone(), received["content"].clone());
            }
            seen.faults.extend(found);
            seen.received.push(received.clone());
        });
        if acknowledge && self.behaviour.acknowledge {
            let mut ack = message(&source, &group, "response", &resource, json!("OK"));
            ack["header"]["parent_msg_id"] = received["header"]["msg_id"].clone();
            self.channel.write(&go_json(&ack)).await?;
            let id = received["header"]["msg_id"].as_str().unwrap_or_default().to_owned();
            self.seen.send_modify(|seen| seen.acknowledged.push(id));
        }
        Ok(())
    }
}

/// A message with a fresh id.
pub fn message(source: &str, group: &str, operation: &str, resource: &str, content: Value) -> Value {
    json!({
        "header": {"msg_id": fresh_id(), "timestamp": now()},
        "route": {"source": source, "group": group, "operation": operation, "resource": resource},
        "content": content,
    })
}

/// A request as edged makes it.
pub fn request(operation: &str, resource: &str, content: Value) -> Value {
    message("edged", "meta", operation, resource, content)
}

pub(super) fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// JSON as Go writes it: the three characters of HTML escaped, which stand only inside strings.
fn go_json(message: &Value) -> String {
    message.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
