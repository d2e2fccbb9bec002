//! `metrics.k8s.io/v1beta1`: what nodes and pods use now, computed from the statistics of the nodes' kubelets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::summary::{PodUsage, Summary, Usage as Figures};
use super::{Nodes, pass, route};
use crate::api::{Api, List, ListOptions, ResourceRef};
use crate::selector::Selectors;
use crate::{ApiError, meta};

/// The API group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// Nodes that are asked at once, for all clients together.
const AT_ONCE: usize = 64;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer, or that there was none, is good for.
const FRESH: Duration = Duration::from_secs(10);
/// Longer statistics are not read; a node with 110 pods has a hundredth of it.
const MAX_SUMMARY: usize = 8 << 20;
/// The time over which kubelets compute rates.
const WINDOW: &str = "10s";
/// What a node is asked.
const TARGET: &str = "stats/summary?only_cpu_and_memory=true";

/// What is known of the nodes' usage.
pub(crate) struct Usage {
    seats: Semaphore,
    known: Mutex<HashMap<String, Known>>,
}

/// What a node said, or why it said nothing.
type Said = Result<Arc<Summary>, String>;

struct Known {
    at: Instant,
    said: Said,
}

impl Default for Usage {
    fn default() -> Self {
        Self { seats: Semaphore::new(AT_ONCE), known: Mutex::default() }
    }
}

/// The metrics of one node or pod.
///
/// # Errors
/// 404 when it is not there, or its node does not tell.
pub(crate) async fn get(api: &Api, nodes: &Nodes, what: &ResourceRef) -> Result<Value, ApiError> {
    let object = api.get(&source(api, what, &what.name)?)?;
    let is_node = what.resource.plural == "nodes";
    let node = if is_node { what.name.as_str() } else { object["spec"]["nodeName"].as_str().unwrap_or_default() };
    let said = match node {
        "" => Err("the pod is on no node yet".to_owned()),
        node => ask(api, nodes, node).await,
    };
    let measured = said.and_then(|summary| {
        let found = if is_node { of_node(&object, &summary) } else { of_pod(&object, &summary) };
        found.ok_or_else(|| format!("node {node} tells no usage of it yet"))
    });
    measured.map_err(|why| {
        let name = if is_node { what.name.clone() } else { format!("{}/{}", what.namespace, what.name) };
        let kind = if is_node { "nodemetrics" } else { "podmetrics" };
        let mut error = ApiError::not_found(kind, GROUP, &name);
        error.message = format!("{}: {why}", error.message);
        error
    })
}

/// The metrics of all nodes or pods that are selected and known.
///
/// # Errors
/// A selector is malformed, or asks for a field that metrics do not have.
pub(crate) async fn list(
    api: &Api,
    nodes: &Nodes,
    what: &ResourceRef,
    options: &ListOptions,
) -> Result<List, ApiError> {
    let selectors = Selectors::parse(&options.label_selector, &options.field_selector)?;
    if let Some(field) = selectors.fields().find(|field| !matches!(*field, "metadata.name" | "metadata.namespace")) {
        return Err(ApiError::bad_request(format!("field label not supported: {field}")));
    }
    let options = ListOptions { limit: 0, continue_token: String::new(), ..options.clone() };
    let sources = api.list(&source(api, what, "")?, &options)?;
    let is_node = what.resource.plural == "nodes";
    let node_of = |object: &Value| match is_node {
        true => object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        false => route::node_of(object).unwrap_or_default().to_owned(),
    };
    let mut names: Vec<String> = sources.items.iter().map(node_of).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    let asked = stream::iter(names).map(|name| async move {
        let said = ask(api, nodes, &name).await;
        (name, said)
    });
    let said: HashMap<String, Said> = asked.buffer_unordered(AT_ONCE).collect().await;
    let measured = |object: &Value| {
        let summary = said.get(&node_of(object))?.as_ref().ok()?;
        if is_node { of_node(object, summary) } else { of_pod(object, summary) }
    };
    let items = sources.items.iter().filter_map(measured).collect();
    Ok(List { items, revision: sources.revision, continue_token: String::new() })
}

