//! `Metrics`: pages of nodes.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Method};
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::status::Unread;
use super::v1::metrics_response::Result as Found;
use super::v1::{MetricsRequest, MetricsResponse, Page};
use super::{Answers, Asker, request, status};
use crate::cloudstream::access::Action;
use crate::cloudstream::tunnels::Answer;

/// Names in a request.
const MAX_NODES: usize = 1000;
/// Between rounds, in seconds.
const INTERVAL: std::ops::RangeInclusive<u32> = 5..=86_400;
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// How long a node may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest page: a client takes 4 MiB by default.
const MAX_PAGE: usize = 3 << 20;

/// Checks the request; what it asks for comes while the answers are read.
pub(super) async fn read(asker: Asker, asked: MetricsRequest) -> Result<Answers<MetricsResponse>, Status> {
    let path = match Page::try_from(asked.page) {
        Ok(Page::Summary) => "/stats/summary",
        Ok(Page::Resource) => "/metrics/resource",
        Ok(Page::Cadvisor) => "/metrics/cadvisor",
        Ok(Page::Agent) => "/metrics",
        Err(_) => return Err(Status::invalid_argument(format!("page: {} is none", asked.page))),
    };
    if asked.nodes.len() > MAX_NODES {
        return Err(Status::invalid_argument(format!("nodes: at most {MAX_NODES}; name none for all")));
    }
    if let Some(wrong) = asked.nodes.iter().find(|node| !api::edgecore::is_node_name(node)) {
        return Err(Status::invalid_argument(format!("nodes: {wrong:?} is no node's name")));
    }
    let seconds = asked.interval_seconds;
    if seconds != 0 && !INTERVAL.contains(&seconds) {
        let (least, most) = (INTERVAL.start(), INTERVAL.end());
        return Err(Status::invalid_argument(format!("interval_seconds: 0 for one round, or {least} to {most}")));
    }
    let first = round(asker.clone(), asked.nodes.clone(), path).await?;
    let state = (asker.clone(), asked.nodes, timer(seconds));
    let later = stream::try_unfold(state, move |(asker, nodes, timer)| async move {
        let Some(mut timer) = timer else { return Ok(None) };
        timer.tick().await;
        let round = round(asker.clone(), nodes.clone(), path).await?;
        Ok(Some((round, (asker, nodes, Some(timer)))))
    });
    let rounds = stream::iter([Ok::<_, Status>(first)]).chain(later);
    let answers = rounds.map_ok(move |nodes| {
        let asker = asker.clone();
        stream::iter(nodes).map(move |node| page(asker.clone(), node, path)).buffer_unordered(AT_ONCE).map(Ok)
    });
    Ok(Box::pin(answers.try_flatten()))
}

fn timer(seconds: u32) -> Option<tokio::time::Interval> {
    let period = Duration::from_secs(seconds.into());
    let mut timer = (seconds > 0).then(|| tokio::time::interval_at(tokio::time::Instant::now() + period, period));
    if let Some(timer) = &mut timer {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    timer
}

/// The nodes that are to be asked now, all of which he may ask.
fn round(asker: Asker, nodes: Vec<String>, path: &'static str) -> BoxFuture<'static, Result<Vec<String>, Status>> {
    Box::pin(async move {
        let all = asker.allowed(Action::on_node(&Method::GET, path, "")).await;
        if nodes.is_empty() {
            return all.map(|()| asker.server.tunnels.nodes());
        }
        if all.is_err() {
            for node in &nodes {
                asker.allowed(Action::on_node(&Method::GET, path, node)).await?;
            }
        }
        Ok(nodes)
    })
}

async fn page(asker: Asker, node: String, path: &'static str) -> MetricsResponse {
    let found = tokio::time::timeout(LIMIT, content(&asker, &node, path)).await;
    let silent = || Status::deadline_exceeded(format!("node {node} did not answer within {} s", LIMIT.as_secs()));
    let found = match found.unwrap_or_else(|_| Err(silent())) {
        Ok(content) => Found::Content(content),
        Err(status) => Found::Error(status::error(&status)),
    };
    MetricsResponse { node, time: Some(SystemTime::now().into()), result: Some(found) }
}

async fn content(asker: &Asker, node: &str, path: &str) -> Result<Vec<u8>, Status> {
    let tunnel = asker.server.tunnels.open(node).await.map_err(status::of_tunnel)?;
    let answer = match tunnel.ask(request(path, HeaderMap::new())?).await.map_err(status::of_tunnel)? {
        Answer::Plain(answer) => status::content(node, answer).await?,
        Answer::Upgraded(..) => return Err(Status::internal(format!("node {node} answers with another stream"))),
    };
    status::whole(answer, MAX_PAGE).await.map_err(|unread| match unread {
        Unread::TooLong => Status::resource_exhausted(format!("{path} of node {node} is longer than 3 MiB")),
        Unread::Broken(why) => Status::unavailable(format!("{path} of node {node} broke off: {why}")),
    })
}
