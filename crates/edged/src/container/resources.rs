//! Requests and limits as cgroup values, and the score of the out-of-memory killer (rules of the kubelet).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podlife::{qos, spec};

use crate::cgroups::Limits;
use crate::cri::proto::{HugepageLimit, LinuxContainerResources};
use podlife::quantity;

/// Length of a scheduling period in microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Smallest quota that Linux takes.
const MIN_QUOTA: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// From this priority on a pod is critical for the node.
const NODE_CRITICAL: i32 = 2_000_001_000;

/// What the node has, as far as containers depend on it.
#[derive(Clone, Debug, Default)]
pub struct NodeResources {
    /// Capacity of memory in bytes.
    pub memory: i64,
    /// Thousandths of processors that pods may use.
    pub allocatable_cpu: i64,
    /// Bytes of memory that pods may use.
    pub allocatable_memory: i64,
    /// Bytes of disk that pods may use.
    pub allocatable_storage: i64,
    /// Sizes of huge pages in bytes.
    pub hugepage_sizes: Vec<u64>,
    /// cgroup v2.
    pub unified_cgroups: bool,
    /// The kernel can limit swap per cgroup; pods get none.
    pub swap_controller: bool,
    /// Limits of CPU are not enforced (`cpuCFSQuota: false`).
    pub no_cpu_quota: bool,
    /// Processes that a pod may have (`podPidsLimit`).
    pub pids_limit: Option<i64>,
    /// Only the process that used too much memory is killed, not the whole container (`singleProcessOOMKill`).
    pub single_process_oom_kill: bool,
    /// The runtime may not protect processes more than this (it lacks CAP_SYS_RESOURCE).
    pub least_oom_score: Option<i64>,
}

/// CPU in thousandths, other resources in units; 0 when absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Requested CPU.
    pub cpu_request: i64,
    /// CPU limit.
    pub cpu_limit: i64,
    /// Requested memory.
    pub memory_request: i64,
    /// Memory limit.
    pub memory_limit: i64,
}

/// Requests and limits of a container; a request that is missing is its limit.
pub fn amounts(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let limit = |name| find(resources, name, true);
    let request = |name| find(resources, name, false);
    let cpu_limit = limit("cpu").and_then(quantity::milli).unwrap_or_default();
    let memory_limit = limit("memory").and_then(quantity::value).unwrap_or_default();
    Amounts {
        cpu_request: request("cpu").and_then(quantity::milli).unwrap_or(cpu_limit),
        cpu_limit,
        memory_request: request("memory").and_then(quantity::value).unwrap_or(memory_limit),
        memory_limit,
    }
}

fn find<'a>(resources: Option<&'a ResourceRequirements>, name: &str, limit: bool) -> Option<&'a Quantity> {
    let resources = resources?;
    let list = if limit { &resources.limits } else { &resources.requests };
    list.as_ref()?.get(name)
}

/// `cpu.shares` of a request.
pub fn shares(milli: i64) -> i64 {
    if milli == 0 { MIN_SHARES } else { (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// `cpu.cfs_quota_us` of a limit; 0 without one.
pub fn quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli.saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA) }
}

/// Values for one container.
pub fn container(pod: &Pod, container: &Container, node: &NodeResources) -> LinuxContainerResources {
    let amounts = amounts(container);
    let oom_score = oom_score(pod, container, node);
    let mut values = LinuxContainerResources {
        cpu_shares: shares(amounts.cpu_request),
        memory_limit_in_bytes: amounts.memory_limit,
        oom_score_adj: node.least_oom_score.map_or(oom_score, |least| oom_score.max(least)),
        hugepage_limits: hugepages(container.resources.iter().flat_map(|r| &r.limits).flatten(), node),
        ..Default::default()
    };
    if !node.no_cpu_quota {
        (values.cpu_period, values.cpu_quota) = (CPU_PERIOD, quota(amounts.cpu_limit));
    }
    if node.unified_cgroups && !node.single_process_oom_kill {
        values.unified.insert("memory.oom.group".into(), "1".into());
    }
    match (node.swap_controller, node.unified_cgroups) {
        (true, true) => drop(values.unified.insert("memory.swap.max".into(), "0".into())),
        // Memory and swap together.
        (true, false) => values.memory_swap_limit_in_bytes = amounts.memory_limit,
        (false, _) => {}
    }
    values
}

