//! Resizing in place: what the containers of a running pod may use changes, and they run on.
//!
//! A change counts once the node has room for it. Until then the pod is treated as if its resources were those from before; those in its
//! status tell a restarted agent which they were.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, ResourceRequirements};

use crate::{
    requests::{self, Amounts},
    spec,
};

/// What can be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// The `restartPolicy` of a resource that a running container cannot take.
const RESTART: &str = "RestartContainer";

/// Resources by the name of the container.
pub type Resources = BTreeMap<String, ResourceRequirements>;

/// A change that the node has no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Never, as it asks for more than the node has. Otherwise it waits for other pods to leave.
    pub infeasible: bool,
    /// Which resource, how much, and how much there is.
    pub message: String,
}

impl Refusal {
    /// The value of `status.resize`.
    pub fn word(&self) -> &'static str {
        if self.infeasible { "Infeasible" } else { "Deferred" }
    }
}

/// The containers that can be resized: main ones and sidecars.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    spec::containers(pod).iter().chain(spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c)))
}

/// What of `old` changes on the way to `new`: the former resources of each container that is in both.
pub fn changes(old: &Pod, new: &Pod) -> Resources {
    let changed = containers(new).filter_map(|container| {
        let before = containers(old).find(|c| c.name == container.name)?;
        (before.resources != container.resources)
            .then(|| (container.name.clone(), before.resources.clone().unwrap_or_default()))
    });
    changed.collect()
}

/// The pod, its containers with these resources where there are some for them.
pub fn with(pod: &Pod, resources: &Resources) -> Pod {
    let mut pod = pod.clone();
    let Some(spec) = pod.spec.as_mut() else { return pod };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(resources) = resources.get(&container.name) {
            container.resources = Some(resources.clone()).filter(|r| *r != ResourceRequirements::default());
        }
    }
    pod
}

/// The resources that the status says the containers have, where they differ from the spec's.
pub fn recorded(pod: &Pod, status: &PodStatus) -> Resources {
    let recorded = containers(pod).filter_map(|container| {
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let status = lists.into_iter().flatten().flatten().find(|s| s.name == container.name)?;
        let resources = status.resources.as_ref()?;
        (container.resources.clone().unwrap_or_default() != *resources)
            .then(|| (container.name.clone(), resources.clone()))
    });
    recorded.collect()
}

/// Whether the node has room beside the other pods for what `pod` asks for more than `before`.
///
/// # Errors
/// It has not, or never will have.
pub fn fits(before: &Pod, pod: &Pod, others: &[&Pod], allocatable: &Amounts) -> Result<(), Refusal> {
    let (before, wanted) = (requests::pod(before), requests::pod(pod));
    let used = requests::pods(others);
    let amount = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or_default();
    let grows = |name: &&str| allocatable.contains_key(*name) && amount(&wanted, name) > amount(&before, name);
    let short = |free: &dyn Fn(&str) -> i64| {
        RESIZABLE.into_iter().filter(grows).find(|name| amount(&wanted, name) > free(name))
    };
    let refuse = |infeasible, name: &str| {
        let (requested, used, capacity) = (amount(&wanted, name), amount(&used, name), amount(allocatable, name));
        let message = if infeasible {
            format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}")
        } else {
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            )
        };
        Err(Refusal { infeasible, message })
    };
    if let Some(name) = short(&|name| amount(allocatable, name)) {
        return refuse(true, name);
    }
    match short(&|name| amount(allocatable, name).saturating_sub(amount(&used, name))) {
        Some(name) => refuse(false, name),
        None => Ok(()),
    }
}

/// Whether this change is carried out by starting the container again (`resizePolicy`).
pub fn needs_restart(container: &Container, before: &ResourceRequirements) -> bool {
    let now = container.resources.clone().unwrap_or_default();
    let differs = |name: &str| {
        let of = |r: &ResourceRequirements| {
            let in_list = |list: &Option<BTreeMap<String, _>>| list.as_ref().and_then(|list| list.get(name)).cloned();
            (in_list(&r.requests), in_list(&r.limits))
        };
        of(&now) != of(before)
    };
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|policy| policy.restart_policy == RESTART).any(|policy| differs(&policy.resource_name))
}

/// What a container that may be started again to be resized is marked with: its resources, JSON. An agent that was killed sees by it
/// whether it has done so.
pub fn mark(container: &Container) -> Option<String> {
    let restarts = container.resize_policy.iter().flatten().any(|policy| policy.restart_policy == RESTART);
    restarts.then(|| serde_json::to_string(&container.resources).ok()).flatten()
}

/// Where a pod's resizing stands, as far as its status shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The containers that still have the former resources, and which these are.
    pub pending: Resources,
    /// The node has no room for what the spec asks for.
    pub refusal: Option<Refusal>,
}

