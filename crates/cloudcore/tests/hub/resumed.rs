//! Stream tunnels of our own edges whose connections are cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use link::resume::{Handle, Id, Resume};
use link::tunnel::{self, Io};
use testkit::go_edge::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::cloud::{Cloud, SOON};
use crate::edge::{Client, connect, node_with_pod, own_edge, resumable_edge};
use crate::streams::until;

const LOG: &str = "/containerLogs/default/p1/main";

/// Cuts the connection of n1's tunnel, and goes on on another one.
async fn cut(cloud: &Cloud, credentials: &Credentials, (id, handle): (Id, &Handle<Io>), pause: Duration) -> Result<()> {
    let offer = handle.offer().context("the tunnel is over")?;
    tokio::time::sleep(pause).await;
    let resume = Resume { id, read: offer.read() };
    let (frames, headers) = connect(cloud.addresses(), credentials, "n1", true, Some(resume)).await?;
    let theirs = tunnel::resume(&headers).context("the cloud does not go on")?;
    ensure!(theirs.id == id);
    Ok(offer.go_on(theirs.read, frames)?)
}

async fn exec(client: &Client, tasks: &mut JoinSet<()>) -> Result<TokioIo<Upgraded>> {
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let answer = client.ask(tasks, "/exec/default/p1/main?command=sh", &upgrade).await?;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
    Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_its_connections() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let streams = Arc::<AtomicUsize>::default();
    let (_edge, id, handle) = resumable_edge(cloud.addresses(), &credentials, "n1", streams.clone()).await?;
    until(&client, LOG, StatusCode::OK).await?;
    let mut tasks = JoinSet::new();
    let (mut from, mut to) = tokio::io::split(exec(&client, &mut tasks).await?);
    let text: Vec<u8> = (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let write = async { Ok::<_, anyhow::Error>(to.write_all(&text).await?) };
    let mut echo = vec![0; text.len()];
    let read = async { Ok(from.read_exact(&mut echo).await?) };
    let cuts = async {
        for pause in [0, 20, 0, 200, 0] {
            cut(&cloud, &credentials, (id, &handle), Duration::from_millis(pause)).await?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    };
    tokio::time::timeout(SOON, async { tokio::try_join!(write, read, cuts) }).await??;
    ensure!(echo == text, "bytes were lost, or came twice");
    ensure!(streams.load(Ordering::SeqCst) == 1, "it is the same at the edge");
    // Who asks of a node that has neither session nor connection is told at once.
    drop(handle.offer().context("the tunnel is over")?);
    let is_away = || async { Ok(client.text(LOG, &[]).await?.1.contains("node n1 has not connected")) };
    cloud.cluster.wait("the cut to be noticed", SOON, is_away).await?;
    cut(&cloud, &credentials, (id, &handle), Duration::ZERO).await?;
    let answer = client.text(LOG, &[]).await?;
    ensure!(answer == (StatusCode::OK, LOG.to_owned()), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_on_is_refused_and_harms_nobody() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let other = node_with_pod(&cloud, "n2", "p2").await?;
    let client = Client::new(&cloud).await?;
    let (_edge, id, handle) = resumable_edge(cloud.addresses(), &credentials, "n1", Arc::default()).await?;
    until(&client, LOG, StatusCode::OK).await?;
    let mut tasks = JoinSet::new();
    let mut stream = exec(&client, &mut tasks).await?;
    // A tunnel of another name, as after a restart of cloudcore; of another node; at a place that cannot be.
    for (node, credentials, id, read) in
        [("n1", &credentials, Id::random(), 0), ("n2", &other, id, 0), ("n1", &credentials, id, u64::MAX)]
    {
        let refused = connect(cloud.addresses(), credentials, node, true, Some(Resume { id, read })).await;
        let error = refused.err().context("it went on")?.to_string();
        ensure!(error.contains("410"), "{error}");
    }
    stream.write_all(b"still there").await?;
    let mut echo = [0; 11];
    tokio::time::timeout(SOON, stream.read_exact(&mut echo)).await??;
    ensure!(&echo == b"still there");

    // A node that opens another tunnel gives up the one that was cut, and its streams are told.
    drop(handle.offer());
    let _new = own_edge(&cloud, &credentials, "n1", Arc::default()).await?;
    let end = tokio::time::timeout(SOON, stream.read(&mut echo)).await?;
    ensure!(!matches!(end, Ok(1..)), "{end:?}");
    ensure!(until(&client, LOG, StatusCode::OK).await? == LOG);
    Ok(())
}
