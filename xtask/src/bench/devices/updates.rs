//! B10: one node. A hundred devices that report as fast as they are answered; then a thousand that do so once a second.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use testkit::deployment::{Cluster, Deployment, edgecore_name, node_name};
use tokio::task::JoinSet;

use super::client::{Client, Packet};
use super::seen::Watching;
use super::{LIMIT, PROPERTY, create, delete};
use crate::bench::fleet::mega;
use crate::bench::process::{self, Usage};
use crate::bench::report::{Report, Row};

/// Devices that report as fast as they can, and over how many connections.
const HASTY: usize = 100;
const CONNECTIONS: usize = 8;
/// Reports of one connection that wait for their answers.
const WINDOW: usize = 64;
/// Devices that report once a second.
const STEADY: usize = 1000;
const PERIOD: Duration = Duration::from_secs(1);
/// What comes before the rest counts: the first value of a device makes its DeviceStatus.
const WARM: Duration = Duration::from_secs(5);
/// How long each is measured.
const HASTY_SPAN: Duration = Duration::from_secs(20);
const STEADY_SPAN: Duration = Duration::from_secs(60);

/// When each value of a device was answered. A value is the number of those before it.
type Answered = HashMap<String, Vec<Instant>>;

/// Devices of one connection.
struct Group {
    client: Client,
    names: Vec<String>,
    topics: Vec<String>,
    sent: Vec<usize>,
    answered: Vec<Vec<Instant>>,
    acknowledged: usize,
}

/// Both, on the deployment's first node.
pub async fn measure(deployment: &Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let pid = deployment.children.pid(&edgecore_name(1)).context("edgecore does not run")?;
    let broker = deployment.broker(1)?;

    let names = prepare(cluster, broker, "hasty", HASTY).await?;
    let mut watching = Watching::start(cluster).await?;
    let from = Instant::now() + WARM;
    let load = load(broker, &names, None, from + HASTY_SPAN);
    let (answered, percent) = tokio::join!(load, percent(pid, from, HASTY_SPAN));
    let (answered, percent) = (answered?, percent?);
    let caught_up = watching.until_last(&answered).await?;
    let count = answered.values().flatten().filter(|at| **at >= from).count();
    let rate = count as f64 / HASTY_SPAN.as_secs_f64();
    let stale = watching.staleness(&answered, from);
    let what = format!("B10 {HASTY} devices at full speed");
    report.add(Row::at_least(format!("{what}: updates answered and durable"), "/s", vec![rate], 10_000.0));
    report.add(Row::told(format!("{what}: CPU of edgecore"), "%", percent));
    report.add(Row::told(format!("{what}: DeviceStatus stale, p50"), "s", stale.percentile(50)));
    report.add(Row::timed(format!("{what}: DeviceStatus stale, p99"), "s", vec![stale.percentile(99)], 1.0));
    // The times are those at which a watch tells of it, which are exact to a hundredth or so.
    let most = (stale.most * 100.0).round() / 100.0;
    report.add(Row::timed(format!("{what}: writes of one device"), "/s", vec![most], 1.0));
    report.add(Row::told(format!("{what}: all last values in DeviceStatus after"), "s", caught_up.as_secs_f64()));
    delete(cluster, names).await?;

    let names = prepare(cluster, broker, "steady", STEADY).await?;
    let from = Instant::now() + WARM;
    let load = self::load(broker, &names, Some(PERIOD), from + STEADY_SPAN);
    let cloud = deployment.children.pid("cloudcore").context("cloudcore does not run")?;
    let usage =
        async { tokio::try_join!(self::percent(pid, from, STEADY_SPAN), self::percent(cloud, from, STEADY_SPAN)) };
    let (answered, usage) = tokio::join!(load, usage);
    let (answered, (percent, of_cloud)) = (answered?, usage?);
    let memory = process::memory(pid)?;
    watching.until_last(&answered).await?;
    let stale = watching.staleness(&answered, from);
    let what = format!("B10 {STEADY} devices, each once a second");
    report.add(Row::timed(format!("{what}: CPU of edgecore"), "%", vec![percent], 25.0));
    report.add(Row::timed(format!("{what}: RSS of edgecore"), "MB", vec![mega(memory.rss_kib)], 40.0));
    report.add(Row::told(format!("{what}: CPU of cloudcore with its embedded Kubernetes"), "%", of_cloud));
    report.add(Row::told(format!("{what}: writes at the API"), "/s", stale.writes as f64 / STEADY_SPAN.as_secs_f64()));
    report.add(Row::told(format!("{what}: DeviceStatus stale, p50"), "s", stale.percentile(50)));
    report.add(Row::timed(format!("{what}: DeviceStatus stale, p99"), "s", vec![stale.percentile(99)], 1.0));
    delete(cluster, names).await
}

/// Creates devices on the node and waits until it has them.
async fn prepare(cluster: &Cluster, broker: SocketAddr, prefix: &str, count: usize) -> Result<Vec<String>> {
    let names: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    create(cluster, names.iter().map(|name| (name.clone(), node_name(1)))).await?;
    let node = node_name(1);
    let topic = |what: &str| format!("$hw/events/node/{node}/membership/{what}");
    let mut client = Client::connect(broker, "who-is-there").await?;
    client.subscribe(&[topic("get/result")], 0).await?;
    let began = Instant::now();
    let mut each = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            arrived = client.arrive() => arrived?,
            _ = each.tick() => {
                client.publish(&topic("get"), b"{}", 0);
                client.flush().await?;
            }
        }
        while let Some(packet) = client.take()? {
            let Packet::Message { payload, .. } = packet else { continue };
            let answer: serde_json::Value = serde_json::from_slice(&payload)?;
            let is_own =
                |device: &&serde_json::Value| device["name"].as_str().is_some_and(|name| name.starts_with(prefix));
            if answer["devices"].as_array().into_iter().flatten().filter(is_own).count() == count {
                return Ok(names);
            }
        }
        ensure!(began.elapsed() < LIMIT, "the node has not got all of {count} devices");
    }
}

