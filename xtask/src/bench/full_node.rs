//! B2 and B13: a node full of pods, and an agent killed while the cloud is away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use testkit::containerd::runtime_client;
use testkit::cri;
use testkit::deployment::{Cluster, Deployment, edgecore_name};

use super::report::{Report, Row};
use super::{CPU_SPAN, SETTLE, pods, process};

/// Pods of a full node; the default of `maxPods` is 110.
const FULL: usize = 100;
/// Pods that run when the agent is killed.
const KILLED_WITH: usize = 30;

/// Fills the node and measures the agent; then takes the cloud away and kills the agent.
pub async fn measure(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let agent = |deployment: &Deployment| deployment.children.pid(&edgecore_name(1)).context("edgecore does not run");
    let empty = process::memory(agent(deployment)?)?;
    let names: Vec<String> = (0..FULL).map(|number| format!("bench-full-{number}")).collect();
    let seconds = pods::create(cluster, &names).await?;
    report.add(Row::timed(format!("{FULL} pods at once → all Ready"), "s", vec![seconds], 60.0));
    tokio::time::sleep(SETTLE).await;
    let pid = agent(deployment)?;
    let full = process::memory(pid)?;
    let each = full.rss_kib.saturating_sub(empty.rss_kib) as f64 / FULL as f64;
    report.add(Row::timed("B2 edgecore per further pod: RSS".into(), "KiB", vec![each], 100.0));
    let percent = process::cpu_percent(pid, CPU_SPAN).await?;
    report.add(Row::timed(format!("edgecore idle with {FULL} pods: CPU"), "%", vec![percent], 2.0));
    pods::delete(cluster, &names[KILLED_WITH..]).await?;
    killed_offline(deployment, report).await
}

/// One container ends while nobody looks; control is back when the agent has restarted it.
async fn killed_offline(deployment: &mut Deployment, report: &mut Report) -> Result<()> {
    let socket = deployment.containerd_socket(1);
    let socket = Path::new(&socket);
    // The API forgets a pod without grace before its containers have ended.
    pods::poll("the other pods' containers to end", || async {
        Ok(running(socket).await?.len() == KILLED_WITH && ready_sandboxes(socket).await? == KILLED_WITH)
    })
    .await?;
    deployment.children.kill("cloudcore")?;
    deployment.children.kill(&edgecore_name(1))?;
    let before = running(socket).await?;
    let (pod, victim) = before.iter().next().map(|(pod, ids)| (pod.clone(), ids.clone())).context("no pod runs")?;
    let stop = cri::StopContainerRequest { container_id: victim.concat(), timeout: 0 };
    runtime_client(socket).await?.stop_container(stop).await?;
    let began = Instant::now();
    deployment.start_edgecore(1)?;
    pods::poll("the agent to restart a container", || async {
        let now = running(socket).await?;
        Ok(now.get(&pod).is_some_and(|ids| *ids != victim))
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    report.add(Row::timed(format!("B13 agent killed offline, {KILLED_WITH} pods: control"), "s", vec![seconds], 1.0));
    tokio::time::sleep(SETTLE).await;
    let after = running(socket).await?;
    let restarted = before.iter().filter(|(name, ids)| **name != pod && after.get(*name) != Some(*ids)).count();
    let containers: usize = after.values().map(Vec::len).sum();
    let duplicates = containers.abs_diff(KILLED_WITH) + ready_sandboxes(socket).await?.abs_diff(KILLED_WITH);
    report.add(Row::timed("B13 needless restarts".into(), "containers", vec![restarted as f64], 0.0));
    report.add(Row::timed("B13 duplicates and losses".into(), "", vec![duplicates as f64], 0.0));
    Ok(())
}

/// Ids of running containers by the name of their pod.
async fn running(socket: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let answer = runtime_client(socket).await?.list_containers(cri::ListContainersRequest::default()).await?;
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for container in answer.into_inner().containers {
        if container.state == i32::from(cri::ContainerState::ContainerRunning) {
            let pod = container.labels.get("io.kubernetes.pod.name").cloned().unwrap_or_default();
            found.entry(pod).or_default().push(container.id);
        }
    }
    found.values_mut().for_each(|ids| ids.sort());
    Ok(found)
}

async fn ready_sandboxes(socket: &Path) -> Result<usize> {
    let answer = runtime_client(socket).await?.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
    let ready = i32::from(cri::PodSandboxState::SandboxReady);
    Ok(answer.into_inner().items.iter().filter(|sandbox| sandbox.state == ready).count())
}
