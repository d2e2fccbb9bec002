//! The Node object of this machine, and patches of its status: pure, in the words of the kubelet and of KubeEdge v1.23.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
    NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use podlife::eviction::Pressure;
use serde_json::{Value, json};

use super::facts::{Machine, architecture};
use crate::devices::Supply;
use crate::runtime::RuntimeReadiness;
use crate::settings::Settings;

/// What `kubectl get nodes` shows as version: the kubelet and the KubeEdge whose behaviour this agent has.
pub const KUBELET_VERSION: &str = "v1.32.10-kubeedge-v1.23.1";
/// Conditions in the order of the kubelet, Ready last.
const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// Everything that a status is computed from.
pub struct StatusInput<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What runs short.
    pub pressure: Pressure,
    /// The container runtime.
    pub readiness: &'a RuntimeReadiness,
    /// Devices of plugins, by resource.
    pub devices: BTreeMap<String, Supply>,
    /// Images to report, the largest first.
    pub images: Vec<ContainerImage>,
    /// `containerd://1.6.20`; empty before the runtime has answered.
    pub runtime_version: String,
    /// The status before: conditions that did not change keep their times, and handlers are kept while the runtime is away.
    pub before: Option<&'a NodeStatus>,
    /// Now.
    pub now: Timestamp,
}

/// Labels that every node carries, and those of the settings.
pub fn labels(settings: &Settings) -> BTreeMap<String, String> {
    let fixed = [
        ("beta.kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("kubernetes.io/hostname", &settings.node_name),
        ("kubernetes.io/os", "linux"),
        ("node-role.kubernetes.io/agent", ""),
        ("node-role.kubernetes.io/edge", ""),
    ];
    let mut labels = settings.node_labels.clone();
    labels.extend(fixed.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// The node as it is registered.
pub fn node(settings: &Settings, status: NodeStatus) -> Node {
    let annotation = ("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned());
    let taints = settings.node_taints.clone();
    Node {
        metadata: ObjectMeta {
            name: Some(settings.node_name.clone()),
            labels: Some(labels(settings)),
            annotations: Some(BTreeMap::from([annotation])),
            ..Default::default()
        },
        spec: Some(NodeSpec { taints: (!taints.is_empty()).then_some(taints), ..Default::default() }),
        status: Some(status),
    }
}

/// The whole status.
pub fn status(settings: &Settings, input: &StatusInput<'_>) -> NodeStatus {
    let machine = input.machine;
    let internal = |ip: &IpAddr| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() };
    let mut addresses: Vec<NodeAddress> = input.addresses.iter().map(internal).collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: settings.node_name.clone() });
    let cpu = machine.cpus.saturating_mul(1000);
    let mut capacity = resources(settings, machine, cpu, machine.memory, bytes(machine.storage));
    let (cpu, memory) = (machine.allocatable_cpu(), machine.allocatable_memory());
    let mut allocatable =
        resources(settings, machine, cpu, memory, Quantity(machine.allocatable_storage().to_string()));
    for (resource, supply) in &input.devices {
        capacity.insert(resource.clone(), Quantity(supply.capacity.to_string()));
        allocatable.insert(resource.clone(), Quantity(supply.allocatable.to_string()));
    }
    NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        images: Some(input.images.clone()).filter(|images| !images.is_empty()),
        runtime_handlers: handlers(input).filter(|handlers| !handlers.is_empty()),
        conditions: Some(conditions(input)),
        addresses: Some(addresses),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.read_only_port) }),
        }),
        node_info: Some(NodeSystemInfo {
            machine_id: machine.machine_id.clone(),
            system_uuid: machine.system_uuid.clone(),
            boot_id: machine.boot_id.clone(),
            kernel_version: machine.kernel.clone(),
            os_image: machine.os_image.clone(),
            container_runtime_version: input.runtime_version.clone(),
            kubelet_version: KUBELET_VERSION.into(),
            operating_system: "linux".into(),
            architecture: architecture().into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn resources(
    settings: &Settings,
    machine: &Machine,
    cpu: u64,
    memory: u64,
    storage: Quantity,
) -> BTreeMap<String, Quantity> {
    let cpu = if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") };
    let mut list = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), bytes(memory)),
        ("ephemeral-storage".to_owned(), storage),
        ("pods".to_owned(), Quantity(pods(settings, machine).to_string())),
    ]);
    for (size, count) in &machine.hugepages {
        let name = if size.is_multiple_of(1 << 30) { format!("{}Gi", size >> 30) } else { format!("{}Mi", size >> 20) };
        list.insert(format!("hugepages-{name}"), if *count == 0 { Quantity("0".into()) } else { bytes(size * count) });
    }
    list
}

