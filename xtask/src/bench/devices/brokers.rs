//! B12: edgecore's broker, inside the agent that users have, beside mosquitto on the same core; the load has another core to itself. They take turns, and
//! medians are compared.
//!
//! Mosquitto runs without persistence and with TCP_NODELAY, which is the best for it here; edgecore's broker as it always does. A publisher waits while one of
//! the subscribers lacks more than a few messages, so that nobody's queue is ever full and none may be dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use testkit::deployment::{Deployment, edgecore_name};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::client::{Client, Packet, until_there};
use crate::bench::process::{self, Usage};
use crate::bench::report::{Report, Row};
use crate::terminal::{complain, step};

const SUBSCRIBERS: usize = 100;
/// Messages that a subscriber may lack before the publisher waits. Mosquitto keeps 1,000 for one that is slow.
const WINDOW: u64 = 200;
/// How long one run takes, and how often each broker has its turn.
const SPAN: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
/// Messages a second from one client to another.
const RATE: u32 = 1000;
/// Bytes of a message.
const PAYLOAD: usize = 64;
const TOPIC: &str = "bench/topic";
const MOSQUITTO: &str = "mosquitto";

/// A broker and its process.
struct Rival {
    address: SocketAddr,
    pid: i32,
}

/// What a run came to.
#[derive(Default)]
struct Run {
    /// Messages delivered in a second.
    rate: f64,
    /// Of one core, in percent: what the broker had, and what the load.
    broker: f64,
    load: f64,
}

/// Measures both; the deployment's edgecore runs.
pub async fn measure(deployment: &mut Deployment, report: &mut Report) -> Result<()> {
    let everywhere = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| everywhere.is_set(*core)).take(2).collect();
    let [of_brokers, of_load] = cores[..] else {
        complain("the MQTT brokers are not measured: the load needs a core of its own, and there is one");
        return Ok(());
    };
    let pid = deployment.children.pid(&edgecore_name(1)).context("edgecore does not run")?;
    let rivals = [Rival { address: deployment.broker(1)?, pid }, start_mosquitto(deployment).await?];
    for rival in &rivals {
        confine(rival.pid, &only(of_brokers))?;
    }
    for qos in [0, 1] {
        let mut runs: [Vec<Run>; 2] = Default::default();
        for _ in 0..ROUNDS {
            for (rival, runs) in rivals.iter().zip(&mut runs) {
                let usage = Usage::begin(rival.pid)?;
                let mut run = on(of_load, fan_out(rival.address, qos)).await?;
                run.broker = usage.percent()?;
                runs.push(run);
            }
        }
        let [ours, theirs] = runs;
        let of = |runs: &[Run], what: fn(&Run) -> f64| runs.iter().map(what).collect::<Vec<_>>();
        let what = format!("B12 1 → {SUBSCRIBERS} subscribers, QoS {qos}, one core");
        for (name, runs) in [("edgecore's broker", &ours), (MOSQUITTO, &theirs)] {
            report.add(Row::all(format!("{what}: {name}"), "messages/s", of(runs, |run| run.rate)));
            // Whose core is full is the limit.
            let (broker, load) = (median(of(runs, |run| run.broker)), median(of(runs, |run| run.load)));
            step(format_args!("CPU: {broker:.0} % by {name}, {load:.0} % by the load"));
        }
        let ratio = median(of(&ours, |run| run.rate)) / median(of(&theirs, |run| run.rate));
        report.add(Row::at_least(format!("{what}: ours to mosquitto's"), "times", vec![ratio], 1.0));
    }
    for qos in [0, 1] {
        let mut times: [[Vec<f64>; 2]; 2] = Default::default();
        for _ in 0..ROUNDS {
            for (rival, [p50, p99]) in rivals.iter().zip(&mut times) {
                let mut all = on(of_load, one_to_one(rival.address, qos)).await?;
                all.sort_by(f64::total_cmp);
                let percentile = |share: usize| all.get(all.len() * share / 100).copied().unwrap_or_default();
                p50.push(percentile(50));
                p99.push(percentile(99));
            }
        }
        let [[p50, p99], [their_p50, their_p99]] = times;
        let what = format!("B12 one to one at {RATE}/s, QoS {qos}");
        report.add(Row::all(format!("{what}: p50"), "ms", p50));
        report.add(Row::timed(format!("{what}: p99"), "ms", p99, 1.0));
        report.add(Row::all(format!("{what}: {MOSQUITTO}'s p50"), "ms", their_p50));
        report.add(Row::all(format!("{what}: {MOSQUITTO}'s p99"), "ms", their_p99));
    }
    deployment.children.stop(MOSQUITTO)?;
    confine(pid, &everywhere)
}

async fn start_mosquitto(deployment: &mut Deployment) -> Result<Rival> {
    // Free now; whoever takes it meanwhile makes the bench fail, which is told.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let config = deployment.layout.dir().join("mosquitto.conf");
    let text =
        format!("listener {} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_type error\n", address.port());
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let mut command = Command::new(MOSQUITTO);
    command.arg("-c").arg(&config);
    deployment.children.start(MOSQUITTO, &mut command, &deployment.layout.log(MOSQUITTO))?;
    until_there(address).await.context("mosquitto does not start")?;
    Ok(Rival { address, pid: deployment.children.pid(MOSQUITTO).context("mosquitto does not run")? })
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core);
    cores
}

