//! The roles and bindings that every Kubernetes has, as far as this one has something to protect with them, and cloudcore's.

use serde_json::{Value, json};

/// The group of cloudcore's client certificate.
pub const CLOUDCORE_GROUP: &str = "kubeedge:cloudcore";
const API: &str = "rbac.authorization.k8s.io/v1";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(paths: &[&str]) -> Value {
    json!({"nonResourceURLs": paths, "verbs": ["get"]})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": API, "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "rules": rules,
    })
}

fn binding(name: &str, role: &str, groups: &[&str]) -> Value {
    let subjects: Vec<Value> =
        groups.iter().map(|g| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": g})).collect();
    json!({
        "apiVersion": API, "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// The cluster roles.
pub fn roles() -> Vec<Value> {
    let all_verbs: Vec<&str> = READ.iter().chain(&WRITE).copied().collect();
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    vec![
        role("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})]),
        role("view", workload_rules(&READ, false)),
        role("edit", workload_rules(&all_verbs, true)),
        role(
            "admin",
            [
                workload_rules(&all_verbs, true),
                vec![
                    rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &all_verbs),
                    rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
                ],
            ]
            .concat(),
        ),
        role("system:discovery", vec![paths(&discovery)]),
        role("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        role(
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        role("system:node", node_rules()),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(&["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        metrics_reader(),
        role("cloudcore", cloudcore_rules(&all_verbs)),
    ]
}

/// The bindings of these roles.
pub fn bindings() -> Vec<Value> {
    vec![
        binding("cluster-admin", "cluster-admin", &["system:masters"]),
        binding("system:discovery", "system:discovery", &["system:authenticated"]),
        binding("system:basic-user", "system:basic-user", &["system:authenticated"]),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            &["system:authenticated", "system:unauthenticated"],
        ),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
        binding("system:nodes", "system:node", &["system:nodes"]),
        binding("cloudcore", "cloudcore", &[CLOUDCORE_GROUP]),
    ]
}

/// What people with workloads in a namespace read or write. Secrets are not for those who only look.
fn workload_rules(verbs: &[&str], secrets: bool) -> Vec<Value> {
    let mut core = vec![
        "configmaps",
        "endpoints",
        "persistentvolumeclaims",
        "pods",
        "replicationcontrollers",
        "serviceaccounts",
        "services",
    ];
    if secrets {
        core.push("secrets");
    }
    let mut rules = vec![
        rule(&[""], &core, verbs),
        rule(
            &[""],
            &["bindings", "events", "limitranges", "namespaces", "pods/log", "pods/status", "resourcequotas"],
            &READ,
        ),
        rule(
            &["apps"],
            &[
                "controllerrevisions",
                "daemonsets",
                "deployments",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            verbs,
        ),
        rule(&["batch"], &["cronjobs", "jobs"], verbs),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], verbs),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], verbs),
        rule(&["policy"], &["poddisruptionbudgets"], verbs),
        rule(&["discovery.k8s.io"], &["endpointslices"], verbs),
        metrics_rule(),
    ];
    if secrets {
        rules.push(rule(
            &[""],
            &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "pods/eviction", "serviceaccounts/token"],
            &["create", "get"],
        ));
    }
    rules
}

fn metrics_rule() -> Value {
    rule(&["metrics.k8s.io"], &["pods", "nodes"], &READ)
}

/// As metrics-server brings it; nothing aggregates here, so `view`, `edit` and `admin` have its rule themselves.
fn metrics_reader() -> Value {
    let mut role = role("system:aggregated-metrics-reader", vec![metrics_rule()]);
    role["metadata"]["labels"] = json!({
        "rbac.authorization.k8s.io/aggregate-to-admin": "true",
        "rbac.authorization.k8s.io/aggregate-to-edit": "true",
        "rbac.authorization.k8s.io/aggregate-to-view": "true",
    });
    role
}

/// What a kubelet does; which objects it may touch is the node authorizer's business.
fn node_rules() -> Vec<Value> {
    vec![
        rule(&[""], &["configmaps", "secrets", "services", "persistentvolumeclaims", "persistentvolumes"], &READ),
        rule(&[""], &["nodes"], &["create", "get", "list", "watch", "patch", "update"]),
        rule(&[""], &["nodes/status", "pods/status"], &["patch", "update"]),
        rule(&[""], &["pods"], &["create", "delete", "get", "list", "watch"]),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(&[""], &["events"], &["create", "patch", "update"]),
        rule(&["coordination.k8s.io"], &["leases"], &["create", "delete", "get", "patch", "update"]),
        rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    ]
}

/// What cloudcore does for its nodes: it sees everything that may have to go to an edge, and writes what edges report.
fn cloudcore_rules(all_verbs: &[&str]) -> Vec<Value> {
    vec![
        rule(&["*"], &["*"], &READ),
        rule(
            &[""],
            &[
                "nodes",
                "nodes/status",
                "pods",
                "pods/status",
                "configmaps",
                "secrets",
                "events",
                "namespaces",
                "serviceaccounts",
            ],
            all_verbs,
        ),
        rule(&[""], &["serviceaccounts/token", "pods/eviction"], &["create"]),
        rule(&["events.k8s.io"], &["events"], all_verbs),
        rule(&["coordination.k8s.io"], &["leases"], all_verbs),
        rule(
            &["certificates.k8s.io"],
            &["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"],
            all_verbs,
        ),
        rule(&["certificates.k8s.io"], &["signers"], &["approve", "sign"]),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], all_verbs),
        rule(
            &["admissionregistration.k8s.io"],
            &["validatingwebhookconfigurations", "mutatingwebhookconfigurations"],
            all_verbs,
        ),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
        rule(
            &[
                "devices.kubeedge.io",
                "reliablesyncs.kubeedge.io",
                "rules.kubeedge.io",
                "operations.kubeedge.io",
                "apps.kubeedge.io",
                "policy.kubeedge.io",
            ],
            &["*"],
            all_verbs,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_names_a_role_that_exists() {
        let names: Vec<String> =
            roles().iter().map(|r| r["metadata"]["name"].as_str().expect("name").to_owned()).collect();
        for binding in bindings() {
            let role = binding["roleRef"]["name"].as_str().expect("role").to_owned();
            assert!(names.contains(&role), "{role}");
        }
    }

    #[test]
    fn those_who_only_look_see_no_secrets() {
        let view = roles().into_iter().find(|r| r["metadata"]["name"] == "view").expect("view");
        assert!(!view.to_string().contains("secrets"));
    }
}
