//! A tunnel to a cloudcore of ours outlives its connections: when one is cut, the node makes the next.

use std::convert::Infallible;
use std::time::Duration;

use edged::api::NodeApi;
use http::{HeaderMap, StatusCode};
use link::backoff::Backoff;
use link::frames::Frames;
use link::resume::{Handle, Resumable, Resume};
use link::tunnel;
use link::ws::LinkError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Ended, http2};

/// Waits between tries: somebody waits at the other end of each stream, for a minute at most.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Frames that were agreed on, and the answer's headers.
pub(super) type Connected<S> = (Frames<S>, HeaderMap);

/// Serves the tunnel that stands with `server`, until no connection to any of `servers` goes on with it.
pub(super) async fn serve<'a, S, C, F>(
    (frames, headers): Connected<S>,
    (server, servers): (&'a str, &'a [String]),
    connect: C,
    api: &NodeApi,
    stopping: &CancellationToken,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: Fn(&'a str, Resume) -> F,
    F: Future<Output = Result<Connected<S>, Ended>>,
{
    let (bytes, handle) = Resumable::new(frames);
    tokio::select! {
        ended = http2::serve(bytes, api, stopping) => ended,
        never = keep(&handle, &headers, (server, servers), connect) => match never {},
    }
}

/// Gives the tunnel its next connections: at once where it was, and then wherever the cloud may be reached.
async fn keep<'a, S, C, F>(
    handle: &Handle<S>,
    headers: &HeaderMap,
    (server, servers): (&'a str, &'a [String]),
    connect: C,
) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Fn(&'a str, Resume) -> F,
    F: Future<Output = Result<Connected<S>, Ended>>,
{
    let Some(id) = tunnel::name(headers) else {
        handle.no_more("the cloud gave the tunnel no name");
        return std::future::pending().await;
    };
    let first = servers.iter().position(|one| one == server).unwrap_or_default();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut began = Instant::now();
    loop {
        handle.cut().await;
        info!(server, "the stream tunnel was cut: its streams wait for the next connection");
        match began.elapsed() >= super::GOOD_AFTER {
            true => backoff.reset(),
            // Something cuts each of them.
            false => tokio::time::sleep(backoff.next_wait()).await,
        }
        for next in servers.iter().cycle().skip(first) {
            let Some(offer) = handle.offer() else { return std::future::pending().await };
            match connect(next, Resume { id, read: offer.read() }).await {
                Ok((frames, headers)) => match tunnel::resume(&headers).filter(|theirs| theirs.id == id) {
                    Some(theirs) => {
                        match offer.go_on(theirs.read, frames) {
                            Ok(()) => info!(server = next, "the stream tunnel goes on"),
                            Err(error) => info!(server = next, %error, "the stream tunnel does not go on"),
                        }
                        began = Instant::now();
                        break;
                    }
                    None => handle.no_more("the cloud opened another tunnel instead of going on"),
                },
                // Another cloudcore cannot know it.
                Err(Ended::Connect(LinkError::Refused { status, reason, .. }))
                    if next == server && status == StatusCode::GONE.as_u16() =>
                {
                    handle.no_more(&reason);
                }
                Err(error) => debug!(server = next, cause = super::chain(&error), "the stream tunnel is still cut"),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }
}