/// What a process had of one core in this span.
async fn percent(pid: i32, from: Instant, span: Duration) -> Result<f64> {
    tokio::time::sleep_until(from.into()).await;
    let usage = Usage::begin(pid)?;
    tokio::time::sleep(span).await;
    usage.percent()
}

/// Devices that report until then, each again after the period, or without one as fast as they are answered.
async fn load(broker: SocketAddr, names: &[String], period: Option<Duration>, until: Instant) -> Result<Answered> {
    let mut groups = JoinSet::new();
    for (number, names) in names.chunks(names.len().div_ceil(CONNECTIONS)).enumerate() {
        let group = Group::connect(broker, &format!("devices-{number}"), names).await?;
        groups.spawn(async move {
            match period {
                None => group.hurry(until).await,
                Some(period) => group.keep_time(period, until).await,
            }
        });
    }
    let mut answered = Answered::new();
    while let Some(group) = groups.join_next().await {
        let group = group??;
        answered.extend(group.names.into_iter().zip(group.answered));
    }
    Ok(answered)
}

impl Group {
    async fn connect(broker: SocketAddr, id: &str, names: &[String]) -> Result<Self> {
        let mut client = Client::connect(broker, id).await?;
        let topics: Vec<String> =
            names.iter().map(|name| format!("$hw/events/device/default/{name}/twin/update")).collect();
        let results: Vec<String> = topics.iter().map(|topic| format!("{topic}/result")).collect();
        client.subscribe(&results, 0).await?;
        let (sent, answered) = (vec![0; names.len()], vec![Vec::new(); names.len()]);
        Ok(Self { client, names: names.to_vec(), topics, sent, answered, acknowledged: 0 })
    }

    async fn hurry(mut self, until: Instant) -> Result<Self> {
        let mut waiting = 0;
        for place in (0..self.names.len()).cycle() {
            if Instant::now() >= until {
                break;
            }
            self.report(place);
            waiting += 1;
            while waiting >= WINDOW {
                waiting -= self.hear().await?;
            }
        }
        self.finish().await
    }

    async fn keep_time(mut self, period: Duration, until: Instant) -> Result<Self> {
        let count = u32::try_from(self.names.len())?;
        let mut each = tokio::time::interval(period / count);
        for place in (0..self.names.len()).cycle() {
            loop {
                tokio::select! {
                    _ = each.tick() => break,
                    heard = self.hear() => drop(heard?),
                }
            }
            if Instant::now() >= until {
                break;
            }
            self.report(place);
            self.client.flush().await?;
        }
        self.finish().await
    }

    /// The next value of a device.
    fn report(&mut self, place: usize) {
        let number = self.sent[place].to_string();
        let twin = json!({PROPERTY: {"actual": {"value": number}, "metadata": {"type": "int"}}});
        let payload = json!({"event_id": number, "twin": twin}).to_string();
        self.sent[place] += 1;
        self.client.publish(&self.topics[place], payload.as_bytes(), 1);
    }

    /// Sends what is said, waits for the broker, and notes what is answered; how many that were.
    async fn hear(&mut self) -> Result<usize> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            event_id: &'a str,
            code: Option<u16>,
            reason: Option<String>,
        }
        self.client.flush().await?;
        tokio::time::timeout(LIMIT, self.client.arrive()).await.context("updates are not answered")??;
        let (now, mut count) = (Instant::now(), 0);
        while let Some(packet) = self.client.take()? {
            let Packet::Message { topic, payload } = packet else {
                self.acknowledged += 1;
                continue;
            };
            let place = self.place(&topic)?;
            let answer: Answer<'_> = serde_json::from_slice(&payload)?;
            let name = &self.names[place];
            if let Some(code) = answer.code {
                bail!("an update of {name} is refused: {code} {}", answer.reason.unwrap_or_default());
            }
            let due = self.answered[place].len();
            ensure!(
                answer.event_id == due.to_string(),
                "update {due} of {name} has no answer, {} has",
                answer.event_id
            );
            self.answered[place].push(now);
            count += 1;
        }
        Ok(count)
    }

    /// Which device the answer is for.
    fn place(&self, topic: &[u8]) -> Result<usize> {
        let name = std::str::from_utf8(topic)?.split('/').nth(4).unwrap_or_default();
        let number = |name: &str| name.rsplit_once('-').and_then(|(_, number)| number.parse::<usize>().ok());
        let first = self.names.first().and_then(|first| number(first)).context("no devices")?;
        number(name)
            .and_then(|number| number.checked_sub(first))
            .filter(|place| *place < self.names.len())
            .context("an answer for nobody here")
    }

    /// Waits for what is owed.
    async fn finish(mut self) -> Result<Self> {
        let sent: usize = self.sent.iter().sum();
        while self.answered.iter().map(Vec::len).sum::<usize>() < sent || self.acknowledged < sent {
            self.hear().await?;
        }
        Ok(self)
    }
}
