//! Whatever a request's body looks like, the API answers: every value of every field is replaced by one of another type.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use kubeapi::{PatchType, User, WriteOptions};
use serde_json::{Value, json};
use support::{World, deployment};

/// What stands in for a value. `null` counts as absent and is legal everywhere.
fn odd() -> Vec<Value> {
    vec![
        json!(null),
        json!("x"),
        json!(""),
        json!(-1),
        json!(1.5),
        json!(true),
        json!([]),
        json!([null]),
        json!([[1]]),
        json!({}),
        json!({"x": {"y": [1]}}),
    ]
}

/// The JSON pointers of every value, the root too.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                places(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn variants(object: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    places(object, "", &mut all);
    let with = |pointer: &String, odd: Value| {
        let mut changed = object.clone();
        *changed.pointer_mut(pointer).expect("a place in it") = odd;
        changed
    };
    all.iter().flat_map(|pointer| odd().into_iter().map(move |odd| with(pointer, odd))).collect()
}

fn samples() -> Vec<(&'static str, &'static str, Value)> {
    let port = json!({"path": "/", "port": 80});
    let pod = json!({
        "metadata": {"name": "x", "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["example.org/x"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]},
        "spec": {
            "hostNetwork": true, "serviceAccountName": "default", "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
            "initContainers": [{"name": "i", "image": "i:1"}],
            "containers": [{
                "name": "c", "image": "c:1", "ports": [{"containerPort": 80}], "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}, "livenessProbe": {"httpGet": port},
                "lifecycle": {"preStop": {"httpGet": port}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}], "securityContext": {"privileged": true},
            }],
            "volumes": [
                {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
                {"name": "w", "hostPath": {"path": "/w"}}, {"name": "u", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
            ],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer", "default": 1, "minimum": 0}}}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
        "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}]});
    vec![
        ("", "pods", pod),
        (
            "",
            "configmaps",
            json!({"metadata": {"name": "x"}, "data": {"a": "b"}, "binaryData": {"b": "aGk="}, "immutable": false}),
        ),
        (
            "",
            "secrets",
            json!({"metadata": {"name": "x"}, "data": {"b": "aGk="}, "stringData": {"a": "b"}, "type": "Opaque"}),
        ),
        (
            "",
            "services",
            json!({"metadata": {"name": "x"}, "spec": {"selector": {"a": "b"}, "clusterIP": "None", "ports": [{"name": "a", "port": 80}]}}),
        ),
        ("", "namespaces", json!({"metadata": {"name": "x"}, "spec": {"finalizers": ["kubernetes"]}})),
        (
            "",
            "nodes",
            json!({"metadata": {"name": "x"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
        ),
        ("", "serviceaccounts", json!({"metadata": {"name": "x"}, "secrets": [{"name": "s"}]})),
        (
            "",
            "persistentvolumeclaims",
            json!({"metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "",
            "events",
            json!({"metadata": {"name": "x"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "count": 1, "source": {"component": "c"}}),
        ),
        ("apps", "deployments", deployment("x", 1, "c:1")),
        (
            "apps",
            "daemonsets",
            json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {"type": "RollingUpdate"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "c"}]}}}}),
        ),
        (
            "coordination.k8s.io",
            "leases",
            json!({"metadata": {"name": "x"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 40}}),
        ),
        (
            "certificates.k8s.io",
            "certificatesigningrequests",
            json!({"metadata": {"name": "x"}, "spec": {"request": "aGk=", "signerName": "a/b", "usages": ["client auth"]}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "clusterroles",
            json!({"metadata": {"name": "x"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        ),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"metadata": {"name": "x"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            json!({"metadata": {"name": "oddities.example.org"}, "spec": {"group": "example.org", "scope": "Namespaced", "names": {"kind": "Oddity", "plural": "oddities", "shortNames": ["odd"]}, "versions": [version]}}),
        ),
        ("authentication.k8s.io", "tokenreviews", json!({"spec": {"token": "a.b.c", "audiences": ["a"]}})),
        (
            "authorization.k8s.io",
            "subjectaccessreviews",
            json!({"spec": {"user": "u", "groups": ["g"], "resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        ),
        (
            "authorization.k8s.io",
            "selfsubjectaccessreviews",
            json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/"}}}),
        ),
        ("authentication.k8s.io", "selfsubjectreviews", json!({"status": {}})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_too_odd() {
    let world = World::start().await;
    world.eventually("the account is there", |w| w.get("serviceaccounts", "default", "default").is_some()).await;
    let api = world.api();
    let user = User::system("test");
    let dry = WriteOptions { dry_run: true, strict: false };
    let mut answers = 0;
    for (group, plural, object) in samples() {
        let place = api.reference(group, plural, "", "").expect("served");
        let namespace = if place.resource.namespaced { "default" } else { "" };
        let place = place.named(namespace, "");
        let good = api.create(&user, &place, object.clone(), &dry).await;
        assert!(good.is_ok(), "the sample of {plural} is good: {good:?}");
        let is_stored = place.resource.verbs.iter().any(|verb| verb == "patch");
        let stored = if is_stored {
            Some(api.create(&user, &place, object.clone(), &WriteOptions::default()).await.expect("created"))
        } else {
            None
        };
        for odd in variants(&object) {
            let _ = api.create(&user, &place, odd.clone(), &dry).await;
            answers += 1;
        }
        let Some(stored) = stored else { continue };
        let this = place.named(namespace, stored["metadata"]["name"].as_str().expect("name"));
        for odd in variants(&stored) {
            for sub in
                ["", "status", "scale", "approval", "finalize", "ephemeralcontainers", "binding", "eviction", "token"]
            {
                if !sub.is_empty() && !this.resource.has(sub) {
                    continue;
                }
                let what = if sub.is_empty() { this.clone() } else { this.sub(sub) };
                if matches!(sub, "binding" | "eviction" | "token") {
                    let _ = api.create(&user, &what, odd.clone(), &dry).await;
                } else {
                    let _ = api.update(&what, odd.clone(), &dry).await;
                    let _ = api.patch(&what, &odd, PatchType::Merge, &dry).await;
                    let _ = api.patch(&what, &odd, PatchType::Strategic, &dry).await;
                }
                answers += 1;
            }
        }
    }
    assert!(answers > 3000, "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_custom_objects_are_answered() {
    let world = World::start().await;
    let api = world.api();
    let loose = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({"metadata": {"name": "oddities.example.org"}, "spec": {"group": "example.org", "scope": "Namespaced",
        "names": {"kind": "Oddity", "plural": "oddities"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": loose},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}}}]}});
    world.create("customresourcedefinitions", "", definition).await;
    let place = api.reference("example.org", "oddities", "default", "").expect("served");
    let user = User::system("test");
    let object = json!({"metadata": {"name": "x", "labels": {"a": "b"}, "finalizers": ["a/b"]}, "spec": {"n": 1}, "status": {"n": 1}});
    for (index, odd) in variants(&object).into_iter().enumerate() {
        let dry = WriteOptions { dry_run: true, strict: false };
        if let Ok(mut created) = api.create(&user, &place, odd, &dry).await {
            created["metadata"]["name"] = json!(format!("x{index}"));
            let Ok(created) = api.create(&user, &place, created, &WriteOptions::default()).await else { continue };
            let this = place.named("default", created["metadata"]["name"].as_str().expect("name"));
            for odd in odd_scales() {
                let _ = api.update(&this.sub("scale"), odd.clone(), &dry).await;
                let _ = api.patch(&this.sub("status"), &odd, PatchType::Merge, &dry).await;
                let _ = api.patch(&this.sub("scale"), &odd, PatchType::Merge, &dry).await;
            }
        }
    }
}

fn odd_scales() -> Vec<Value> {
    variants(&json!({"metadata": {"name": "x"}, "spec": {"replicas": 2}, "status": {"n": 1}}))
}
