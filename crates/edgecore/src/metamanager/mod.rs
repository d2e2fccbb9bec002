//! MetaManager: what the node must know to go on without the cloud, in SQLite.
//!
//! From the cloud: store, acknowledge, pass on — in this order; what could not be stored is not acknowledged, and the cloud
//! sends it again. What arrives together is stored in one commit, acknowledged and passed on in the order of arrival. From edged: answer from the table what the node has, ask the cloud for the rest (`remote`), pass on what needs
//! no answer. `fresh` guards the pods of a node that has lost its database. `table` has the rows. Which message is treated how is KubeEdge v1.23's.

mod fresh;
mod remote;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, compose};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use store::{Database, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};
use wire::inventory::{self, Digest, Held};
use wire::{Content, EdgeResource, Message, group, kind, module, operation, source};

use fresh::{Fresh, Link};
use remote::Remote;
use table::{Row, Table};

pub use table::SCHEMA;
pub(crate) use table::uid;

/// Messages that wait for edged, or for DeviceTwin. MetaManager itself must go on meanwhile, for edged's requests come to it.
const FOR_ANOTHER: usize = 1024;
/// Requests to the cloud at any time; more wait.
const MAX_REMOTE: usize = 256;
/// How long a volume operation of the cloud may take (KubeEdge v1.23).
const VOLUME_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects that are being stored at any time: as many as one commit takes.
const MAX_STORING: usize = 128;

/// To whom messages are passed on.
struct Others {
    edged: mpsc::Sender<Message>,
    twin: mpsc::Sender<Message>,
}

/// The module.
pub struct MetaManager {
    table: Table,
    timeout: Duration,
}

impl MetaManager {
    /// On this database; the cloud may take `timeout` to answer.
    pub fn new(database: Database, timeout: Duration) -> Self {
        Self { table: Table::new(database), timeout }
    }

    async fn serve(&self, context: Context, inbox: &mut Inbox) -> Result<(), ModuleError> {
        let mut tasks = JoinSet::new();
        let [to_edged, to_twin] = [module::EDGED, module::TWIN].map(|module| {
            let (sender, waiting) = mpsc::channel(FOR_ANOTHER);
            tasks.spawn(pass_on(context.clone(), module, waiting));
            sender
        });
        let others = Others { edged: to_edged, twin: to_twin };
        let mut requests = JoinSet::new();
        let mut storing = FuturesOrdered::new();
        let (mut connected, mut own_cloud) = (false, false);
        let fresh = Fresh::new(self.table.clone());
        if fresh.is_partial() {
            // They are run; what else runs is left alone until the cloud has sent everything.
            self.hand_over_pods(&others.edged).await;
        }
        loop {
            let has_room = requests.len() < MAX_REMOTE && storing.len() < MAX_STORING;
            let message = tokio::select! {
                () = context.stopping() => break,
                Some((message, stored)) = storing.next() => {
                    self.finish(&context, &others, &fresh, message, stored).await;
                    continue;
                }
                Some(_) = requests.join_next() => continue,
                message = inbox.recv(), if has_room => match message {
                    Some(message) => message,
                    None => break,
                },
            };
            if message.route.resource == kind::NODE_CONNECTION {
                connected = message.content.payload().as_ref() == b"cloud_connected";
                own_cloud &= connected;
                let cloud = if own_cloud { Link::Own } else { Link::Upstream };
                fresh.connected(if connected { cloud } else { Link::None }).await;
                continue;
            }
            if message.route.resource == inventory::RESOURCE && message.route.operation == operation::CONNECT {
                own_cloud = true;
                continue;
            }
            let from_node = matches!(message.route.source.as_str(), source::EDGED | source::META_MANAGER);
            if operation::VOLUME.contains(&message.route.operation.as_str()) {
                requests.spawn(volume(context.clone(), message));
            } else if !from_node {
                storing.push_back(store_pushed(self.table.clone(), message, own_cloud));
            } else if fresh.concerns(&message) {
                let (fresh, context) = (fresh.clone(), context.clone());
                requests.spawn(async move { fresh.answer(&context, &message).await });
            } else if let Some(message) = self.answer(&context, connected, message).await {
                let remote = Remote { context: context.clone(), table: self.table.clone(), timeout: self.timeout };
                requests.spawn(async move { remote.ask(message).await });
            }
        }
        // What is being stored is acknowledged still.
        while let Some((message, stored)) = storing.next().await {
            self.finish(&context, &others, &fresh, message, stored).await;
        }
        Ok(())
    }

    async fn hand_over_pods(&self, to_edged: &mpsc::Sender<Message>) {
        let pods = self.table.pods().unwrap_or_default();
        for (path, text) in pods {
            let Ok(content) = Content::from_raw(text.into()) else { continue };
            let (from, verb) = (source::EDGE_CONTROLLER, operation::UPDATE);
            hand_over(to_edged, compose::message(from, group::RESOURCE, verb, &path, content)).await;
        }
    }

