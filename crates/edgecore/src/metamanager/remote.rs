//! Requests that the cloud answers.

use std::time::Duration;

use beehive::{Context, compose};
use store::StoreError;
use tracing::{debug, warn};
use wire::{AnswerError, Content, EdgeResource, Message, kind, module, operation, source};

use super::table::{Row, Table};
use super::{forward, not_stored, refuse, respond};

/// When the node has an object itself, the cloud gets only so long to say that there is a newer one.
const IF_KEPT: Duration = Duration::from_secs(5);

pub(super) struct Remote {
    pub(super) context: Context,
    pub(super) table: Table,
    pub(super) timeout: Duration,
}

impl Remote {
    /// Asks the cloud, keeps the object in the answer, and answers the one who asked. When no answer comes, or one that is an error or
    /// half an object, what the node has itself is the answer: all that a pod was started with is here, and stays until something
    /// newer is.
    pub(super) async fn ask(self, request: Message) {
        let Ok(resource) = EdgeResource::parse(&request.route.resource) else { return };
        let query = request.route.operation == operation::QUERY;
        let kept = if query { self.kept(&resource, &request) } else { None };
        let timeout = if kept.is_some() { self.timeout.min(IF_KEPT) } else { self.timeout };
        let mut onward = request.clone();
        onward.header.msg_id = compose::id();
        let answer = match self.context.send_sync(module::EDGE_HUB, onward, timeout).await {
            Ok(answer) if answer.route.operation == operation::ERROR => Err(text(&answer.content)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(error.to_string()),
        };
        match (answer, kept) {
            (Ok(answer), kept) => {
                let stored = self.keep(&resource, &request, &answer).await;
                self.acknowledge(&request, &answer, stored).await;
                let content = match kept {
                    Some(kept) if !stands(&resource, &answer.content) => {
                        debug!(resource = %resource, "the cloud's answer is no object; what is kept here is the answer");
                        kept
                    }
                    _ => answer.content,
                };
                respond(&self.context, &request, content);
            }
            (Err(cause), Some(kept)) => {
                debug!(resource = %resource, cause, "the cloud does not answer; what is kept here is the answer");
                respond(&self.context, &request, kept);
            }
            (Err(cause), None) => refuse(&self.context, &request, &cause),
        }
    }

    fn kept(&self, resource: &EdgeResource, request: &Message) -> Option<Content> {
        if resource.kind == kind::SERVICE_ACCOUNT_TOKEN {
            return self.table.token(resource, &request.content).ok().flatten();
        }
        let values = self.table.find(resource).ok().filter(|values| !values.is_empty())?;
        Content::json(&values).ok()
    }

    /// An error is never kept as if it were the object; one that says that the object is gone removes it here too.
    async fn keep(&self, resource: &EdgeResource, request: &Message, answer: &Message) -> Result<(), StoreError> {
        if answer.content.is_ok() {
            if request.route.operation == operation::DELETE && resource.kind == kind::POD {
                let uid = precondition_uid(&request.content);
                return self.table.delete(resource, &uid).await;
            }
            return Ok(());
        }
        let query = request.route.operation == operation::QUERY;
        let object = match answer.content.object() {
            Ok(Some(object)) if query && !is_whole(resource, &object) => return Ok(()),
            Ok(Some(object)) => object,
            Ok(None) => return Ok(()),
            Err(AnswerError::Refused(status)) if status.code == 404 && query => {
                return self.table.delete(resource, "").await;
            }
            Err(_) => return Ok(()),
        };
        match resource.kind.as_str() {
            kind::SERVICE_ACCOUNT_TOKEN => self.table.keep_token(resource, &request.content, &object).await,
            // A pod that was deleted meanwhile must not come back.
            kind::POD_PATCH => {
                let pod = EdgeResource { kind: kind::POD.to_owned(), ..resource.clone() };
                match Row::read(&pod, &object) {
                    Some(row) => self.table.replace(row.of_kind("v1", "Pod")).await,
                    None => Ok(()),
                }
            }
            kind::NODE_PATCH | kind::NODE => {
                let node = EdgeResource { kind: kind::NODE.to_owned(), ..resource.clone() };
                match Row::read(&node, &object) {
                    Some(row) => self.table.put(row.of_kind("v1", "Node")).await,
                    None => Ok(()),
                }
            }
            kind::POD | kind::LEASE | kind::CERTIFICATE_SIGNING_REQUEST => Ok(()),
            _ => match Row::read(resource, &object) {
                Some(row) => self.table.put(row).await,
                None => Ok(()),
            },
        }
    }

    /// The cloud sends again what is not acknowledged: answers to queries, inserts and lease updates. What is not durable here
    /// is not acknowledged, though its requester has it.
    async fn acknowledge(&self, request: &Message, answer: &Message, kept: Result<(), StoreError>) {
        let verb = request.route.operation.as_str();
        if !matches!(verb, operation::QUERY | operation::INSERT | operation::UPDATE) {
            if let Err(error) = kept {
                warn!(resource = request.route.resource, %error, "an answer could not be kept");
            }
            return;
        }
        let mut acknowledgement = match kept {
            Ok(()) => compose::response(answer, Content::ok()),
            Err(error) => not_stored(answer, &error),
        };
        if acknowledgement.route.source.is_empty() {
            acknowledgement.route.source = source::EDGE_CONTROLLER.to_owned();
        }
        forward(&self.context, acknowledgement).await;
    }
}

/// An answer that nobody waits for any more: the object in it is the newest that the node can have, so it is kept before it is
/// acknowledged. Tokens are left out, for their request is not known any more.
pub(super) async fn keep_late(table: &Table, resource: &EdgeResource, answer: &Message) -> Result<(), StoreError> {
    let kept = [
        kind::CONFIG_MAP,
        kind::SECRET,
        kind::PERSISTENT_VOLUME,
        kind::PERSISTENT_VOLUME_CLAIM,
        kind::RUNTIME_CLASS,
        kind::SERVICE,
        kind::ENDPOINTS,
    ];
    match answer.content.object() {
        Ok(Some(object)) if kept.contains(&resource.kind.as_str()) && is_whole(resource, &object) => {
            match Row::read(resource, &object) {
                Some(row) => table.put(row).await,
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether the answer to a query counts for more than what is kept here: the object itself, or the word that it is gone. (A token is
/// never gone: the pod that it is bound to has it until it ends.)
fn stands(resource: &EdgeResource, answer: &Content) -> bool {
    match answer.object() {
        Ok(Some(object)) => is_whole(resource, &object),
        Err(AnswerError::Refused(status)) => status.code == 404 && resource.kind != kind::SERVICE_ACCOUNT_TOKEN,
        _ => false,
    }
}

/// Whether an object is the one that was asked for, and not an empty or another one.
fn is_whole(resource: &EdgeResource, object: &Content) -> bool {
    let object: serde_json::Value = object.parse().unwrap_or_default();
    if resource.kind == kind::SERVICE_ACCOUNT_TOKEN {
        return object["status"]["token"].as_str().is_some_and(|token| !token.is_empty());
    }
    object["metadata"]["name"].as_str() == Some(resource.name())
}

fn text(content: &Content) -> String {
    String::from_utf8_lossy(&content.payload()).into_owned()
}

fn precondition_uid(content: &Content) -> String {
    let options: serde_json::Value = content.parse().unwrap_or_default();
    options["preconditions"]["uid"].as_str().unwrap_or_default().to_owned()
}
