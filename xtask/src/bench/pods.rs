//! B5: from the creation of a pod until the API shows it Ready, the image being local.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::containerd::runtime_client;
use testkit::cri;
use testkit::deployment::{Cluster, Watch, condition};

use super::report::{Report, Row};

/// Pods of the namespace that the bench uses.
pub const PODS: &str = "/api/v1/namespaces/default/pods";
const ROUNDS_OF_ONE: usize = 10;
const ROUNDS_OF_TEN: usize = 3;
/// How often the pods are looked at; it bounds the precision.
const POLL: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(180);

/// One pod at a time, then ten at once. A round begins when nothing of the one before is left in the runtime.
pub async fn measure(cluster: &Cluster, runtime: &Path, report: &mut Report) -> Result<()> {
    let mut one = Vec::new();
    for round in 0..ROUNDS_OF_ONE {
        one.push(create_until_ready(cluster, runtime, round, 1).await?);
    }
    report.add(Row::timed("B5 pod create → Ready".into(), "s", one, 0.7));
    let mut ten = Vec::new();
    for round in 0..ROUNDS_OF_TEN {
        ten.push(create_until_ready(cluster, runtime, round, 10).await?);
    }
    report.add(Row::timed("B5 ten pods at once → all Ready".into(), "s", ten, 2.0));
    Ok(())
}

async fn create_until_ready(cluster: &Cluster, runtime: &Path, round: usize, count: usize) -> Result<f64> {
    let names: Vec<String> = (0..count).map(|number| format!("bench-{count}-{round}-{number}")).collect();
    let seconds = create(cluster, &names).await?;
    delete(cluster, &names).await?;
    poll("the pods' sandboxes to be gone", || async {
        let answer = runtime_client(runtime).await?.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        Ok(answer.into_inner().items.is_empty())
    })
    .await?;
    Ok(seconds)
}

/// Creates these pods at once; seconds until all of them are Ready.
pub async fn create(cluster: &Cluster, names: &[String]) -> Result<f64> {
    // One watch and not many lists: what measures must not take the processor from what is measured.
    let mut watch = cluster.watch(PODS).await?;
    let waiting: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let began = Instant::now();
    for name in names {
        let (status, answer) = cluster.post(PODS, &manifest(name)).await?;
        if status != 201 {
            bail!("creating pod {name}: {status} {}", answer["message"]);
        }
    }
    until_in(&mut watch, waiting).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// Waits until these pods are Ready.
pub async fn until_ready(cluster: &Cluster, names: &[String]) -> Result<()> {
    until_in(&mut cluster.watch(PODS).await?, names.iter().map(String::as_str).collect()).await
}

async fn until_in(watch: &mut Watch, mut waiting: BTreeSet<&str>) -> Result<()> {
    let count = waiting.len();
    let ready = async {
        while !waiting.is_empty() {
            let event = watch.next().await?;
            if condition(&event["object"], "Ready") == Some("True") {
                waiting.remove(event["object"]["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, ready).await {
        Ok(ready) => ready,
        Err(_) => bail!("waited {} s for {count} pods to be Ready", LIMIT.as_secs()),
    }
}

/// Deletes these pods and waits until the API has none of them.
pub async fn delete(cluster: &Cluster, names: &[String]) -> Result<()> {
    for name in names {
        cluster.delete(&format!("{PODS}/{name}")).await?;
    }
    poll("the pods to be gone", || async {
        let pods = cluster.get(PODS).await?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        let left: BTreeSet<&str> = items.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        Ok(!names.iter().any(|name| left.contains(name.as_str())))
    })
    .await
}

/// Polls with a limit.
pub async fn poll<F: Future<Output = Result<bool>>>(what: &str, mut holds: impl FnMut() -> F) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        if began.elapsed() > LIMIT {
            bail!("waited {} s for {what}", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn manifest(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "sleep",
                "image": "docker.io/library/busybox:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "3600"],
            }],
        },
    })
}