    /// Acknowledges what is durable and passes it on; tells the cloud what could not be stored.
    async fn finish(
        &self,
        context: &Context,
        others: &Others,
        fresh: &Fresh,
        message: Message,
        stored: Result<(), StoreError>,
    ) {
        if message.route.resource == inventory::RESOURCE {
            // All that came before is stored by now.
            return match message.route.operation.as_str() {
                inventory::SYNCED => fresh.synced().await,
                _ => self.tell_inventory(context, &message).await,
            };
        }
        match stored {
            Ok(()) => {
                forward(context, compose::response(&message, Content::ok())).await;
                if concerns_edged(&message) {
                    hand_over(&others.edged, message).await;
                } else if concerns_twin(&message) {
                    hand_over(&others.twin, message).await;
                }
            }
            Err(error) => forward(context, not_stored(&message, &error)).await,
        }
    }

    /// What the node has: the digest for EdgeHub, the list for the cloud.
    async fn tell_inventory(&self, context: &Context, question: &Message) {
        let (held, has_node) = match self.table.inventory().and_then(|held| Ok((held, self.table.has_node()?))) {
            Ok(found) => found,
            Err(error) => {
                error!(%error, "what the node has cannot be read from its database");
                return refuse(context, question, &error.to_string());
            }
        };
        if question.route.source == source::EDGE_HUB_EVENTS {
            let mut digest = Digest::default();
            held.iter().for_each(|Held(uid, _, version)| digest.add(uid, *version));
            // The list is without the Node. A node that lacks it has lost its database, or never had one.
            let digest = if has_node { digest.to_text() } else { String::new() };
            return respond(context, question, Content::text(&digest));
        }
        match Content::json(&held) {
            Ok(list) => forward(context, compose::response(question, list)).await,
            Err(error) => error!(%error, "what the node has cannot be listed"),
        }
    }

    /// A request of edged; what must go to the cloud comes back.
    async fn answer(&self, context: &Context, connected: bool, message: Message) -> Option<Message> {
        let route = &message.route;
        let Ok(resource) = EdgeResource::parse(&route.resource) else {
            refuse(context, &message, &format!("resource {:?} is not of the form namespace/type/name", route.resource));
            return None;
        };
        match (route.operation.as_str(), resource.kind.as_str()) {
            (_, kind::EVENT) => forward(context, message).await,
            (operation::QUERY, kind::NODE | kind::POD) => self.answer_locally(context, &resource, &message),
            (
                operation::QUERY,
                kind::CONFIG_MAP
                | kind::SECRET
                | kind::SERVICE_ACCOUNT_TOKEN
                | kind::PERSISTENT_VOLUME
                | kind::PERSISTENT_VOLUME_CLAIM
                | kind::RUNTIME_CLASS
                | kind::SERVICE
                | kind::ENDPOINTS,
            ) => {
                let fresh_token = resource.kind == kind::SERVICE_ACCOUNT_TOKEN
                    && self.answer_with_token(context, &resource, &message);
                if fresh_token {
                    return None;
                }
                if connected {
                    return Some(message);
                }
                self.answer_locally(context, &resource, &message);
            }
            (operation::UPDATE, what) if what != kind::LEASE => {
                let stored = match row(&resource, &message) {
                    Some(row) => self.table.put(row).await,
                    None => Ok(()),
                };
                if let Err(error) = stored {
                    refuse(context, &message, &error.to_string());
                    return None;
                }
                let mut onward = message.clone();
                onward.header.sync = false;
                forward(context, onward).await;
                respond(context, &message, Content::ok());
            }
            _ if connected => return Some(message),
            _ => refuse(context, &message, "the cloud is out of reach"),
        }
        None
    }

    /// An array of texts, each a stored object: all of a type, or the one that was named.
    fn answer_locally(&self, context: &Context, resource: &EdgeResource, message: &Message) {
        if resource.kind == kind::SERVICE_ACCOUNT_TOKEN {
            return match self.table.token(resource, &message.content) {
                Ok(Some(token)) => respond(context, message, token),
                Ok(None) => refuse(context, message, "the cloud is out of reach, and no token is kept here"),
                Err(error) => refuse(context, message, &error.to_string()),
            };
        }
        answer_from(&self.table, context, resource, message);
    }

    /// A kept token that is still good for a while.
    fn answer_with_token(&self, context: &Context, resource: &EdgeResource, message: &Message) -> bool {
        match self.table.token(resource, &message.content) {
            Ok(Some(token)) if table::is_fresh(&token) => {
                respond(context, message, token);
                true
            }
            _ => false,
        }
    }
}

impl Module for MetaManager {
    fn name(&self) -> &'static str {
        module::META_MANAGER
    }

    fn group(&self) -> &'static str {
        group::META
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move { self.serve(context, inbox).await })
    }
}

