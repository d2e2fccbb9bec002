//! The example that `up` deploys: a Deployment of two busybox web servers, each of which answers with its pod's name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::{Cluster, condition};
use super::{Deployment, node_name};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dhello";
/// Where the web server listens inside its pod.
pub const PORT: u16 = 8080;
/// How long the pods may take until they answer.
const START: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(2);
/// An answer is cut there.
const MAX_ANSWER: u64 = 64 * 1024;

/// One pod of the example.
#[derive(Clone)]
pub struct ExamplePod {
    /// Its name, which is also its answer.
    pub name: String,
    /// Its phase.
    pub phase: String,
    /// Where it runs.
    pub node: String,
    /// Its address.
    pub ip: String,
}

/// Creates the Deployment; false when an earlier `up` did.
///
/// # Errors
/// The API refuses it.
pub async fn create(cluster: &Cluster) -> Result<bool> {
    let (status, answer) = cluster.post(DEPLOYMENTS, &manifest()).await?;
    match status {
        201 => Ok(true),
        409 => Ok(false),
        _ => bail!("creating deployment.apps/hello: {status} {}", answer["message"]),
    }
}

/// Waits until the pods on the nodes from 1 to `nodes` run and the first of them answers over HTTP: these pods, and its answer.
/// No pods when the Deployment was scaled to none.
///
/// What the API says may be of an earlier run of the nodes. Only a container that runs at this moment counts.
///
/// # Errors
/// They do not in time; the text says what is missing.
pub async fn wait(deployment: &Deployment, cluster: &Cluster, nodes: u8) -> Result<(Vec<ExamplePod>, String)> {
    let found = RefCell::new((Vec::new(), String::new()));
    cluster
        .wait("the pods of deployment.apps/hello to answer", START, || async {
            let wanted = cluster.get(&format!("{DEPLOYMENTS}/hello")).await?["spec"]["replicas"].as_u64().unwrap_or(0);
            let list = cluster.get(PODS).await?;
            let pods: Vec<&Value> =
                list["items"].as_array().into_iter().flatten().filter(|pod| is_wanted(pod)).collect();
            if pods.len() as u64 != wanted {
                bail!("there are {} of {wanted} pods", pods.len());
            }
            let mut running = BTreeSet::new();
            for index in 1..=nodes {
                running.extend(deployment.running_containers(index).await?);
            }
            let is_here = |pod: &&&Value| (1..=nodes).any(|index| pod["spec"]["nodeName"] == node_name(index).as_str());
            let here: Vec<&Value> = pods.iter().filter(is_here).copied().collect();
            let unscheduled = |pod: &&&Value| !pod["spec"]["nodeName"].is_string();
            if let Some(pod) = pods.iter().find(unscheduled).or(here.iter().find(|pod| !runs(pod, &running))) {
                bail!("pod {} does not run yet: {}", text(&pod["metadata"]["name"]), waits_for(pod));
            }
            let answer = match here.first() {
                Some(pod) => ask(text(&pod["status"]["podIP"])).await?,
                None if wanted == 0 => String::new(),
                None => bail!("all its pods are on nodes that were not started"),
            };
            *found.borrow_mut() = (here.iter().map(|pod| summary(pod)).collect(), answer);
            Ok(true)
        })
        .await?;
    Ok(found.into_inner())
}

/// The answer of the web server at this address.
///
/// # Errors
/// There is none, or it is no page.
pub async fn ask(ip: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(format!("{ip}:{PORT}")).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let asking = || format!("asking http://{ip}:{PORT}/");
    let answer = tokio::time::timeout(REQUEST, exchange).await.with_context(asking)?.with_context(asking)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(asking)?;
    if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
        bail!("{}: {}", asking(), head.lines().next().unwrap_or_default());
    }
    Ok(body.trim().to_owned())
}

/// Not of an old revision that goes away.
fn is_wanted(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

/// Whether the containers that the API names are among those that run, and the pod is Ready.
fn runs(pod: &Value, running: &BTreeSet<String>) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let at_work = |status: &Value| {
        let id = status["containerID"].as_str().and_then(|id| id.split_once("://"));
        id.is_some_and(|(_, id)| running.contains(id))
    };
    condition(pod, "Ready") == Some("True")
        && pod["status"]["podIP"].is_string()
        && statuses.is_some_and(|statuses| !statuses.is_empty() && statuses.iter().all(at_work))
}

/// What the API says on why a pod does not run: its scheduling, else its first waiting container, else its phase.
fn waits_for(pod: &Value) -> String {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let unscheduled = conditions.filter(|c| c["type"] == "PodScheduled" && c["status"] == "False");
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let waiting = statuses.map(|status| &status["state"]["waiting"]).filter(|waiting| waiting.is_object());
    let told = unscheduled.chain(waiting).next();
    let words = told.map(|told| format!("{} {}", text(&told["reason"]), text(&told["message"])));
    words.unwrap_or_else(|| text(&pod["status"]["phase"]).to_owned()).trim().to_owned()
}

fn summary(pod: &Value) -> ExamplePod {
    let text = |value: &Value| text(value).to_owned();
    ExamplePod {
        name: text(&pod["metadata"]["name"]),
        phase: text(&pod["status"]["phase"]),
        node: text(&pod["spec"]["nodeName"]),
        ip: text(&pod["status"]["podIP"]),
    }
}

fn manifest() -> Value {
    let serve = format!(
        "mkdir -p /www && echo \"hello from $POD_NAME on $NODE_NAME\" > /www/index.html && exec httpd -f -v -p {PORT} -h /www"
    );
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hello", "labels": {"app": "hello"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "hello"}},
            "template": {
                "metadata": {"labels": {"app": "hello"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web",
                        "image": crate::containerd::BUSYBOX_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", serve],
                        "ports": [{"containerPort": PORT}],
                        "env": [field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName")],
                    }],
                },
            },
        },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_at_work_count() {
        let pod = |ready: &str, ids: &[&str]| {
            let statuses: Vec<Value> =
                ids.iter().map(|id| json!({"containerID": format!("containerd://{id}")})).collect();
            json!({"status": {"podIP": "10.86.1.2", "containerStatuses": statuses,
                "conditions": [{"type": "Ready", "status": ready}]}})
        };
        let running = BTreeSet::from(["new".to_owned(), "other".to_owned()]);
        assert!(runs(&pod("True", &["new"]), &running));
        assert!(runs(&pod("True", &["new", "other"]), &running));
        assert!(!runs(&pod("True", &["old"]), &running), "what an earlier run left in the API");
        assert!(!runs(&pod("True", &["new", "old"]), &running));
        assert!(!runs(&pod("False", &["new"]), &running));
        assert!(!runs(&pod("True", &[]), &running));
        assert!(!runs(&json!({}), &running));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let full = json!({"status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]}});
        assert_eq!(waits_for(&full), "Unschedulable 0/1 nodes are available");
        let image = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}});
        assert_eq!(waits_for(&image), "ErrImagePull no such image");
        assert_eq!(waits_for(&json!({"status": {"phase": "Pending"}})), "Pending");
    }
}
