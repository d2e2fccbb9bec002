//! `/metrics/fleet`: what the connected nodes say at `/metrics/resource`, as one page on which each series names its node.
//!
//! Nodes are not trusted: what is no proper sample is left out, so that none can spoil the page of all.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::tunnels::{Answer, Tunnels};

/// Nodes that are asked at once.
const AT_ONCE: usize = 32;
/// How long a node may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long all may take; who was not asked by then counts as failed.
const ALL: Duration = Duration::from_secs(30);
/// How long a page serves.
const FRESH: Duration = Duration::from_secs(10);
/// A node's page, at most.
const MAX_ANSWER: usize = 4 << 20;
/// All samples.
const MAX_PAGE: usize = 64 << 20;
/// What a kubelet has at `/metrics/resource` (Kubernetes 1.33): name, kind, meaning. Other names are left out.
const FAMILIES: [(&str, &str, &str); 11] = [
    ("container_cpu_usage_seconds_total", "counter", "Core-seconds that the container has used."),
    ("container_memory_working_set_bytes", "gauge", "Memory that the container uses and cannot give back."),
    ("container_start_time_seconds", "gauge", "When the container started, in seconds since 1970."),
    ("container_swap_usage_bytes", "gauge", "Swap that the container uses."),
    ("node_cpu_usage_seconds_total", "counter", "Core-seconds that the node has used."),
    ("node_memory_working_set_bytes", "gauge", "Memory that the node uses and cannot give back."),
    ("node_swap_usage_bytes", "gauge", "Swap that the node uses."),
    ("pod_cpu_usage_seconds_total", "counter", "Core-seconds that the pod has used."),
    ("pod_memory_working_set_bytes", "gauge", "Memory that the pod uses and cannot give back."),
    ("pod_swap_usage_bytes", "gauge", "Swap that the pod uses."),
    ("resource_scrape_error", "gauge", "1 when the node could not measure, else 0."),
];

/// Asks nodes. Cloning is cheap.
#[derive(Clone)]
pub struct Fleet {
    tunnels: Tunnels,
    page: Arc<Mutex<Option<(Instant, Bytes)>>>,
}

impl Fleet {
    /// Of the nodes that have these tunnels, or would open one.
    pub fn new(tunnels: Tunnels) -> Self {
        Self { tunnels, page: Arc::default() }
    }

    /// The page, at most ten seconds old. Who asks while it is made gets the same one.
    pub async fn page(&self) -> Bytes {
        let mut page = self.page.lock().await;
        if let Some((made, page)) = &*page
            && made.elapsed() < FRESH
        {
            return page.clone();
        }
        let new = self.ask_all().await;
        *page = Some((Instant::now(), new.clone()));
        new
    }

    async fn ask_all(&self) -> Bytes {
        let nodes = self.tunnels.nodes();
        let deadline = Instant::now() + ALL;
        let asked = nodes.len();
        let mut answers = stream::iter(nodes)
            .map(|node| {
                let fleet = self.clone();
                let asking = async move {
                    let answer = tokio::time::timeout(ANSWER, fleet.ask(&node)).await;
                    (node, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
                };
                asking.boxed()
            })
            .buffer_unordered(AT_ONCE);
        let mut merged = Merged::default();
        let mut answered = 0;
        while let Ok(Some((node, answer))) = tokio::time::timeout_at(deadline, answers.next()).await {
            let added = answer.and_then(|text| match merged.add(&node, &text) {
                true => Ok(()),
                false => Err("the page of all nodes is full".to_owned()),
            });
            match added {
                Ok(()) => answered += 1,
                Err(error) => debug!(node, error, "a node's metrics are missing"),
            }
        }
        if answered < asked {
            warn!(asked, answered, "metrics of some nodes are missing");
        }
        merged.page(answered, asked - answered).into()
    }

    async fn ask(&self, node: &str) -> Result<String, String> {
        let request = Request::get("/metrics/resource").body(Full::<Bytes>::default());
        let request = request.map_err(|error| error.to_string())?;
        let tunnel = self.tunnels.open(node).await.map_err(|error| error.to_string())?;
        match tunnel.ask(request).await.map_err(|error| error.to_string())? {
            Answer::Plain(answer) if answer.status() == StatusCode::OK => {
                let mut body = answer.into_body();
                let mut text = Vec::new();
                while let Some(frame) = body.frame().await {
                    let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
                    if text.len() + piece.len() > MAX_ANSWER {
                        return Err(format!("the answer is longer than {MAX_ANSWER} bytes"));
                    }
                    text.extend_from_slice(&piece);
                }
                let text = String::from_utf8(text).map_err(|error| error.to_string())?;
                // A Go edge that cannot answer says so in words.
                match text.lines().any(|line| Sample::parse(line).is_some()) {
                    true => Ok(text),
                    false => Err("the answer has no metrics".to_owned()),
                }
            }
            Answer::Plain(answer) => Err(format!("the node answers {}", answer.status())),
            Answer::Upgraded(..) => Err("the node answers with a stream".to_owned()),
        }
    }
}

/// Samples of all nodes, by family.
#[derive(Default)]
struct Merged {
    samples: [String; FAMILIES.len()],
    length: usize,
}

impl Merged {
    /// Adds a node's page; `false` when there is no room for it.
    fn add(&mut self, node: &str, text: &str) -> bool {
        let node = escaped(node);
        // Each sample gets the label, and may have one that becomes longer.
        let room = text.len() + text.lines().count() * (node.len() + ",node=\"\",exported_".len());
        if self.length + room > MAX_PAGE {
            return false;
        }
        self.length += room;
        for sample in text.lines().filter_map(Sample::parse) {
            let out = &mut self.samples[sample.family];
            // Writing to a String does not fail.
            let _ = write!(out, "{}{{node=\"{node}\"", FAMILIES[sample.family].0);
            for (name, value) in sample.labels {
                let name = if name == "node" { "exported_node" } else { name };
                // As it came: it was escaped, and it was checked to end.
                let _ = write!(out, ",{name}=\"{value}\"");
            }
            let _ = writeln!(out, "}} {}", sample.value);
        }
        true
    }