/// The node or pod that metrics are about.
fn source(api: &Api, what: &ResourceRef, name: &str) -> Result<ResourceRef, ApiError> {
    api.reference("", &what.resource.plural, &what.namespace, name)
}

/// What the node says, or said a moment ago.
async fn ask(api: &Api, nodes: &Nodes, node: &str) -> Said {
    let known = |now: Instant| {
        let mut known = nodes.usage.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| now.duration_since(known.at) < FRESH);
        known.get(node).map(|known| known.said.clone())
    };
    if let Some(said) = known(Instant::now()) {
        return said;
    }
    let seat = nodes.usage.seats.acquire().await;
    // Another may have asked meanwhile.
    if let Some(said) = known(Instant::now()) {
        return said;
    }
    let fetched = tokio::time::timeout(PATIENCE, fetch(api, nodes, node)).await;
    let said = fetched.unwrap_or_else(|_| Err(format!("node {node} did not answer within {PATIENCE:?}")));
    drop(seat);
    let known = Known { at: Instant::now(), said: said.clone() };
    nodes.usage.known.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), known);
    said
}

async fn fetch(api: &Api, nodes: &Nodes, node: &str) -> Said {
    let request = pass::about_node(node, TARGET).map_err(|error| error.message)?;
    let answer = nodes.kubelets.ask(api, node, request, Some(PATIENCE)).await.map_err(|error| error.message)?;
    if !answer.status().is_success() {
        return Err(pass::refusal(answer).await.message);
    }
    let body = pass::read(answer.into_body(), MAX_SUMMARY).await;
    let body = body.map_err(|error| format!("the statistics of node {node} cannot be read: {error}"))?;
    let read = serde_json::from_slice(&body);
    read.map(Arc::new).map_err(|error| format!("the statistics of node {node} cannot be read: {error}"))
}

fn of_node(node: &Value, summary: &Summary) -> Option<Value> {
    let mut metrics = head(node, "NodeMetrics", &summary.node);
    metrics["usage"] = usage(&summary.node)?;
    Some(metrics)
}

fn of_pod(pod: &Value, summary: &Summary) -> Option<Value> {
    let own = |of: &&PodUsage| {
        let metadata = &pod["metadata"];
        let is_same = metadata["name"] == of.pod.name.as_str() && metadata["namespace"] == of.pod.namespace.as_str();
        is_same && (of.pod.uid.is_empty() || metadata["uid"] == of.pod.uid.as_str())
    };
    let found = summary.pods.iter().find(own)?;
    let containers: Vec<Value> = found
        .containers
        .iter()
        .filter_map(|container| Some(json!({"name": container.name, "usage": usage(&container.usage)?})))
        .collect();
    if containers.is_empty() {
        return None;
    }
    let mut metrics = head(pod, "PodMetrics", &found.containers[0].usage);
    metrics["metadata"]["namespace"] = pod["metadata"]["namespace"].clone();
    metrics["containers"] = json!(containers);
    Some(metrics)
}

fn head(object: &Value, kind: &str, figures: &Figures) -> Value {
    let now = meta::now();
    let time = figures.cpu.time.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let time = time.map_or_else(|| now.clone(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut metadata = json!({"name": object["metadata"]["name"], "creationTimestamp": now});
    if !object["metadata"]["labels"].is_null() {
        metadata["labels"] = object["metadata"]["labels"].clone();
    }
    json!({"kind": kind, "apiVersion": format!("{GROUP}/v1beta1"), "metadata": metadata, "timestamp": time, "window": WINDOW})
}

/// Both quantities; nothing when one is not known yet.
fn usage(figures: &Figures) -> Option<Value> {
    let (cpu, memory) = (figures.cpu.nano_cores?, figures.memory.working_set?);
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}
