//! Requests and limits as cgroup values, and the score of the out-of-memory killer (rules of the kubelet).

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podlife::{qos, spec};

use crate::cri::proto::{HugepageLimit, LinuxContainerResources};
use crate::quantity;

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
    let mut values = LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(amounts.cpu_limit),
        cpu_shares: shares(amounts.cpu_request),
        memory_limit_in_bytes: amounts.memory_limit,
        oom_score_adj: oom_score(pod, container, node),
        hugepage_limits: hugepages(container, node),
        ..Default::default()
    };
    if node.unified_cgroups {
        values.unified.insert("memory.oom.group".into(), "1".into());
    }
    values
}

fn hugepages(container: &Container, node: &NodeResources) -> Vec<HugepageLimit> {
    let limit_of = |size: u64| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let found = limits.iter().find_map(|(name, limit)| {
            let wanted = quantity::value(&Quantity(name.strip_prefix("hugepages-")?.to_owned()))?;
            (u64::try_from(wanted) == Ok(size)).then_some(limit)
        })?;
        u64::try_from(quantity::value(found)?).ok()
    };
    let name = |size: u64| if size >= 1 << 30 { format!("{}GB", size >> 30) } else { format!("{}MB", size >> 20) };
    let sizes = node.hugepage_sizes.iter().filter(|size| **size >= 1 << 20);
    sizes.map(|&size| HugepageLimit { page_size: name(size), limit: limit_of(size).unwrap_or_default() }).collect()
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
            // A sidecar must not go before the containers that it serves.
            spec::containers(pod)
                .iter()
                .map(|main| burstable_score(main, node))
                .min()
                .map_or(own, |least| own.min(least))
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

/// Values for all containers of a pod together.
pub fn pod_sum(pod: &Pod, node: &NodeResources) -> LinuxContainerResources {
    let total = pod_amounts(pod);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(total.cpu_limit),
        cpu_shares: shares(total.cpu_request),
        memory_limit_in_bytes: total.memory_limit,
        hugepage_limits: hugepages(&Container::default(), node),
        ..Default::default()
    }
}

/// Requests of a pod, and its limits where every container has one.
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let all = |read: fn(&Amounts) -> i64, needs_all: bool| {
        let main: Vec<i64> = spec::containers(pod).iter().map(|c| read(&amounts(c))).collect();
        let init: Vec<i64> = spec::init_containers(pod).iter().map(|c| read(&amounts(c))).collect();
        if needs_all && main.iter().chain(&init).any(|amount| *amount == 0) {
            return 0;
        }
        let sum = main.iter().fold(0_i64, |sum, amount| sum.saturating_add(*amount));
        // Init containers run one by one before the main ones.
        init.into_iter().fold(sum, i64::max)
    };
    Amounts {
        cpu_request: all(|a| a.cpu_request, false),
        cpu_limit: all(|a| a.cpu_limit, true),
        memory_request: all(|a| a.memory_request, false),
        memory_limit: all(|a| a.memory_limit, true),
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
}