/// All threads of a process, and those that they will start.
fn confine(pid: i32, cores: &CpuSet) -> Result<()> {
    for thread in process::threads(pid)? {
        match sched_setaffinity(Some(thread), cores) {
            // It has ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("a process cannot be confined to one core"),
        }
    }
    Ok(())
}

/// Runs this on one core, in one thread.
async fn on<T: Send + 'static>(core: usize, load: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let run = move || {
        let before = sched_getaffinity(None)?;
        sched_setaffinity(None, &only(core))?;
        let result = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(load);
        // The thread goes back to others.
        sched_setaffinity(None, &before)?;
        result
    };
    tokio::task::spawn_blocking(run).await?
}

/// How much each subscriber has.
struct Heard {
    counts: Vec<AtomicU64>,
    news: Notify,
}

impl Heard {
    fn least(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or_default()
    }
}

async fn fan_out(broker: SocketAddr, qos: u8) -> Result<Run> {
    let heard = Arc::new(Heard { counts: (0..SUBSCRIBERS).map(|_| AtomicU64::new(0)).collect(), news: Notify::new() });
    let mut subscribers = JoinSet::new();
    for place in 0..SUBSCRIBERS {
        let mut client = Client::connect(broker, &format!("subscriber-{place}")).await?;
        client.subscribe(&[TOPIC.to_owned()], qos).await?;
        let heard = heard.clone();
        subscribers.spawn(async move { hear(client, &heard, place).await });
    }
    let publisher = Client::connect(broker, "publisher").await?;
    let (began, cpu) = (Instant::now(), thread_seconds());
    let sent = tokio::select! {
        sent = say(publisher, &heard, qos) => sent?,
        Some(ended) = subscribers.join_next() => ended?.and(Err(anyhow::anyhow!("a subscriber ended")))?,
    };
    let seconds = began.elapsed().as_secs_f64();
    let load = (thread_seconds() - cpu) / seconds * 100.0;
    // Nothing comes after the last.
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(
        heard.counts.iter().all(|count| count.load(Ordering::Relaxed) == sent),
        "messages came more often than once"
    );
    Ok(Run { rate: sent as f64 * SUBSCRIBERS as f64 / seconds, load, ..Run::default() })
}

/// Counts what comes.
async fn hear(mut client: Client, heard: &Heard, place: usize) -> Result<()> {
    loop {
        client.arrive().await?;
        let mut count = 0;
        while let Some(packet) = client.take()? {
            count += u64::from(matches!(packet, Packet::Message { .. }));
        }
        client.flush().await?;
        heard.counts[place].fetch_add(count, Ordering::Relaxed);
        heard.news.notify_one();
    }
}

/// Publishes as fast as it is heard; how many, when all have all of them.
async fn say(mut client: Client, heard: &Heard, qos: u8) -> Result<u64> {
    let (began, mut sent, mut acknowledged) = (Instant::now(), 0, 0);
    loop {
        let least = heard.least();
        let more = began.elapsed() < SPAN;
        if !more && least >= sent && (qos == 0 || acknowledged == sent) {
            return Ok(sent);
        }
        while more && sent < least + WINDOW {
            client.publish(TOPIC, &[b'x'; PAYLOAD], qos);
            sent += 1;
        }
        client.flush().await?;
        let next = async {
            tokio::select! {
                () = heard.news.notified() => Ok(()),
                arrived = client.arrive() => arrived,
            }
        };
        match tokio::time::timeout(SPAN * 2, next).await {
            Ok(next) => next?,
            Err(_) => bail!("of {sent} messages one subscriber has only {least}"),
        }
        while let Some(packet) = client.take()? {
            acknowledged += u64::from(matches!(packet, Packet::Acknowledged));
        }
    }
}

/// The milliseconds that each message took.
async fn one_to_one(broker: SocketAddr, qos: u8) -> Result<Vec<f64>> {
    let mut subscriber = Client::connect(broker, "subscriber").await?;
    subscriber.subscribe(&[TOPIC.to_owned()], qos).await?;
    let mut publisher = Client::connect(broker, "publisher").await?;
    let count = RATE as usize * SPAN.as_secs() as usize;
    let (mut sent, mut times): (Vec<Instant>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut each = tokio::time::interval(Duration::from_secs(1) / RATE);
    while times.len() < count {
        tokio::select! {
            arrived = subscriber.arrive() => {
                arrived?;
                let now = Instant::now();
                while let Some(packet) = subscriber.take()? {
                    let Packet::Message { payload, .. } = packet else { continue };
                    let number: [u8; 8] = payload[..8].try_into().context("a payload")?;
                    ensure!(u64::from_be_bytes(number) == times.len() as u64, "message {} is lost or comes twice", times.len());
                    times.push(now.duration_since(sent[times.len()]).as_secs_f64() * 1000.0);
                }
                subscriber.flush().await?;
            }
            arrived = publisher.arrive() => {
                arrived?;
                while publisher.take()?.is_some() {}
            }
            _ = each.tick(), if sent.len() < count => {
                let mut payload = [0; PAYLOAD];
                payload[..8].copy_from_slice(&(sent.len() as u64).to_be_bytes());
                sent.push(Instant::now());
                publisher.publish(TOPIC, &payload, qos);
                publisher.flush().await?;
            }
            () = tokio::time::sleep(SPAN * 2) => bail!("of {} messages {} came", sent.len(), times.len()),
        }
    }
    Ok(times)
}

/// What this thread has had of a core.
fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