    fn page(&self, answered: usize, failed: usize) -> String {
        let mut out = String::with_capacity(self.length + (8 << 10));
        let own = [
            ("ferroedge_fleet_scraped_nodes", "Nodes whose metrics are on this page.", answered),
            ("ferroedge_fleet_scrape_failed", "Nodes with a tunnel whose metrics are missing on this page.", failed),
        ];
        for (name, help, value) in own {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
        let families = FAMILIES.iter().zip(&self.samples);
        for ((name, kind, help), samples) in families.filter(|(_, samples)| !samples.is_empty()) {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        out
    }
}

/// A line of Prometheus' text format.
struct Sample<'a> {
    /// Its place in [`FAMILIES`].
    family: usize,
    /// Values as they were escaped.
    labels: Vec<(&'a str, &'a str)>,
    /// With the time, if there is one.
    value: &'a str,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
        let family = FAMILIES.iter().position(|(known, ..)| *known == name)?;
        let mut labels = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (label, quoted) = rest.split_once("=\"")?;
                let end = closing_quote(quoted)?;
                if !is_name(label) || labels.iter().any(|(other, _)| *other == label) {
                    return None;
                }
                // What the label `node` becomes is not to be there already.
                if label == "exported_node" {
                    return None;
                }
                labels.push((label, &quoted[..end]));
                rest = &quoted[end + 1..];
                rest = rest.strip_prefix(',').or_else(|| rest.starts_with('}').then_some(rest))?;
            }
            rest = &rest[1..];
        }
        let value = rest.trim();
        let mut parts = value.split(' ');
        parts.next()?.parse::<f64>().ok()?;
        let time = parts.next().map(str::parse::<i64>);
        (time.is_none_or(|time| time.is_ok()) && parts.next().is_none()).then_some(Self { family, labels, value })
    }
}

/// Where the value ends; only the three escapes that there are.
fn closing_quote(quoted: &str) -> Option<usize> {
    let mut bytes = quoted.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => drop(bytes.next().filter(|(_, next)| b"\\\"n".contains(next))?),
            _ => {}
        }
    }
    None
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !text.starts_with(|first: char| first.is_ascii_digit())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_merged_and_nonsense_is_left_out() {
        let mut merged = Merged::default();
        let one = "# HELP node_swap_usage_bytes x\n# TYPE node_swap_usage_bytes counter\nnode_swap_usage_bytes 1.5 1700000000000\n\
                   pod_swap_usage_bytes{pod=\"a\\\"b,}\",node=\"x\"} NaN\n";
        assert!(merged.add("n1", one));
        let two = "S{} 2\nbad-name 1\nS{a=\"1\",a=\"2\"} 1\nS{a=\"open} 1\nS one\nS 1 2 3\nS{a=\"\\x\"} 1\n\
                   ferroedge_fleet_scrape_failed 9\n\u{e4} 1\nS{exported_node=\"x\"} 1\nS{1=\"x\"} 1\nS{} 1}\nS\n";
        assert!(merged.add("n\"2\\", &two.replace('S', "node_swap_usage_bytes")));
        let page = merged.page(2, 1);
        let rest = page.split_once("ferroedge_fleet_scrape_failed 1\n").expect("counted").1;
        assert_eq!(
            rest,
            "# HELP node_swap_usage_bytes Swap that the node uses.\n# TYPE node_swap_usage_bytes gauge\n\
             node_swap_usage_bytes{node=\"n1\"} 1.5 1700000000000\nnode_swap_usage_bytes{node=\"n\\\"2\\\\\"} 2\n\
             # HELP pod_swap_usage_bytes Swap that the pod uses.\n# TYPE pod_swap_usage_bytes gauge\n\
             pod_swap_usage_bytes{node=\"n1\",pod=\"a\\\"b,}\",exported_node=\"x\"} NaN\n"
        );
        assert!(merged.length >= rest.len() - 300, "what is counted is not less than what there is");
        merged.length = MAX_PAGE;
        assert!(!merged.add("n3", one));
    }
}
