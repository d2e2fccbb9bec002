//! `kubectl exec -i … cat`: one byte there and back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use link::frames::{Frame, message};
use testkit::deployment::Cluster;
use testkit::door::Door;

use super::{Doors, LIMIT, percentile, run};
use crate::bench::pods::{self, PODS};
use crate::bench::report::{Report, Row};

const ROUNDS: usize = 500;
/// The newest of the protocols that kubectl speaks.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// The first byte of each message says which stream it is of.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;

/// By both ways.
pub async fn measure(cluster: &Cluster, doors: &Doors, report: &mut Report) -> Result<()> {
    let pod = ["bench-exec".to_owned()];
    run(cluster, &pod, "echo here; sleep 3600").await?;
    doors.until_open(&pod[0]).await?;
    let near = format!("/exec/default/{}/main?command=cat&input=1&output=1", pod[0]);
    let far = format!("{PODS}/{}/exec?command=cat&stdin=true&stdout=true&container=main", pod[0]);
    let by_node = rounds(&doors.node, &near).await?;
    let by_api = rounds(&doors.api, &far).await?;
    for percent in [50, 99] {
        let what = format!("B15 exec, one byte there and back by the node's own API: p{percent}");
        report.add(Row::told(what, "ms", percentile(&by_node, percent)));
        let what = format!("B15 exec, one byte there and back through API and tunnel: p{percent}");
        report.add(Row::timed(what, "ms", vec![percentile(&by_api, percent)], 5.0));
    }
    pods::delete(cluster, &pod).await
}

async fn rounds(door: &Door, path: &str) -> Result<Vec<f64>> {
    let mut connection = door.open().await?;
    let mut frames = connection.websocket(path, PROTOCOL).await?;
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let byte = b'a' + (round % 26) as u8;
        let began = Instant::now();
        frames.send(Frame::binary(vec![STDIN, byte])).await?;
        loop {
            let came = tokio::time::timeout(LIMIT, message(&mut frames)).await.context("exec does not answer")??;
            let (_, bytes) = came.context("exec has ended")?;
            // Streams may begin with a message that is empty.
            if bytes.len() > 1 {
                ensure!(bytes[..] == [STDOUT, byte], "exec answers {bytes:?}");
                break;
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    frames.close().await?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}
