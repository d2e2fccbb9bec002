//! Which addresses a Service has, without IO: its Endpoints and its EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::deployment::view::template_hash;
use crate::object::{Object, controller_reference};
use crate::pods;

/// Endpoints in one slice (as upstream).
const SLICE_LIMIT: usize = 100;
/// The label by which a slice names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label by which a slice names who writes it.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Slices with this value of [`MANAGED_BY`] are this controller's.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Whether this controller looks after the Service at all.
pub fn is_ours(service: &Object) -> bool {
    service.at("/spec/selector").as_object().is_some_and(|s| !s.is_empty())
        && service.text("/spec/type") != "ExternalName"
}

/// Whether the Service means the pod.
pub fn selects(service: &Object, pod: &Object) -> bool {
    let wanted = service.at("/spec/selector").as_object();
    is_ours(service) && wanted.into_iter().flatten().all(|(k, v)| pod.label(k) == v.as_str())
}

/// One address behind a Service.
struct Address<'a> {
    pod: &'a Object,
    ip: &'a str,
    ready: bool,
}

/// Addresses by family and by the ports that they have: named target ports may differ from pod to pod.
type Groups<'a> = BTreeMap<(bool, String), (Vec<Value>, Vec<Address<'a>>)>;

fn groups<'a>(service: &Object, all: &'a [Object]) -> Groups<'a> {
    let mut groups = Groups::new();
    let anyway = service.at("/spec/publishNotReadyAddresses") == true;
    for pod in all.iter().filter(|p| selects(service, p) && !pods::is_finished(p)) {
        let Ok(ip) = pod.text("/status/podIP").parse::<IpAddr>() else { continue };
        let ports = ports(service, pod);
        let key = (ip.is_ipv6(), Value::Array(ports.clone()).to_string());
        let ready = anyway || (pods::is_ready(pod) && !pod.is_deleting());
        let group = groups.entry(key).or_insert_with(|| (ports, Vec::new()));
        group.1.push(Address { pod, ip: pod.text("/status/podIP"), ready });
    }
    groups
}

/// The ports of the Service as this pod has them.
fn ports(service: &Object, pod: &Object) -> Vec<Value> {
    let resolved = service.list("/spec/ports").iter().filter_map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => named_port(pod, name, protocol)?,
            Value::Number(number) if number.as_i64() != Some(0) => number.as_i64()?,
            _ => port["port"].as_i64()?,
        };
        let mut entry = json!({"port": number, "protocol": protocol});
        for field in ["name", "appProtocol"] {
            if let Some(text) = port[field].as_str().filter(|t| !t.is_empty()) {
                entry[field] = json!(text);
            }
        }
        Some(entry)
    });
    resolved.collect()
}

fn named_port(pod: &Object, name: &str, protocol: &str) -> Option<i64> {
    let containers = pod.list("/spec/containers").iter();
    let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let fits = |p: &&Value| p["name"] == name && p["protocol"].as_str().unwrap_or("TCP") == protocol;
    ports.filter(fits).find_map(|p| p["containerPort"].as_i64())
}

fn target(pod: &Object) -> Value {
    json!({"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()})
}

/// `subsets` of the Endpoints of a Service.
pub fn subsets(service: &Object, all: &[Object]) -> Vec<Value> {
    let mut subsets = Vec::new();
    for (ports, addresses) in groups(service, all).into_values() {
        let mut subset = json!({});
        if !ports.is_empty() {
            subset["ports"] = Value::Array(ports);
        }
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let chosen = addresses.iter().filter(|a| a.ready == ready && !a.pod.is_deleting());
            let list: Vec<Value> = chosen
                .map(|a| json!({"ip": a.ip, "nodeName": a.pod.text("/spec/nodeName"), "targetRef": target(a.pod)}))
                .collect();
            if !list.is_empty() {
                subset[field] = Value::Array(list);
            }
        }
        if !subset["addresses"].is_null() || !subset["notReadyAddresses"].is_null() {
            subsets.push(subset);
        }
    }
    subsets
}

/// The EndpointSlices that a Service should have.
pub fn slices(service: &Object, all: &[Object]) -> Vec<Value> {
    let mut labels = json!({SERVICE_NAME: service.name(), MANAGED_BY: MANAGER});
    if service.text("/spec/clusterIP") == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    let mut slices = Vec::new();
    for ((six, _), (mut ports, addresses)) in groups(service, all) {
        for port in &mut ports {
            // kubectl relies on the name being there, even if it is empty.
            if port["name"].is_null() {
                port["name"] = json!("");
            }
        }
        for (n, chunk) in addresses.chunks(SLICE_LIMIT).enumerate() {
            let endpoints: Vec<Value> = chunk
                .iter()
                .map(|a| {
                    let (serving, terminating) = (pods::is_ready(a.pod), a.pod.is_deleting());
                    json!({
                        "addresses": [a.ip], "nodeName": a.pod.text("/spec/nodeName"), "targetRef": target(a.pod),
                        "conditions": {"ready": a.ready, "serving": serving, "terminating": terminating},
                    })
                })
                .collect();
            // The same ports and chunk have the same name, so that a change is an update.
            let suffix = template_hash(&json!({"six": six, "ports": ports, "chunk": n}), 0);
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{suffix}", service.name()), "namespace": service.namespace(), "labels": labels,
                    "ownerReferences": [controller_reference(service, "v1", "Service")],
                },
                "addressType": if six { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": ports,
            }));
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(change: Value) -> Object {
        let mut service = json!({"metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]}});
        for (field, value) in change.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        service.into()
    }

    fn pod(name: &str, ready: bool, port: i64) -> Object {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
        .into()
    }

    #[test]
    fn ready_and_other_addresses_with_the_pods_own_ports() {
        let subsets =
            subsets(&service(json!({})), &[pod("a", true, 8080), pod("b", false, 8080), pod("c", true, 9090)]);
        assert_eq!(subsets.len(), 2);
        assert_eq!(subsets[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(subsets[0]["addresses"][0]["targetRef"]["name"], "a");
        assert_eq!(subsets[0]["notReadyAddresses"][0]["targetRef"]["name"], "b");
        assert_eq!(subsets[1]["ports"][0]["port"], 9090);
    }

    #[test]
    fn slices_have_stable_names_and_conditions() {
        let first = slices(&service(json!({})), &[pod("a", true, 8080)]);
        let second = slices(&service(json!({})), &[pod("a", false, 8080)]);
        assert_eq!(first[0]["metadata"]["name"], second[0]["metadata"]["name"]);
        assert_eq!(second[0]["ports"][0]["name"], "");
        assert_eq!(
            second[0]["endpoints"][0]["conditions"],
            json!({"ready": false, "serving": false, "terminating": false})
        );
    }

    #[test]
    fn services_without_selector_are_somebody_elses() {
        for change in [json!({"selector": {}}), json!({"selector": null}), json!({"type": "ExternalName"})] {
            assert!(!is_ours(&service(change.clone())), "{change}");
        }
        assert!(subsets(&service(json!({})), &[]).is_empty());
    }
}