/// Pods that fit: as many as configured, or fewer on a machine with few processors.
fn pods(settings: &Settings, machine: &Machine) -> i64 {
    let most = i64::from(settings.max_pods);
    let per_core = i64::from(settings.pods_per_core).saturating_mul(i64::try_from(machine.cpus).unwrap_or(i64::MAX));
    if per_core > 0 { most.min(per_core) } else { most }
}

/// In kibibytes where that is exact, as Kubernetes writes sizes of machines.
fn bytes(value: u64) -> Quantity {
    Quantity(if value.is_multiple_of(1024) { format!("{}Ki", value / 1024) } else { value.to_string() })
}

fn handlers(input: &StatusInput<'_>) -> Option<Vec<NodeRuntimeHandler>> {
    input.readiness.handlers.clone().or_else(|| input.before?.runtime_handlers.clone())
}

fn conditions(input: &StatusInput<'_>) -> Vec<NodeCondition> {
    let before = input.before.and_then(|before| before.conditions.as_deref()).unwrap_or_default();
    let pressure = input.pressure;
    let memory = if pressure.memory {
        ("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available".to_owned())
    } else {
        ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available".to_owned())
    };
    let disk = if pressure.disk {
        ("True", "KubeletHasDiskPressure", "kubelet has disk pressure".to_owned())
    } else {
        ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned())
    };
    let pid = if pressure.pid {
        ("True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available".to_owned())
    } else {
        ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned())
    };
    let shutdown = pressure.shutting_down.then_some("node is shutting down");
    let readiness = [&input.readiness.runtime_error, &input.readiness.network_error];
    let problems: Vec<&str> = readiness.into_iter().flatten().map(String::as_str).chain(shutdown).collect();
    let ready = match problems.as_slice() {
        [] => ("True", "EdgeReady", "edge is posting ready status".to_owned()),
        [one] => ("False", "KubeletNotReady", (*one).to_owned()),
        several => ("False", "KubeletNotReady", format!("[{}]", several.join(", "))),
    };
    let now = Time(Timestamp::from_second(input.now.as_second()).unwrap_or(input.now));
    let with_time = |(kind, (status, reason, message)): (&str, (&str, &str, String))| {
        let before = before.iter().find(|old| old.type_ == kind && old.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: before.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(now.clone())),
        }
    };
    CONDITIONS.into_iter().zip([memory, disk, pid, ready]).map(with_time).collect()
}

/// Whether the condition Ready is true.
pub fn is_ready(status: &NodeStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether two statuses differ in more than heartbeats.
pub fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let bare = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    bare(old) != bare(new)
}

/// The strategic-merge patch from one status to another; everything when there is no old one.
pub fn patch(old: Option<&NodeStatus>, new: &NodeStatus) -> String {
    let mut status = serde_json::Map::new();
    let old_value = old.map(|old| json!(old)).unwrap_or_default();
    let new_value = json!(new);
    for field in ["capacity", "allocatable", "daemonEndpoints", "images", "nodeInfo", "runtimeHandlers"] {
        if new_value[field] != old_value[field] {
            // A list has no merge key here: it is replaced.
            status.insert(field.to_owned(), changed(&old_value[field], &new_value[field]));
        }
    }
    if new_value["addresses"] != old_value["addresses"] {
        let mut addresses = new_value["addresses"].as_array().cloned().unwrap_or_default();
        // Merged by type, an address that changed its type would stay twice.
        addresses.push(json!({"$patch": "replace"}));
        status.insert("addresses".into(), addresses.into());
    }
    let old_conditions = old.and_then(|old| old.conditions.as_deref()).unwrap_or_default();
    let conditions: Vec<Value> = new
        .conditions
        .iter()
        .flatten()
        .map(|condition| {
            let before = old_conditions.iter().find(|before| before.type_ == condition.type_);
            let mut fields = changed(&before.map(|before| json!(before)).unwrap_or_default(), &json!(condition));
            fields["type"] = condition.type_.clone().into();
            fields
        })
        .filter(|fields| fields.as_object().is_some_and(|fields| fields.len() > 1))
        .collect();
    if !conditions.is_empty() {
        let order: Vec<Value> = CONDITIONS.iter().map(|kind| json!({"type": kind})).collect();
        status.insert("$setElementOrder/conditions".into(), order.into());
        status.insert("conditions".into(), conditions.into());
    }
    if status.is_empty() { "{}".to_owned() } else { json!({"status": status}).to_string() }
}