/// Every size of the node, with 0 for what is not asked for.
fn hugepages<'a>(limits: impl Iterator<Item = (&'a String, &'a Quantity)>, node: &NodeResources) -> Vec<HugepageLimit> {
    let mut asked: BTreeMap<u64, u64> = BTreeMap::new();
    for (name, limit) in limits {
        let size = name.strip_prefix("hugepages-").and_then(|size| quantity::value(&Quantity(size.to_owned())));
        let (size, limit) = (size.and_then(|s| u64::try_from(s).ok()), quantity::value(limit));
        if let (Some(size), Some(limit)) = (size, limit.and_then(|limit| u64::try_from(limit).ok())) {
            *asked.entry(size).or_default() += limit;
        }
    }
    let name = |size: u64| if size >= 1 << 30 { format!("{}GB", size >> 30) } else { format!("{}MB", size >> 20) };
    let sizes = node.hugepage_sizes.iter().filter(|size| **size >= 1 << 20);
    sizes.map(|size| HugepageLimit { page_size: name(*size), limit: asked.get(size).copied().unwrap_or(0) }).collect()
}

/// From −997 for what must live to 1000 for what goes first.
fn oom_score(pod: &Pod, container: &Container, node: &NodeResources) -> i64 {
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default();
    if priority >= NODE_CRITICAL {
        return -997;
    }
    match qos::qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let own = burstable_score(container, node);
            if !spec::is_sidecar(container) {
                return own;
            }
            // A sidecar must not go before the containers that it serves: the smallest request of them counts for it too.
            let scores = spec::containers(pod).iter().map(|main| burstable_score(main, node));
            scores.max().map_or(own, |smallest_request| own.min(smallest_request))
        }
    }
}

fn burstable_score(container: &Container, node: &NodeResources) -> i64 {
    let request = i128::from(amounts(container).memory_request);
    let share = if node.memory > 0 { 1000 * request / i128::from(node.memory) } else { 0 };
    let score = i64::try_from(1000 - share).unwrap_or_default();
    match score {
        score if score < 3 => 3,
        1000 => 999,
        score => score,
    }
}

/// Values for all containers of a pod together, without its overhead.
pub fn pod_sum(pod: &Pod, node: &NodeResources) -> LinuxContainerResources {
    linux_resources(pod_amounts(pod), pod_hugepages(pod, node))
}

/// What the pod needs besides its containers, if anything.
pub fn overhead(pod: &Pod) -> Option<LinuxContainerResources> {
    overhead_amounts(pod).map(|amounts| linux_resources(amounts, Vec::new()))
}

fn linux_resources(amounts: Amounts, hugepage_limits: Vec<HugepageLimit>) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(amounts.cpu_limit),
        cpu_shares: shares(amounts.cpu_request),
        memory_limit_in_bytes: amounts.memory_limit,
        hugepage_limits,
        ..Default::default()
    }
}

fn pod_hugepages(pod: &Pod, node: &NodeResources) -> Vec<HugepageLimit> {
    let limits = spec::containers(pod).iter().filter_map(|c| c.resources.as_ref()?.limits.as_ref()).flatten();
    hugepages(limits, node)
}

fn overhead_amounts(pod: &Pod) -> Option<Amounts> {
    let overhead = pod.spec.as_ref()?.overhead.as_ref().filter(|overhead| !overhead.is_empty())?;
    let cpu = overhead.get("cpu").and_then(quantity::milli).unwrap_or_default();
    let memory = overhead.get("memory").and_then(quantity::value).unwrap_or_default();
    Some(Amounts { cpu_request: cpu, cpu_limit: cpu, memory_request: memory, memory_limit: memory })
}