impl Progress {
    /// Writes it into the status: `resize`, and each container's `resources` and `allocatedResources`. A pod that never was resized has none
    /// of them, and keeps what the API says.
    pub(crate) fn show(&self, pod: &Pod, before: &PodStatus, status: &mut PodStatus) {
        let was_resized = is_shown(before);
        if !was_resized && self.pending.is_empty() && self.refusal.is_none() {
            return;
        }
        status.resize = match &self.refusal {
            Some(refusal) => Some(refusal.word().into()),
            None => (!self.pending.is_empty()).then(|| "InProgress".into()),
        };
        let lists = [status.container_statuses.as_mut(), status.init_container_statuses.as_mut()];
        for status in lists.into_iter().flatten().flatten() {
            let Some(container) = containers(pod).find(|c| c.name == status.name) else { continue };
            let allocated = container.resources.clone().unwrap_or_default();
            status.allocated_resources = allocated.requests.clone();
            status.resources = Some(self.pending.get(&container.name).cloned().unwrap_or(allocated));
        }
    }
}

/// Whether the status says what a resized pod's containers have.
pub(crate) fn is_shown(status: &PodStatus) -> bool {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().any(|container: &ContainerStatus| container.resources.is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: Value) -> Pod {
        let container = json!({"name": "c", "resources": resources,
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"}]});
        let init = json!([{"name": "i", "resources": resources}, {"name": "s", "restartPolicy": "Always"}]);
        serde_json::from_value(json!({"spec": {"containers": [container], "initContainers": init}})).unwrap()
    }

    fn cpu(request: &str) -> Value {
        json!({"requests": {"cpu": request, "memory": "1Mi"}})
    }

    #[test]
    fn changes_are_of_what_can_be_resized_and_can_be_undone() {
        let (old, new) = (pod(cpu("100m")), pod(cpu("200m")));
        let changes = changes(&old, &new);
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["c"], "an init container has run");
        let kept = with(&new, &changes);
        assert_eq!(kept.spec.as_ref().unwrap().containers, old.spec.as_ref().unwrap().containers);
        assert!(super::changes(&old, &kept).is_empty());
    }

    #[test]
    fn room_is_counted_beside_the_others() {
        let allocatable = Amounts::from([("cpu".into(), 1000), ("memory".into(), 1 << 30)]);
        let other = pod(cpu("600m"));
        for (request, expected) in [("400m", None), ("401m", Some(false)), ("1", Some(false)), ("1001m", Some(true))] {
            let answer = fits(&pod(cpu("100m")), &pod(cpu(request)), &[&other], &allocatable);
            assert_eq!(answer.as_ref().err().map(|r| r.infeasible), expected, "{request}: {answer:?}");
        }
        let refusal = fits(&pod(cpu("100m")), &pod(cpu("500m")), &[&other], &allocatable).unwrap_err();
        assert_eq!(refusal.word(), "Deferred");
        assert_eq!(refusal.message, "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000");
        assert_eq!(fits(&pod(cpu("1")), &pod(cpu("5")), &[], &Amounts::new()), Ok(()), "what is not known is no bound");
        let shrinks = fits(&pod(cpu("900m")), &pod(cpu("800m")), &[&other], &allocatable);
        assert_eq!(shrinks, Ok(()), "who asks for less is always welcome");
    }

    #[test]
    fn a_restart_is_for_the_resource_whose_policy_says_so() {
        let before: ResourceRequirements = serde_json::from_value(cpu("100m")).unwrap();
        for (now, restart) in [
            (cpu("200m"), false),
            (json!({"requests": {"cpu": "100m", "memory": "2Mi"}}), true),
            (json!({"requests": {"cpu": "100m", "memory": "1Mi"}, "limits": {"memory": "4Mi"}}), true),
        ] {
            let pod = pod(now.clone());
            assert_eq!(needs_restart(&spec::containers(&pod)[0], &before), restart, "{now}");
        }
    }

    #[test]
    fn the_status_tells_a_restarted_agent_what_the_containers_have() {
        let (old, new) = (pod(cpu("100m")), pod(cpu("200m")));
        let fresh = || -> PodStatus {
            serde_json::from_value(json!({"resize": "Proposed", "containerStatuses": [{"name": "c", "ready": true,
                "restartCount": 0, "image": "", "imageID": ""}]}))
            .unwrap()
        };
        let mut status = fresh();
        Progress::default().show(&new, &fresh(), &mut status);
        assert_eq!(status, fresh(), "never resized");

        let pending = changes(&old, &new);
        Progress { pending, refusal: None }.show(&new, &fresh(), &mut status);
        let shown = serde_json::to_value(&status).unwrap();
        assert_eq!(shown["resize"], "InProgress");
        assert_eq!(shown["containerStatuses"][0]["resources"]["requests"]["cpu"], "100m");
        assert_eq!(shown["containerStatuses"][0]["allocatedResources"]["cpu"], "200m");
        assert_eq!(with(&new, &recorded(&new, &status)), with(&new, &changes(&old, &new)));

        let before = status.clone();
        Progress::default().show(&new, &before, &mut status);
        assert_eq!(status.resize, None);
        assert!(recorded(&new, &status).is_empty(), "nothing is left to do");

        let refusal = Some(Refusal { infeasible: true, message: String::new() });
        Progress { pending: Resources::new(), refusal }.show(&old, &before, &mut status);
        assert_eq!(status.resize.as_deref(), Some("Infeasible"));
        assert!(!recorded(&new, &status).is_empty(), "the spec's are not in force");
    }
}
