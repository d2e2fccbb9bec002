//! One connection: from the upgrade until it breaks.

use std::time::Duration;

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox, compose};
use edged::node::facts;
use link::ws::{self, Reader, Target, Writer};
use session::edge::Outbox;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};
use wire::{Content, FEATURES, Features, INVENTORY, group, inventory, module, on_demand, operation, source};

use super::acked::Acked;
use super::certificates::Certificates;
use super::reading::read;
use super::sending::Sending;
use super::{Ended, HubError, keep_or_refuse, keeping, tell_connection, tell_inventory, tell_lost, tell_streams};

/// How long MetaManager may take to say what the node has.
const DIGEST: Duration = Duration::from_secs(30);

/// Who is connected to.
pub(super) struct Cloud<'a> {
    pub(super) settings: &'a Settings,
    /// `host:port` of one cloudcore.
    pub(super) server: &'a str,
    /// What the node says of itself.
    pub(super) agent: &'a edged::Settings,
}

/// Connects and serves until the connection ends or the process is to stop.
pub(super) async fn run(
    cloud: &Cloud<'_>,
    certificates: &mut Certificates,
    context: &Context,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
) -> Ended {
    let settings = cloud.settings;
    let connected = {
        let connecting = keeping(context, inbox, outbox, connect(cloud, certificates, context));
        tokio::select! {
            () = context.stopping() => return Ended { cause: HubError::Stopping, lasted: None },
            connected = connecting => connected,
        }
    };
    let (reader, writer, features) = match connected {
        Ok(halves) => halves,
        Err(cause) => return Ended { cause, lasted: None },
    };
    info!(server = cloud.server, features = %features, "connected to the cloud");
    let began = Instant::now();
    if features.inventory {
        keeping(context, inbox, outbox, tell_inventory(context)).await;
    }
    keeping(context, inbox, outbox, tell_streams(context, features.tunnel)).await;
    keeping(context, inbox, outbox, tell_connection(context, true)).await;
    let acked = Acked::default();
    let mut sending = Sending::new(settings, context, writer, reader.received(), features, acked.clone());
    let mut reading = JoinSet::new();
    reading.spawn(read(reader, context.clone(), features, acked));
    let cause = tokio::select! {
        () = context.stopping() => HubError::Stopping,
        cause = sending.run(inbox, outbox) => cause,
        Some(cause) = reading.join_next() => cause.unwrap_or_else(|error| HubError::Closed(error.to_string())),
        () = certificates.rotate_in_time() => HubError::Rotated,
    };
    match cause {
        HubError::Stopping => sending.finish(inbox, outbox).await,
        _ => {
            // What somebody waits for is refused, of the rest the newest is kept.
            sending.into_unsent().into_iter().for_each(|message| outbox.sent(message, std::time::Instant::now()));
            tell_lost(outbox.disconnected());
            let mut queued = std::mem::take(outbox);
            std::iter::from_fn(|| queued.take()).for_each(|message| keep_or_refuse(context, outbox, message));
        }
    }
    Ended { cause, lasted: Some(began.elapsed()) }
}

async fn connect(
    cloud: &Cloud<'_>,
    certificates: &mut Certificates,
    context: &Context,
) -> Result<(Reader, Writer, Features), HubError> {
    let settings = cloud.settings;
    let tls = certificates.tls().await.map_err(HubError::Certificate)?;
    let name = certificates.node().to_owned();
    let mut headers = vec![
        ("node_id", name.clone()),
        ("project_id", settings.project_id.clone()),
        ("connectionuse", "msg".to_owned()),
    ];
    let digest = digest(context).await;
    let ours =
        Features { inventory: digest.is_some(), tunnel: context.has_module(module::EDGE_STREAM), ..Features::ALL };
    headers.push((FEATURES, ours.to_string()));
    if ours.tunnel {
        let address = facts::addresses(cloud.agent).into_iter().next();
        headers.extend(address.map(|address| (on_demand::ADDRESS, address.to_string())));
        headers.push((on_demand::PROCESS, crate::process()));
    }
    headers.extend(digest.map(|digest| (INVENTORY, digest)));
    let target = Target {
        url: format!("wss://{}/{}/{name}/events", cloud.server, settings.project_id),
        headers,
        tls,
        connect_deadline: settings.handshake_timeout,
        write_deadline: settings.write_deadline,
    };
    let (reader, writer, answer) = ws::connect(&target).await.map_err(HubError::Link)?;
    // A Go cloud answers without this header.
    let theirs = answer.get(FEATURES).and_then(|value| value.to_str().ok()).map(Features::parse);
    Ok((reader, writer, ours.both(theirs.unwrap_or_default())))
}

/// The digest of what the node has. MetaManager gives it when all that came by the link before is stored.
async fn digest(context: &Context) -> Option<String> {
    let (from, about) = (source::EDGE_HUB_EVENTS, inventory::RESOURCE);
    let question = compose::message(from, group::META, operation::QUERY, about, Content::null());
    match context.send_sync(module::META_MANAGER, question, DIGEST).await {
        Ok(answer) if answer.route.operation == operation::RESPONSE => {
            Some(String::from_utf8_lossy(&answer.content.payload()).into_owned())
        }
        Ok(_) | Err(_) => {
            warn!("what the node has cannot be listed; the cloud goes by what it has noted");
            None
        }
    }
}