/// What the cgroup of a whole pod is limited to.
pub fn pod_limits(pod: &Pod, node: &NodeResources) -> Limits {
    let mut total = pod_amounts(pod);
    if let Some(overhead) = overhead_amounts(pod) {
        total.cpu_request = total.cpu_request.saturating_add(overhead.cpu_request);
        if total.cpu_limit > 0 {
            total.cpu_limit = total.cpu_limit.saturating_add(overhead.cpu_limit);
        }
        if total.memory_limit > 0 {
            total.memory_limit = total.memory_limit.saturating_add(overhead.memory_limit);
        }
    }
    let hugepages = pod_hugepages(pod, node).into_iter().map(|limit| (limit.page_size, limit.limit)).collect();
    let some = |amount: i64| (amount > 0).then_some(amount);
    if qos::qos_class(pod) == "BestEffort" {
        return Limits { cpu_shares: MIN_SHARES, pids: node.pids_limit, hugepages, ..Limits::default() };
    }
    Limits {
        cpu_shares: shares(total.cpu_request),
        cpu_quota: some(quota(total.cpu_limit)).filter(|_| !node.no_cpu_quota),
        memory: some(total.memory_limit),
        pids: node.pids_limit,
        hugepages,
    }
}

/// Requests of a pod, and its limits where every container has one.
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let sum = |read: fn(&Amounts) -> i64| {
        let of = |container: &Container| read(&amounts(container));
        let mut running = spec::containers(pod).iter().fold(0_i64, |sum, c| sum.saturating_add(of(c)));
        // Init containers run one by one before the main ones, but beside the sidecars that were started before them.
        let (mut sidecars, mut starting) = (0_i64, 0_i64);
        for container in spec::init_containers(pod) {
            if spec::is_sidecar(container) {
                sidecars = sidecars.saturating_add(of(container));
                running = running.saturating_add(of(container));
                starting = starting.max(sidecars);
            } else {
                starting = starting.max(sidecars.saturating_add(of(container)));
            }
        }
        running.max(starting)
    };
    let limit = |read: fn(&Amounts) -> i64| {
        let all = || spec::containers(pod).iter().chain(spec::init_containers(pod));
        if all().any(|container| read(&amounts(container)) == 0) { 0 } else { sum(read) }
    };
    Amounts {
        cpu_request: sum(|a| a.cpu_request),
        cpu_limit: limit(|a| a.cpu_limit),
        memory_request: sum(|a| a.memory_request),
        memory_limit: limit(|a| a.memory_limit),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
    }

    fn values(resources: serde_json::Value) -> LinuxContainerResources {
        let pod = pod(resources);
        let node = NodeResources { memory: 1 << 30, ..Default::default() };
        container(&pod, &pod.spec.as_ref().unwrap().containers[0], &node)
    }

    #[test]
    fn cgroup_values() {
        let none = values(json!({}));
        assert_eq!((none.cpu_shares, none.cpu_quota, none.memory_limit_in_bytes, none.oom_score_adj), (2, 0, 0, 1000));
        let burstable = values(json!({"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"cpu": "5m"}}));
        assert_eq!((burstable.cpu_shares, burstable.cpu_quota, burstable.oom_score_adj), (256, 1000, 750));
        let guaranteed = values(json!({"limits": {"cpu": "2", "memory": "64Mi"}}));
        assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota), (2048, 200_000));
        assert_eq!((guaranteed.memory_limit_in_bytes, guaranteed.oom_score_adj), (64 << 20, -997));
        assert_eq!(values(json!({"requests": {"cpu": "1m"}})).oom_score_adj, 999);
        assert_eq!(values(json!({"requests": {"memory": "2Gi"}})).oom_score_adj, 3);
    }

    #[test]
    fn pod_limits_need_every_container() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}}]}}))
        .unwrap();
        let amounts = pod_amounts(&pod);
        assert_eq!((amounts.cpu_request, amounts.cpu_limit, amounts.memory_limit), (1500, 0, 2 << 30));
    }

    #[test]
    fn pods_with_init_containers_and_sidecars() {
        let container = |name: &str, cpu: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}});
        let always = Some("Always");
        for (init, cpu) in [
            (json!([]), 1500),
            (json!([container("i", "2", None)]), 2000),
            (json!([container("s", "1", always)]), 2500),
            (json!([container("s", "1", always), container("i", "2", None)]), 3000),
            (json!([container("i", "2", None), container("s", "1", always)]), 2500),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"initContainers": init,
                "containers": [container("a", "1", None), container("b", "500m", None)]}}))
            .unwrap();
            let amounts = pod_amounts(&pod);
            assert_eq!((amounts.cpu_request, amounts.cpu_limit), (cpu, cpu), "{init}");
        }
        let open: Pod = serde_json::from_value(json!({"spec": {"containers": [container("a", "1", None)],
            "initContainers": [{"name": "i"}]}}))
        .unwrap();
        assert_eq!(pod_amounts(&open).cpu_limit, 0, "an init container counts too");
    }

    #[test]
    fn limits_of_a_pods_cgroup() {
        let node = NodeResources { memory: 1 << 30, hugepage_sizes: vec![2 << 20, 1 << 30], ..Default::default() };
        let mut burstable =
            pod(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "hugepages-2Mi": "4Mi"}}));
        let limits = pod_limits(&burstable, &node);
        assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.memory, limits.pids), (256, Some(50_000), None, None));
        assert_eq!(limits.hugepages, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)]);
        burstable.spec.as_mut().unwrap().overhead = Some([("cpu".to_owned(), Quantity("250m".into()))].into());
        let limits = pod_limits(&burstable, &node);
        assert_eq!((limits.cpu_shares, limits.cpu_quota), (512, Some(75_000)));
        assert_eq!(overhead(&burstable).unwrap().cpu_shares, 256);
        let node = NodeResources { no_cpu_quota: true, pids_limit: Some(7), ..node };
        assert_eq!(pod_limits(&burstable, &node).cpu_quota, None);
        let best_effort = pod_limits(&pod(json!({})), &node);
        assert_eq!((best_effort.cpu_shares, best_effort.pids), (2, Some(7)));
    }

    #[test]
    fn swap_oom_and_quota_follow_the_node() {
        let pod = pod(json!({"limits": {"cpu": "1", "memory": "1Mi"}}));
        let of = |node: NodeResources| container(&pod, &pod.spec.as_ref().unwrap().containers[0], &node);
        let v1 = of(NodeResources { swap_controller: true, ..Default::default() });
        assert_eq!((v1.memory_swap_limit_in_bytes, v1.unified.len(), v1.oom_score_adj), (1 << 20, 0, -997));
        let v2 = of(NodeResources { swap_controller: true, unified_cgroups: true, ..Default::default() });
        assert_eq!((&*v2.unified["memory.swap.max"], &*v2.unified["memory.oom.group"]), ("0", "1"));
        assert_eq!(v2.memory_swap_limit_in_bytes, 0);
        let single = of(NodeResources { unified_cgroups: true, single_process_oom_kill: true, ..Default::default() });
        assert!(single.unified.is_empty());
        let bare = of(NodeResources { no_cpu_quota: true, least_oom_score: Some(0), ..Default::default() });
        assert_eq!((bare.cpu_period, bare.cpu_quota, bare.oom_score_adj), (0, 0, 0));
    }

    #[test]
    fn a_sidecar_lives_as_long_as_whom_it_serves() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "512Mi"}}},
                {"name": "b", "resources": {"requests": {"memory": "256Mi"}}}]}}))
        .unwrap();
        let node = NodeResources { memory: 1 << 30, ..Default::default() };
        let score = |c: &Container| container(&pod, c, &node).oom_score_adj;
        let init = spec::init_containers(&pod);
        assert_eq!((score(&init[0]), score(&init[1])), (750, 999), "the smallest request of a main container counts");
    }
}
