//! What the runtime holds, in the terms of `podlife`.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use podlife::observed::{ObservedContainer, ObservedPod, ObservedSandbox, PodIdentity, RuntimeState};

use crate::cri::{CriClient, CriError, proto};
use crate::{labels, logs};

/// Status calls under way at once when all pods are listed.
const CONCURRENT: usize = 8;

/// All pods of the runtime that carry identity labels.
pub async fn list_pods(cri: &CriClient) -> Result<Vec<ObservedPod>, CriError> {
    let pods = observe_where(cri, BTreeMap::new()).await?;
    Ok(pods.into_values().collect())
}

/// One pod.
pub async fn observe(cri: &CriClient, identity: &PodIdentity) -> Result<ObservedPod, CriError> {
    let selector = BTreeMap::from([(labels::POD_UID.to_owned(), identity.uid.clone())]);
    let mut pods = observe_where(cri, selector).await?;
    Ok(pods.remove(&identity.uid).unwrap_or_else(|| ObservedPod::absent(identity.clone())))
}

async fn observe_where(
    cri: &CriClient,
    selector: BTreeMap<String, String>,
) -> Result<HashMap<String, ObservedPod>, CriError> {
    let (sandboxes, containers) =
        tokio::try_join!(cri.list_sandboxes(selector.clone()), cri.list_containers(selector))?;
    let mut pods: HashMap<String, ObservedPod> = HashMap::new();
    let sandboxes = stream::iter(sandboxes.into_iter().filter_map(|s| Some((identity(&s.labels)?, s))));
    let mut sandboxes = std::pin::pin!(
        sandboxes
            .map(|(pod, sandbox)| async move { Ok::<_, CriError>((pod, cri.sandbox_status(&sandbox.id).await?)) })
            .buffer_unordered(CONCURRENT)
    );
    while let Some((pod, status)) = sandboxes.try_next().await? {
        if let Some(status) = status {
            entry(&mut pods, pod).sandboxes.push(sandbox(status));
        }
    }
    let containers = stream::iter(containers.into_iter().filter_map(|c| Some((identity(&c.labels)?, c))));
    let mut containers = std::pin::pin!(
        containers
            .map(|(pod, c)| async move {
                let status = cri.container_status(&c.id).await?;
                Ok::<_, CriError>((pod, c.pod_sandbox_id, status))
            })
            .buffer_unordered(CONCURRENT)
    );
    while let Some((pod, sandbox_id, status)) = containers.try_next().await? {
        if let Some(container) = status.and_then(|status| container(sandbox_id, status)) {
            entry(&mut pods, pod).containers.push(container);
        }
    }
    pods.values_mut().for_each(ObservedPod::sort);
    Ok(pods)
}

fn entry(pods: &mut HashMap<String, ObservedPod>, identity: PodIdentity) -> &mut ObservedPod {
    pods.entry(identity.uid.clone()).or_insert_with(|| ObservedPod::absent(identity))
}

/// Identity labels; `None` on what no kubelet made.
pub fn identity(labels: &BTreeMap<String, String>) -> Option<PodIdentity> {
    Some(PodIdentity {
        namespace: labels.get(labels::POD_NAMESPACE)?.clone(),
        name: labels.get(labels::POD_NAME)?.clone(),
        uid: labels.get(labels::POD_UID)?.clone(),
    })
}

fn sandbox(status: proto::PodSandboxStatus) -> ObservedSandbox {
    let ready = status.state() == proto::PodSandboxState::SandboxReady;
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    let ips = status.network.map(|network| {
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        all.take_while(|ip| ip.parse::<std::net::IpAddr>().is_ok()).collect()
    });
    ObservedSandbox {
        id: status.id,
        attempt: status.metadata.map(|metadata| metadata.attempt).unwrap_or_default(),
        ready,
        created_at: time(status.created_at).unwrap_or_default(),
        host_network: options.is_some_and(|options| options.network() == proto::NamespaceMode::Node),
        ips,
    }
}

/// `None` for a container without a name label.
fn container(sandbox_id: String, status: proto::ContainerStatus) -> Option<ObservedContainer> {
    let state = match status.state() {
        proto::ContainerState::ContainerCreated => RuntimeState::Created,
        proto::ContainerState::ContainerRunning => RuntimeState::Running,
        proto::ContainerState::ContainerExited => RuntimeState::Exited,
        proto::ContainerState::ContainerUnknown => RuntimeState::Unknown,
    };
    let mut message = status.message.clone();
    if state == RuntimeState::Exited {
        let written = logs::termination_message(&status);
        if !written.is_empty() {
            message = if message.is_empty() { written } else { format!("{message}: {written}") };
        }
    }
    let annotation = |key: &str| status.annotations.get(key).map(String::as_str);
    Some(ObservedContainer {
        name: status.labels.get(labels::CONTAINER_NAME)?.clone(),
        sandbox_id,
        state,
        created_at: time(status.created_at).unwrap_or_default(),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        message,
        hash: annotation(labels::CONTAINER_HASH).and_then(|text| u32::from_str_radix(text, 16).ok()),
        restart_count: annotation(labels::RESTART_COUNT).and_then(|text| text.parse().ok()).unwrap_or_default(),
        termination_grace: annotation(labels::TERMINATION_GRACE).and_then(|text| text.parse().ok()),
        pre_stop: annotation(labels::PRE_STOP_HANDLER).map(str::to_owned),
        ports: annotation(labels::CONTAINER_PORTS).map(str::to_owned),
        resources: annotation(labels::CONTAINER_RESOURCES).map(str::to_owned),
        image: image_name(status.image.as_ref()),
        image_ref: status.image_ref,
        reason: status.reason,
        id: status.id,
    })
}

/// What the pod's author wrote, if the runtime kept it.
fn image_name(image: Option<&proto::ImageSpec>) -> String {
    let Some(image) = image else { return String::new() };
    if image.user_specified_image.is_empty() { image.image.clone() } else { image.user_specified_image.clone() }
}

/// Nanoseconds since 1970; 0 means never.
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}
