//! Logs: how soon the first byte is there, how fast a long one is, and what many followers of quiet ones take of memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use testkit::deployment::{Cluster, Deployment};
use testkit::door::{Connection, Door, first, rest};
use tokio::task::JoinSet;

use super::{Doors, LIMIT, of_api, of_node, percentile, programs, run};
use crate::bench::fleet::mega;
use crate::bench::process::{self, Usage};
use crate::bench::report::{Report, Row};
use crate::bench::{SETTLE, pods};

const FIRST_BYTES: usize = 200;
/// What the long log holds, in lines of [`LINE`] bytes.
const LONG: usize = 500_000_000;
const LINE: usize = 200;
/// What the writer of the long log says when it is done.
const DONE: &str = "done\n";
const QUIET_PODS: usize = 5;
const FOLLOWS_OF_EACH: usize = 100;
const FOLLOWS: usize = QUIET_PODS * FOLLOWS_OF_EACH;
/// Follows that begin at the same time.
const AT_ONCE: usize = 16;
/// After so long what followers took has to be given back.
const AFTER: Duration = Duration::from_secs(30);

/// Everything about logs.
pub async fn measure(deployment: &Deployment, cluster: &Cluster, doors: &Doors, report: &mut Report) -> Result<()> {
    let quiet: Vec<String> = (0..QUIET_PODS).map(|number| format!("bench-quiet-{number}")).collect();
    run(cluster, &quiet, "echo one line; sleep 3600").await?;
    doors.until_open(&quiet[0]).await?;
    first_bytes(&quiet[0], doors, report).await?;
    follows(deployment, &quiet, doors, report).await?;
    pods::delete(cluster, &quiet).await?;

    let long = ["bench-long".to_owned()];
    let text = "x".repeat(LINE - 1);
    run(cluster, &long, &format!("yes {text} | head -c {LONG}; echo done; sleep 3600")).await?;
    let began = Instant::now();
    let query = of_node(&long[0], "tailLines=1");
    while first(&mut doors.node.open().await?.get(&query).await?).await? != DONE {
        ensure!(began.elapsed() < LIMIT, "the long log is not written after {} s", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    through(deployment, "by the node's own API", &doors.node, &of_node(&long[0], ""), None, report).await?;
    through(deployment, "through the API and the tunnel", &doors.api, &of_api(&long[0], ""), Some(100.0), report)
        .await?;
    pods::delete(cluster, &long).await
}

/// Both ways in turns, each on a connection of its own that stays.
async fn first_bytes(pod: &str, doors: &Doors, report: &mut Report) -> Result<()> {
    let (far, near) = (of_api(pod, "tailLines=1"), of_node(pod, "tailLines=1"));
    let (mut api, mut node) = (doors.api.open().await?, doors.node.open().await?);
    let (mut by_api, mut by_node) = (Vec::new(), Vec::new());
    for _ in 0..FIRST_BYTES {
        by_api.push(first_byte(&mut api, &far).await?);
        by_node.push(first_byte(&mut node, &near).await?);
    }
    by_api.sort_by(f64::total_cmp);
    by_node.sort_by(f64::total_cmp);
    for percent in [50, 99] {
        let (far, near) = (percentile(&by_api, percent), percentile(&by_node, percent));
        report.add(Row::told(format!("B15 first byte of a log by the node's own API: p{percent}"), "ms", near));
        report.add(Row::told(format!("B15 first byte of a log through API and tunnel: p{percent}"), "ms", far));
        let what = format!("B15 first byte of a log, what API and tunnel add: p{percent}");
        report.add(Row::timed(what, "ms", vec![far - near], 50.0));
    }
    Ok(())
}

async fn first_byte(connection: &mut Connection, path: &str) -> Result<f64> {
    let began = Instant::now();
    let mut body = connection.get(path).await?;
    first(&mut body).await?;
    let took = began.elapsed();
    // So that the connection can be used again.
    rest(&mut body).await?;
    Ok(took.as_secs_f64() * 1000.0)
}

/// The whole long log, of which no byte may be missing.
async fn through(
    deployment: &Deployment,
    way: &str,
    door: &Door,
    path: &str,
    budget: Option<f64>,
    report: &mut Report,
) -> Result<()> {
    let [cloudcore, edgecore] = programs(deployment)?;
    let own = i32::try_from(std::process::id())?;
    let usages = [("cloudcore", cloudcore), ("edgecore", edgecore), ("the client", own)];
    let usages = usages.map(|(program, pid)| (program, Usage::begin(pid)));
    let began = Instant::now();
    let mut connection = door.open().await?;
    let bytes = rest(&mut connection.get(path).await?).await?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(bytes == LONG + DONE.len(), "{bytes} of {} bytes of the log came {way}", LONG + DONE.len());
    let what = format!("B15 a log of {} MB {way}", LONG / 1_000_000);
    let rate = bytes as f64 / 1e6 / seconds;
    report.add(match budget {
        Some(budget) => Row::at_least(what.clone(), "MB/s", vec![rate], budget),
        None => Row::told(what.clone(), "MB/s", rate),
    });
    for (program, usage) in usages {
        report.add(Row::told(format!("{what}: CPU of {program}"), "s", usage?.seconds()?));
    }
    for (program, pid) in [("cloudcore", cloudcore), ("edgecore", edgecore)] {
        report.add(Row::told(
            format!("{what}: RSS of {program} just after"),
            "MB",
            mega(process::memory(pid)?.rss_kib),
        ));
    }
    Ok(())
}

async fn follows(deployment: &Deployment, quiet: &[String], doors: &Doors, report: &mut Report) -> Result<()> {
    let pids = programs(deployment)?;
    let memory = || -> Result<[u64; 2]> { Ok([process::memory(pids[0])?.rss_kib, process::memory(pids[1])?.rss_kib]) };
    tokio::time::sleep(SETTLE).await;
    let before = memory()?;
    let mut open = Vec::new();
    for some in (0..FOLLOWS).collect::<Vec<_>>().chunks(AT_ONCE) {
        let mut opening = JoinSet::new();
        for number in some {
            let (path, door) = (of_api(&quiet[number % QUIET_PODS], "follow=true&tailLines=1"), doors.api.clone());
            opening.spawn(async move {
                let mut connection = door.open().await?;
                let mut body = connection.get(&path).await?;
                first(&mut body).await?;
                anyhow::Ok((connection, body))
            });
        }
        while let Some(opened) = opening.join_next().await {
            open.push(opened??);
        }
    }
    tokio::time::sleep(SETTLE).await;
    let during = memory()?;
    let usages = [Usage::begin(pids[0])?, Usage::begin(pids[1])?];
    tokio::time::sleep(Duration::from_secs(10)).await;
    let [of_cloudcore, of_edgecore] = usages.map(|usage| usage.percent());
    // One that had ended would take nothing, and be counted.
    let ended = open.iter_mut().filter_map(|(_, body)| body.frame().now_or_never()).count();
    ensure!(ended == 0, "{ended} of {FOLLOWS} follows ended by themselves or got more than the one line");
    drop(open);
    tokio::time::sleep(AFTER).await;
    let after = memory()?;
    let each = |place: usize| during[place].saturating_sub(before[place]) as f64 / FOLLOWS as f64;
    let what = format!("B15 {FOLLOWS} idle follows");
    report.add(Row::timed(
        format!("{what}: RSS of cloudcore for each, of the embedded Kubernetes (its client and the TLS that it dials) and CloudStream together"),
        "KiB",
        vec![each(0)],
        30.0,
    ));
    report.add(Row::told(format!("{what}: RSS of edgecore for each"), "KiB", each(1)));
    for (place, program) in ["cloudcore", "edgecore"].into_iter().enumerate() {
        for (when, memory) in [("before", before), ("while they last", during), ("30 s after", after)] {
            report.add(Row::told(format!("{what}: RSS of {program} {when}"), "MB", mega(memory[place])));
        }
    }
    report.add(Row::told(format!("{what}: CPU of cloudcore"), "%", of_cloudcore?));
    report.add(Row::told(format!("{what}: CPU of edgecore"), "%", of_edgecore?));
    Ok(())
}
