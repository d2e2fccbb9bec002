//! What a pod asks of a node and what a node has: CPU, memory, pods and whatever else the node offers.

use std::collections::BTreeMap;

use kubeapi::quantity;
use serde_json::{Map, Value};

/// Amounts by resource name, in thousandths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, i128>);

impl Amounts {
    /// The amounts of a resource list; what is no quantity counts as nothing.
    pub fn of(list: &Value) -> Self {
        Self(
            list.as_object()
                .into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.clone(), quantity::milli(v)?)))
                .collect(),
        )
    }

    /// One resource.
    pub fn get(&self, name: &str) -> i128 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another list.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// What a pod needs: the sum of its containers and sidecars, at least the largest of its init containers with the sidecars
/// started before it, plus the overhead of its runtime.
pub fn requests(spec: &Value) -> Amounts {
    let of = |c: &Value| Amounts::of(&c["resources"]["requests"]);
    let mut total = Amounts::default();
    for container in spec["containers"].as_array().into_iter().flatten() {
        total.add(&of(container));
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&own);
            peak.raise_to(&with_sidecars);
        }
    }
    total.add(&sidecars);
    total.raise_to(&peak);
    total.add(&Amounts::of(&spec["overhead"]));
    total
}

/// The resources that do not fit, in upstream's words, in a stable order.
pub fn lacking(wanted: &Amounts, used: &Amounts, pods: i128, allocatable: &Amounts) -> Vec<String> {
    let mut missing = Vec::new();
    if pods + 1 > allocatable.get("pods") / 1000 {
        missing.push("Too many pods".to_owned());
    }
    for (name, amount) in &wanted.0 {
        if *amount > 0 && used.get(name) + amount > allocatable.get(name) {
            missing.push(format!("Insufficient {name}"));
        }
    }
    missing
}

/// How free the node would still be with the pod on it, 0 to 100: the mean over CPU and memory.
pub fn least_allocated(wanted: &Amounts, used: &Amounts, allocatable: &Amounts) -> i64 {
    // Pods that ask for nothing count as a little, so that they spread too (as upstream).
    let score = |name: &str, floor: i128| {
        let capacity = allocatable.get(name);
        let free = capacity - used.get(name) - wanted.get(name).max(floor);
        if capacity <= 0 || free <= 0 { 0 } else { i64::try_from(free * 100 / capacity).unwrap_or(100) }
    };
    (score("cpu", 100) + score("memory", 200 * 1024 * 1024 * 1000)) / 2
}

/// The host ports of a pod as (address, protocol, port).
pub fn host_ports(spec: &Value) -> Vec<(String, String, i64)> {
    let ports = |c: &Value| -> Vec<Map<String, Value>> {
        c["ports"].as_array().into_iter().flatten().filter_map(|p| p.as_object().cloned()).collect()
    };
    spec["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(ports)
        .filter_map(|p| {
            let port = p.get("hostPort").and_then(Value::as_i64).filter(|p| *p > 0)?;
            let text = |k: &str, default: &str| {
                p.get(k).and_then(Value::as_str).filter(|s| !s.is_empty()).unwrap_or(default).to_owned()
            };
            Some((text("hostIP", "0.0.0.0"), text("protocol", "TCP"), port))
        })
        .collect()
}

/// Whether two host ports cannot be bound on one machine.
pub fn ports_collide(a: &(String, String, i64), b: &(String, String, i64)) -> bool {
    a.2 == b.2 && a.1 == b.1 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}
