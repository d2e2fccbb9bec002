//! B5: from the creation of a pod until the API shows it Ready, the image being local.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::deployment::{Cluster, condition};

use super::report::{Report, Row};

const PODS: &str = "/api/v1/namespaces/default/pods";
const ROUNDS_OF_ONE: usize = 10;
const ROUNDS_OF_TEN: usize = 3;
/// How often the pods are looked at; it bounds the precision.
const POLL: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(60);

/// One pod at a time, then ten at once.
pub async fn measure(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut one = Vec::new();
    for round in 0..ROUNDS_OF_ONE {
        one.push(create_until_ready(cluster, round, 1).await?);
    }
    report.add(Row::timed("B5 pod create → Ready".into(), "s", one, 0.7));
    let mut ten = Vec::new();
    for round in 0..ROUNDS_OF_TEN {
        ten.push(create_until_ready(cluster, round, 10).await?);
    }
    report.add(Row::timed("B5 ten pods at once → all Ready".into(), "s", ten, 2.0));
    Ok(())
}

async fn create_until_ready(cluster: &Cluster, round: usize, count: usize) -> Result<f64> {
    let names: Vec<String> = (0..count).map(|number| format!("bench-{count}-{round}-{number}")).collect();
    let began = Instant::now();
    for name in &names {
        let (status, answer) = cluster.post(PODS, &manifest(name)).await?;
        if status != 201 {
            bail!("creating pod {name}: {status} {}", answer["message"]);
        }
    }
    let list = format!("{PODS}?labelSelector=bench%3D{count}-{round}");
    poll(&format!("{count} pods to be Ready"), || async {
        let pods = cluster.get(&list).await?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(items.len() == count && items.iter().all(|pod| condition(pod, "Ready") == Some("True")))
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    for name in &names {
        cluster.delete(&format!("{PODS}/{name}")).await?;
    }
    poll("the pods to be gone", || async {
        Ok(cluster.get(&list).await?["items"].as_array().is_none_or(Vec::is_empty))
    })
    .await?;
    Ok(seconds)
}

async fn poll<F: Future<Output = Result<bool>>>(what: &str, mut holds: impl FnMut() -> F) -> Result<()> {
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
    let label = name.strip_prefix("bench-").and_then(|rest| rest.rsplit_once('-')).map_or("", |(round, _)| round);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"bench": label}},
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