/// Stores an object that the cloud pushes, or removes one.
async fn store_pushed(table: Table, message: Message, own_cloud: bool) -> (Message, Result<(), StoreError>) {
    let route = &message.route;
    let stored = match (EdgeResource::parse(&route.resource), route.operation.as_str()) {
        _ if route.resource == inventory::RESOURCE => Ok(()),
        (Ok(resource), operation::INSERT | operation::UPDATE) => match row(&resource, &message) {
            // Our own cloud keeps the order.
            Some(row) if own_cloud => table.push(row).await,
            Some(row) => table.put(row).await,
            None => Ok(()),
        },
        (Ok(resource), operation::DELETE) => table.delete(&resource, &table::uid(&message.content)).await,
        (Ok(resource), operation::RESPONSE) => remote::keep_late(&table, &resource, &message).await,
        _ => {
            // Acknowledged all the same: a message that nobody understands must not hold up the others.
            warn!(
                resource = route.resource,
                operation = route.operation,
                source = route.source,
                "a message of the cloud is not understood and left out"
            );
            Ok(())
        }
    };
    (message, stored)
}

fn row(resource: &EdgeResource, message: &Message) -> Option<Row> {
    let row = Row::read(resource, &message.content);
    if row.is_none() {
        warn!(resource = %resource, "the content is no object; nothing is stored");
    }
    row
}

/// Tells the cloud that an object is not durable here, and the log.
fn not_stored(message: &Message, error: &StoreError) -> Message {
    let resource = message.route.resource.as_str();
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    error!(resource, %error, cause, "an object could not be stored; the cloud sends it again");
    let mut answer = compose::error(message, &format!("{resource} could not be stored: {error}{cause}"));
    answer.route.source = source::META_MANAGER.to_owned();
    answer.route.group.clone_from(&message.route.group);
    answer
}

fn answer_from(table: &Table, context: &Context, resource: &EdgeResource, message: &Message) {
    match table.find(resource) {
        Ok(values) => match Content::json(&values) {
            Ok(content) => respond(context, message, content),
            Err(error) => refuse(context, message, &error.to_string()),
        },
        Err(error) => refuse(context, message, &error.to_string()),
    }
}

fn concerns_edged(message: &Message) -> bool {
    let from_controller =
        matches!(message.route.source.as_str(), source::DEVICE_CONTROLLER | source::POLICY_CONTROLLER);
    let kind = EdgeResource::parse(&message.route.resource).map(|resource| resource.kind).unwrap_or_default();
    let answers = message.route.operation == operation::RESPONSE;
    !from_controller && !answers && matches!(kind.as_str(), kind::POD | kind::CONFIG_MAP | kind::SECRET)
}

/// Whoever sent it: what SyncController catches up with counts like a change that was seen.
fn concerns_twin(message: &Message) -> bool {
    let kind = EdgeResource::parse(&message.route.resource).map(|resource| resource.kind).unwrap_or_default();
    message.route.operation != operation::RESPONSE && matches!(kind.as_str(), kind::DEVICE | kind::DEVICE_MODEL)
}

/// A volume operation: the cloud waits for what edged says.
async fn volume(context: Context, request: Message) {
    let asked = context.send_sync(module::EDGED, request.clone(), VOLUME_TIMEOUT).await;
    let answer = asked.unwrap_or_else(|error| {
        let mut text = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            text = format!("{text}: {cause}");
        }
        warn!(resource = request.route.resource, cause = text, "a volume operation failed");
        compose::error(&request, &text)
    });
    forward(&context, answer).await;
}

async fn hand_over(to: &mpsc::Sender<Message>, message: Message) {
    if to.send(message).await.is_err() {
        debug!("nobody passes it on any more");
    }
}

async fn pass_on(context: Context, module: &'static str, mut waiting: mpsc::Receiver<Message>) {
    while let Some(message) = waiting.recv().await {
        if !context.has_module(module) {
            continue;
        }
        if let Err(error) = context.send(module, message).await {
            warn!(module, %error, "a message could not be handed over");
        }
    }
}

async fn forward(context: &Context, message: Message) {
    if let Err(error) = context.send(module::EDGE_HUB, message).await {
        warn!(%error, "a message could not be sent to the cloud");
    }
}

/// Answers a request of this node.
fn respond(context: &Context, request: &Message, content: Content) {
    let mut answer = compose::response(request, content);
    answer.route.source = source::META_MANAGER.to_owned();
    if !context.respond(answer) {
        debug!(resource = request.route.resource, "an answer came too late");
    }
}

fn refuse(context: &Context, request: &Message, why: &str) {
    let mut answer = compose::error(request, why);
    answer.route.source = source::META_MANAGER.to_owned();
    answer.route.group.clone_from(&request.route.group);
    context.respond(answer);
}
