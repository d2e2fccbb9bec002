//! What arrives from the cloud, handed to the modules.

use beehive::Context;
use link::ws::{Incoming, Reader};
use tracing::{debug, error, warn};
use wire::{AnswerError, Features, Message, acks, batch, group, module, on_demand, operation, source};

use super::HubError;
use super::acked::Acked;

/// Hands messages over until the connection ends. It runs apart from the sending, so that neither waits for the other.
pub(super) async fn read(mut reader: Reader, context: Context, features: Features, acked: Acked) -> HubError {
    loop {
        match reader.next().await {
            Ok(Incoming::Alive) => {}
            Ok(Incoming::Binary(frame)) if features.batch => match batch::decode(&frame) {
                Ok(messages) => {
                    for message in messages {
                        take(&context, features, &acked, message).await;
                    }
                }
                Err(error) => no_message(&error, frame.len()),
            },
            Ok(Incoming::Message(frame) | Incoming::Binary(frame)) => match Message::parse(&frame) {
                Ok(message) => take(&context, features, &acked, message).await,
                Err(error) => no_message(&error, frame.len()),
            },
            Ok(Incoming::Closed(reason)) if reason.is_empty() => return HubError::Closed("no reason given".to_owned()),
            Ok(Incoming::Closed(reason)) => return HubError::Closed(reason),
            Err(error) => return HubError::Link(error),
        }
    }
}

fn no_message(error: &dyn std::error::Error, bytes: usize) {
    let cause = error.source().map(ToString::to_string);
    error!(%error, cause, bytes, "the cloud sent what is no message; it is left out");
}

/// What the cloud says of this node's own messages is for the sending half, the rest for the modules.
async fn take(context: &Context, features: Features, acked: &Acked, message: Message) {
    if features.acks {
        if let Some(ids) = acks::read(&message) {
            return acked.add(ids);
        }
        if !message.header.parent_msg_id.is_empty() && !is_put_off(&message) {
            acked.add([message.header.parent_msg_id.clone()]);
        }
    }
    route(context, message).await;
}

/// Whether an answer says that the cloud could not do it now. What nobody waits for is sent again then.
fn is_put_off(answer: &Message) -> bool {
    let refused = match answer.content.object() {
        Err(AnswerError::Refused(status)) => status.code,
        _ => return answer.route.operation == operation::ERROR,
    };
    (refused >= 500 && refused != 501) || refused == 429
}

/// Which module a message is for (KubeEdge v1.23: by group, then by whether it answers something).
async fn route(context: &Context, message: Message) {
    let answers = !message.header.parent_msg_id.is_empty();
    let target = match message.route.group.as_str() {
        group::RESOURCE | group::FUNC if answers => return answer(context, message).await,
        group::RESOURCE if message.route.resource == on_demand::RESOURCE => module::EDGE_STREAM,
        group::RESOURCE | group::FUNC => module::META_MANAGER,
        group::TWIN => module::TWIN,
        group::USER if message.route.source == source::ROUTER_EVENT_BUS => module::EVENT_BUS,
        group::USER if message.route.source == source::ROUTER_SERVICE_BUS => module::SERVICE_BUS,
        group::TASK_MANAGER => module::TASK_MANAGER,
        _ => {
            let route = &message.route;
            warn!(group = route.group, resource = route.resource, "a message of an unknown group is left out");
            return;
        }
    };
    hand_over(context, target, message).await;
}

/// Wakes the one who asked. An answer that nobody waits for any more is for MetaManager to keep and acknowledge: a Go cloud
/// repeats it for ever otherwise, and holds everything else for this node back meanwhile.
async fn answer(context: &Context, message: Message) {
    // The one who asked may give up at any moment: whether he heard is known afterwards only.
    if context.respond(message.clone()) {
        return;
    }
    debug!(resource = message.route.resource, "an answer came too late");
    if message.route.operation == operation::RESPONSE {
        hand_over(context, module::META_MANAGER, message).await;
    }
}

async fn hand_over(context: &Context, module: &str, message: Message) {
    let resource = message.route.resource.clone();
    if let Err(error) = context.send(module, message).await {
        warn!(%error, resource, "a message of the cloud cannot be handed over and is left out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beehive::compose;
    use tokio_util::sync::CancellationToken;
    use wire::Content;

    const MODULES: [(&str, &str); 2] = [(module::EDGE_HUB, group::HUB), (module::META_MANAGER, group::META)];

    fn from_cloud(group: &str, operation: &str, resource: &str) -> Message {
        compose::message(source::EDGE_CONTROLLER, group, operation, resource, Content::null())
    }

    #[tokio::test]
    async fn pushes_and_late_answers_go_to_metamanager() {
        let (context, mut inboxes) = Context::new(&MODULES, CancellationToken::new());
        route(&context, from_cloud("resource", "update", "default/pod/p")).await;
        assert_eq!(inboxes[1].try_recv().expect("pushed").route.resource, "default/pod/p");
        let mut late = from_cloud("resource", "response", "default/secret/s");
        late.header.parent_msg_id = "gone".to_owned();
        route(&context, late).await;
        assert_eq!(inboxes[1].try_recv().expect("late").route.resource, "default/secret/s");
    }

    #[test]
    fn what_the_cloud_cannot_do_now_is_not_done() {
        let answer = |content: serde_json::Value| {
            let answer = from_cloud("resource", operation::RESPONSE, "default/node/n");
            Message { content: Content::json(&content).expect("JSON"), ..answer }
        };
        for (code, put_off) in [(503, true), (500, true), (429, true), (501, false), (403, false), (404, false)] {
            let status = serde_json::json!({"status": "Failure", "code": code});
            assert_eq!(is_put_off(&answer(serde_json::json!({"ErrStatus": status}))), put_off, "{code}");
            let whole = serde_json::json!({"Object": null, "Err": {"ErrStatus": status}});
            assert_eq!(is_put_off(&answer(whole)), put_off, "{code}");
        }
        assert!(!is_put_off(&answer(serde_json::json!({"metadata": {}}))));
    }

    #[tokio::test]
    async fn what_no_module_is_for_is_left_out() {
        let (context, mut inboxes) = Context::new(&MODULES, CancellationToken::new());
        for group in ["", "nonsense", "twin", "user", "taskmanager"] {
            route(&context, from_cloud(group, "update", "a/b/c")).await;
        }
        assert!(inboxes.iter_mut().all(|inbox| inbox.try_recv().is_none()));
    }
}
