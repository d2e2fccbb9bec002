//! Defaults and admission of pods.

use serde_json::{Value, json};

use super::{items_mut, set};
use crate::api::Api;
use crate::{ApiError, meta};

/// Where a pod finds its ServiceAccount's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a mounted token is valid: an hour and a margin for its renewal.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATE_SECONDS: i64 = 300;

/// Defaults of a pod spec, also inside templates.
pub fn spec(spec: &mut Value) {
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "schedulerName", json!("default-scheduler"));
    set(spec, "securityContext", json!({}));
    if let Some(account) = spec["serviceAccountName"].as_str().or(spec["serviceAccount"].as_str()).map(str::to_owned) {
        spec["serviceAccountName"] = json!(account);
        spec["serviceAccount"] = json!(account);
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for each in items_mut(spec, list) {
            container(each, host_network);
        }
    }
    for each in items_mut(spec, "volumes") {
        volume(each);
    }
}

fn container(container: &mut Value, host_network: bool) {
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    set(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    for port in items_mut(container, "ports") {
        set(port, "protocol", json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
    for env in items_mut(container, "env") {
        if env["valueFrom"]["fieldRef"].is_object() {
            set(&mut env["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
        }
    }
    // A limit without a request is the request too.
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (name, quantity) in limits {
        set(&mut container["resources"]["requests"], &name, quantity);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            let probe = &mut container[probe];
            set(probe, "timeoutSeconds", json!(1));
            set(probe, "periodSeconds", json!(10));
            set(probe, "successThreshold", json!(1));
            set(probe, "failureThreshold", json!(3));
            if let Some(action) = probe.get_mut("httpGet") {
                http_get(action);
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook]["httpGet"].is_object() {
            http_get(&mut container["lifecycle"][hook]["httpGet"]);
        }
    }
}

fn http_get(action: &mut Value) {
    if action.is_object() {
        set(action, "path", json!("/"));
        set(action, "scheme", json!("HTTP"));
    }
}

fn volume(volume: &mut Value) {
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if volume[source].is_object() {
            set(&mut volume[source], "defaultMode", json!(420));
        }
    }
    if volume["hostPath"].is_object() {
        set(&mut volume["hostPath"], "type", json!(""));
    }
    for source in volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut).into_iter().flatten() {
        if source["serviceAccountToken"].is_object() {
            set(&mut source["serviceAccountToken"], "expirationSeconds", json!(3600));
        }
        field_refs(source);
    }
    field_refs(volume);
}

fn field_refs(source: &mut Value) {
    let items = source.pointer_mut("/downwardAPI/items").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        if item["fieldRef"].is_object() {
            set(&mut item["fieldRef"], "apiVersion", json!("v1"));
        }
    }
}

/// The admission steps of every cluster: ServiceAccount with its token, service links, tolerations, priority.
pub(super) fn admit(api: &Api, pod: &mut Value) -> Result<(), ApiError> {
    set(&mut pod["spec"], "enableServiceLinks", json!(true));
    let is_mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    if !is_mirror {
        service_account(api, pod)?;
    }
    super::runtimeclass::admit(api, pod)?;
    set(&mut pod["spec"], "preemptionPolicy", json!("PreemptLowerPriority"));
    priority(api, pod)?;
    let tolerations = &mut pod["spec"]["tolerations"];
    if !tolerations.is_array() {
        *tolerations = json!([]);
    }
    if let Some(list) = tolerations.as_array_mut() {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let covers = |t: &Value| {
                (t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty())
                    && matches!(t["effect"].as_str(), None | Some("" | "NoExecute"))
            };
            if !list.iter().any(covers) {
                list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATE_SECONDS}));
            }
        }
    }
    Ok(())
}

fn priority(api: &Api, pod: &mut Value) -> Result<(), ApiError> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let value = match name.as_str() {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        name => {
            let class = api.get(&api.reference("scheduling.k8s.io", "priorityclasses", "", name)?).map_err(|_| {
                ApiError::forbidden(
                    "pods",
                    "",
                    meta::name(pod),
                    &format!("no PriorityClass with name {name} was found"),
                )
            })?;
            class["value"].as_i64().unwrap_or_default()
        }
    };
    set(&mut pod["spec"], "priority", json!(value));
    Ok(())
}

fn service_account(api: &Api, pod: &mut Value) -> Result<(), ApiError> {
    set(&mut pod["spec"], "serviceAccountName", json!("default"));
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    pod["spec"]["serviceAccount"] = json!(name);
    let namespace = meta::namespace(pod).to_owned();
    let account = api.get(&api.reference("", "serviceaccounts", &namespace, &name)?).map_err(|_| {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        ApiError::forbidden("pods", "", meta::name(pod), &why)
    })?;
    if pod["spec"]["imagePullSecrets"].is_null() && !account["imagePullSecrets"].is_null() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(&mut pod["spec"]);
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let volume = meta::generate_name("kube-api-access-");
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut()
                && !mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH)
            {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                used = true;
            }
        }
    }
    if !used {
        return;
    }
    if !spec["volumes"].is_array() {
        spec["volumes"] = json!([]);
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

/// The quality-of-service class of a pod.
pub(crate) fn qos(spec: &Value) -> &'static str {
    let containers =
        || ["initContainers", "containers"].into_iter().flat_map(|list| spec[list].as_array().into_iter().flatten());
    let has =
        |kind: &str| containers().any(|c| ["cpu", "memory"].iter().any(|name| !c["resources"][kind][name].is_null()));
    if !has("requests") && !has("limits") {
        return "BestEffort";
    }
    let guaranteed = containers().all(|c| {
        ["cpu", "memory"].iter().all(|name| {
            let (limit, request) = (&c["resources"]["limits"][name], &c["resources"]["requests"][name]);
            !limit.is_null() && limit == request
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}