/// The fields of an object that are new or different; those that are gone become `null`.
fn changed(old: &Value, new: &Value) -> Value {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return new.clone() };
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let fresh = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    fresh.map(|(key, value)| (key.clone(), value.clone())).chain(gone).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(readiness: &RuntimeReadiness, before: Option<&NodeStatus>, second: i64) -> NodeStatus {
        let machine =
            Machine { cpus: 2, memory: 1 << 30, storage: 1 << 40, hugepages: vec![(2 << 20, 0)], ..Default::default() };
        let input = StatusInput {
            machine: &machine,
            addresses: vec!["192.0.2.2".parse().unwrap()],
            pressure: Pressure::default(),
            readiness,
            devices: [("e.com/d".to_owned(), Supply { capacity: 3, allocatable: 2 })].into(),
            images: Vec::new(),
            runtime_version: "containerd://1.6.20".into(),
            before,
            now: Timestamp::from_second(second).unwrap(),
        };
        status(&Settings::new("n1"), &input)
    }

    #[test]
    fn a_node_as_a_go_edge_registers_it() {
        let status = made(&RuntimeReadiness::default(), None, 1_795_402_342);
        let node = json!(node(&Settings::new("n1"), status));
        assert_eq!(node["metadata"]["labels"]["node-role.kubernetes.io/edge"], "");
        assert_eq!(node["status"]["capacity"]["memory"], "1048576Ki");
        assert_eq!(node["status"]["capacity"]["hugepages-2Mi"], "0");
        assert_eq!(node["status"]["capacity"]["e.com/d"], "3");
        assert_eq!(node["status"]["allocatable"]["e.com/d"], "2");
        assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10350);
        let ready = &node["status"]["conditions"][3];
        assert_eq!((&ready["type"], &ready["reason"]), (&json!("Ready"), &json!("EdgeReady")));
        assert_eq!(ready["lastHeartbeatTime"], "2026-11-23T02:52:22Z");
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], KUBELET_VERSION);
    }

    #[test]
    fn heartbeats_alone_make_a_small_patch() {
        let old = made(&RuntimeReadiness::default(), None, 1000);
        let new = made(&RuntimeReadiness::default(), Some(&old), 1010);
        assert!(!differs(&old, &new));
        let patch: Value = serde_json::from_str(&patch(Some(&old), &new)).unwrap();
        assert_eq!(patch["status"].as_object().unwrap().len(), 2);
        assert_eq!(patch["status"]["conditions"][0].as_object().unwrap().len(), 2);
        assert_eq!(super::patch(Some(&new), &new), "{}");
    }

    #[test]
    fn a_dead_runtime_is_named() {
        let readiness =
            RuntimeReadiness { runtime_error: Some("container runtime is down".into()), ..Default::default() };
        let handler = NodeRuntimeHandler { name: Some("kata".into()), features: None };
        let answered = RuntimeReadiness { handlers: Some(vec![handler]), ..Default::default() };
        let old = made(&answered, None, 1000);
        let new = made(&readiness, Some(&old), 1010);
        assert!(differs(&old, &new) && is_ready(&old) && !is_ready(&new));
        let patch: Value = serde_json::from_str(&patch(Some(&old), &new)).unwrap();
        let ready = &patch["status"]["conditions"][3];
        assert_eq!(ready["message"], "container runtime is down");
        assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:16:50Z");
        assert_eq!((&new.runtime_handlers, patch["status"].get("runtimeHandlers")), (&old.runtime_handlers, None));
        let without = made(&RuntimeReadiness { handlers: Some(Vec::new()), ..Default::default() }, Some(&new), 1020);
        let patch: Value = serde_json::from_str(&super::patch(Some(&new), &without)).unwrap();
        assert_eq!(patch["status"].get("runtimeHandlers"), Some(&Value::Null), "gone when the runtime has none");
    }

    #[test]
    fn without_an_old_status_everything_is_sent() {
        let patch: Value = serde_json::from_str(&patch(None, &made(&RuntimeReadiness::default(), None, 1))).unwrap();
        assert_eq!(patch["status"]["addresses"][2], json!({"$patch": "replace"}));
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 4);
        assert_eq!(patch["status"]["capacity"]["pods"], "110");
    }
}
