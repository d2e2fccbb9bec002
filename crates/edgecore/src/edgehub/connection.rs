//! One connection: from the upgrade until it breaks.

use api::edgecore::EdgeHub as Settings;
use beehive::{Context, Inbox};
use link::ws::{self, Reader, Target, Writer};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;

use super::certificates::Certificates;
use super::outbox::Outbox;
use super::reading::read;
use super::sending::Sending;
use super::{Ended, HubError, keep_or_refuse, keeping, tell_connection};

/// Tells the cloud that the node has lost what it once had (our own extension; a Go cloud ignores it).
const STORE: &str = "x-ferroedge-store";

/// Who connects.
pub(super) struct Node<'a> {
    pub(super) settings: &'a Settings,
    /// Its database holds no pod.
    pub(super) has_nothing: bool,
}

/// Connects and serves until the connection ends or the process is to stop.
pub(super) async fn run(
    node: &Node<'_>,
    certificates: &mut Certificates,
    context: &Context,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
) -> Ended {
    let connected = {
        let connecting = keeping(context, inbox, outbox, connect(node, certificates));
        tokio::select! {
            () = context.stopping() => return Ended { cause: HubError::Stopping, lasted: None },
            connected = connecting => connected,
        }
    };
    let (reader, writer) = match connected {
        Ok(halves) => halves,
        Err(cause) => return Ended { cause, lasted: None },
    };
    info!(server = node.settings.server, "connected to the cloud");
    let began = Instant::now();
    keeping(context, inbox, outbox, tell_connection(context, true)).await;
    let mut sending = Sending::new(node.settings, context, writer, reader.received());
    let mut reading = JoinSet::new();
    reading.spawn(read(reader, context.clone()));
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
            let mut queued = std::mem::take(outbox);
            let waiting = sending.into_unsent().into_iter().chain(std::iter::from_fn(|| queued.take()));
            waiting.for_each(|message| keep_or_refuse(context, outbox, message));
        }
    }
    Ended { cause, lasted: Some(began.elapsed()) }
}

async fn connect(node: &Node<'_>, certificates: &mut Certificates) -> Result<(Reader, Writer), HubError> {
    let tls = certificates.tls().await.map_err(HubError::Certificate)?;
    let settings = node.settings;
    let name = certificates.node().to_owned();
    let mut headers = vec![
        ("node_id", name.clone()),
        ("project_id", settings.project_id.clone()),
        ("connectionuse", "msg".to_owned()),
    ];
    if node.has_nothing {
        headers.push((STORE, "empty".to_owned()));
    }
    let target = Target {
        url: format!("wss://{}/{}/{name}/events", settings.server, settings.project_id),
        headers,
        tls,
        connect_deadline: settings.handshake_timeout,
        write_deadline: settings.write_deadline,
    };
    let (reader, writer, _) = ws::connect(&target).await.map_err(HubError::Link)?;
    Ok((reader, writer))
}
