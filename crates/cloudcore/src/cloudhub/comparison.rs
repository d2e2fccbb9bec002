//! The net below everything else: now and then each node is compared with the cluster as a whole, as after a connection.
//!
//! Changes are delivered as they happen; this finds what no rule foresaw. (KubeEdge v1.23 finds everything so, every 5 s.)

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::session::SessionHandle;
use super::sessions::Sessions;
use crate::edgecontroller::downstream::Event;

/// Each node is compared about this often.
const EACH: Duration = Duration::from_secs(1800);
/// But never more nodes than one in this time, however many there are.
const SHORTEST: Duration = Duration::from_millis(200);

/// Asks for one comparison after the other until `stopping`.
pub(super) async fn run(sessions: Sessions, events: mpsc::Sender<Event>, stopping: CancellationToken) {
    let rounds = async {
        loop {
            // Names only: a round is long, and a session that ends meanwhile must not be kept.
            let nodes: Vec<String> = sessions.handles().iter().map(|handle| handle.node().to_owned()).collect();
            let pause = pause(nodes.len());
            if nodes.is_empty() {
                tokio::time::sleep(EACH / 60).await;
            }
            for node in nodes {
                tokio::time::sleep(pause).await;
                // One that is behind, but not for long, is being served; one that is away will be compared when it is back.
                let is_served = |handle: &SessionHandle| handle.lag().is_some_and(|lag| lag.time < EACH);
                let Some(handle) = sessions.of(&node).filter(|handle| !is_served(handle)) else { continue };
                if events.send(Event::Lacking(handle)).await.is_err() {
                    return;
                }
            }
        }
    };
    let _ = stopping.run_until_cancelled(rounds).await;
}

fn pause(nodes: usize) -> Duration {
    let share = u32::try_from(nodes.max(1)).map_or(Duration::ZERO, |nodes| EACH / nodes);
    share.max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_its_time_and_never_hurries() {
        assert_eq!(pause(1), EACH);
        assert_eq!(pause(900), Duration::from_secs(2));
        assert_eq!(pause(100_000), SHORTEST);
    }
}
