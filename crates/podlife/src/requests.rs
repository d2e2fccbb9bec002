//! What a pod asks of its node.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{quantity, spec};

/// Amounts by name of resource: `cpu` in thousandths, all others in units.
pub type Amounts = BTreeMap<String, i64>;

/// An amount of a resource in the unit of [`Amounts`]; what is no quantity counts as 0.
pub fn amount(resource: &str, quantity: &Quantity) -> i64 {
    let read = if resource == "cpu" { quantity::milli } else { quantity::value };
    read(quantity).unwrap_or_default().max(0)
}

/// Requests of a container; a request that is missing is its limit.
pub fn container(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let lists = [resources.and_then(|r| r.limits.as_ref()), resources.and_then(|r| r.requests.as_ref())];
    let amounts = lists.into_iter().flatten().flatten();
    amounts.map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

/// Requests of a pod: those of its main containers and sidecars together, or of an init container with the sidecars before
/// it where that is more; the overhead of its RuntimeClass; itself as one of the node's `pods`.
pub fn pod(pod: &Pod) -> Amounts {
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for init in spec::init_containers(pod) {
        let own = container(init);
        if spec::is_sidecar(init) {
            add(&mut sidecars, &own);
        } else {
            let mut beside = sidecars.clone();
            add(&mut beside, &own);
            raise(&mut peak, &beside);
        }
    }
    let mut total = sidecars;
    for main in spec::containers(pod) {
        add(&mut total, &container(main));
    }
    raise(&mut total, &peak);
    let overhead = pod.spec.as_ref().and_then(|s| s.overhead.as_ref());
    for (name, quantity) in overhead.into_iter().flatten() {
        add(&mut total, &Amounts::from([(name.clone(), amount(name, quantity))]));
    }
    total.insert("pods".into(), 1);
    total
}

/// Requests of several pods together.
pub fn pods(pods: &[&Pod]) -> Amounts {
    let mut total = Amounts::new();
    for other in pods {
        add(&mut total, &pod(other));
    }
    total
}

/// Adds amounts.
pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let value = total.entry(name.clone()).or_default();
        *value = (*value).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sums() {
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let container = |name: &str, cpu: &str| json!({"name": name, "resources": of(cpu)});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": of(cpu)});
        for (row, init, main, cpu) in [
            ("main only", vec![], vec![container("a", "100m"), container("b", "200m")], 300),
            ("init is more", vec![container("i", "500m")], vec![container("a", "100m")], 500),
            ("init is less", vec![container("i", "50m")], vec![container("a", "100m")], 100),
            ("sidecar beside main", vec![sidecar("300m")], vec![container("a", "100m")], 400),
            ("init after sidecar", vec![sidecar("300m"), container("i", "200m")], vec![container("a", "100m")], 500),
            ("init before sidecar", vec![container("i", "450m"), sidecar("300m")], vec![container("a", "100m")], 450),
        ] {
            let spec: Pod = serde_json::from_value(json!({"spec": {
                "initContainers": init, "containers": main, "overhead": {"cpu": "10m", "memory": "1Mi"}}}))
            .unwrap();
            let total = pod(&spec);
            assert_eq!((total["cpu"], total["memory"], total["pods"]), (cpu + 10, 1 << 20, 1), "{row}");
        }
        let limits: Container =
            serde_json::from_value(json!({"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"},
                "requests": {"cpu": "250m"}}}))
            .unwrap();
        assert_eq!(super::container(&limits), Amounts::from([("cpu".into(), 250), ("memory".into(), 1 << 30)]));
    }
}
