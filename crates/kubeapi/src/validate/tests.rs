//! Tables of what is refused, by the fields that the refusal names.

use serde_json::{Value, json};

use super::object;
use crate::api::ResourceRef;
use crate::catalog::Catalog;
use crate::error::Cause;

/// The fields and the beginnings of the messages of all causes.
fn causes(plural: &str, sub: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let resource = Catalog::new().all().into_iter().find(|r| r.plural == plural).expect("served");
    let what = ResourceRef { resource, namespace: String::new(), name: String::new(), subresource: sub.to_owned() };
    let mut causes = Vec::new();
    object(&what, new, old, &mut causes);
    causes.iter().map(|Cause { field, message, .. }| format!("{field}: {message}")).collect()
}

fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(t), Value::Object(c)) => {
            for (k, v) in c {
                merge(t.entry(k).or_insert(Value::Null), v);
            }
        }
        (t, c) => *t = c.clone(),
    }
}

fn with(base: &Value, change: Value) -> Value {
    let mut object = base.clone();
    merge(&mut object, &change);
    object
}

fn container() -> Value {
    json!({"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}})
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Always", "containers": [container()]}})
}

#[test]
fn ephemeral_containers_are_added_and_never_changed() {
    let added = |container: Value| with(&pod(), json!({"spec": {"ephemeralContainers": [container]}}));
    let debug = added(json!({"name": "d", "image": "i"}));
    for (new, old, expected) in [
        (debug.clone(), pod(), ""),
        (added(json!({"name": "d", "image": "i", "targetContainerName": "c"})), pod(), ""),
        (
            added(json!({"name": "d", "image": "i", "targetContainerName": "x"})),
            pod(),
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"x\"",
        ),
        (added(json!({"name": "c", "image": "i"})), pod(), "spec.ephemeralContainers[0].name: Duplicate value: \"c\""),
        (added(json!({"name": "d"})), pod(), "spec.ephemeralContainers[0].image: Required value"),
        (
            added(json!({"name": "d", "image": "i", "lifecycle": {}})),
            pod(),
            "spec.ephemeralContainers[0].lifecycle: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            added(json!({"name": "d", "image": "other"})),
            debug.clone(),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be changed",
        ),
        (
            pod(),
            debug.clone(),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be removed",
        ),
    ] {
        assert_eq!(causes("pods", "ephemeralcontainers", &new, Some(&old)).join("; "), expected, "{new}");
    }
    assert_eq!(causes("pods", "", &debug, Some(&pod())).len(), 1, "only by their subresource");
    assert_eq!(causes("pods", "", &debug, None), ["spec.ephemeralContainers: Forbidden: cannot be set on create"]);
}

#[test]
fn a_resize_changes_cpu_and_memory_within_the_class() {
    let sized = |resources: Value| {
        let mut pod = pod();
        pod["spec"]["containers"][0]["resources"] = resources;
        pod
    };
    for (resources, expected) in [
        (json!({"limits": {"cpu": "2"}, "requests": {"cpu": "700m"}}), ""),
        (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m", "memory": "1Gi"}}), ""),
        (
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"requests": {"cpu": "1"}}),
            "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
        ),
        (
            json!({"limits": {"cpu": "1", "gpu": "1"}, "requests": {"cpu": "1"}}),
            "spec: Forbidden: only cpu and memory resources are mutable",
        ),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}),
            "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing",
        ),
    ] {
        let found = causes("pods", "resize", &sized(resources.clone()), Some(&pod())).join("; ");
        assert_eq!(found, expected, "{resources}");
    }
}

fn job() -> Value {
    json!({"metadata": {"name": "j"}, "spec": {"completionMode": "NonIndexed", "completions": 1, "parallelism": 1,
        "selector": {"matchLabels": {"u": "1"}},
        "template": {"metadata": {"labels": {"u": "1"}}, "spec": {"restartPolicy": "Never", "containers": [container()]}}}})
}

#[test]
fn jobs() {
    for (change, expected) in [
        (json!({}), ""),
        (json!({"completions": -1}), "spec.completions: Invalid value: -1: must be greater than or equal to 0"),
        (json!({"selector": null}), "spec.selector: Required value"),
        (
            json!({"template": {"spec": {"restartPolicy": "Always"}}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            json!({"completionMode": "Indexed", "completions": null}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            json!({"podFailurePolicy": {}}),
            "spec.podFailurePolicy: Forbidden: is not supported by the embedded Kubernetes; leave it out, or use a real cluster",
        ),
    ] {
        let new = with(&job(), json!({"spec": change}));
        assert_eq!(causes("jobs", "", &new, None).join("; "), expected, "{new}");
    }
    let change = |change: Value| with(&job(), json!({"spec": change}));
    let place = json!({"template": {"spec": {"nodeSelector": {"a": "b"}}}});
    let suspended = with(&job(), json!({"spec": {"suspend": true}}));
    assert_eq!(causes("jobs", "", &change(json!({"parallelism": 5, "backoffLimit": 1})), Some(&job())).len(), 0);
    assert_eq!(causes("jobs", "", &change(json!({"completions": 5})), Some(&job())).len(), 1);
    assert_eq!(causes("jobs", "", &change(place.clone()), Some(&job())).len(), 1);
    assert_eq!(causes("jobs", "", &with(&suspended, json!({"spec": place})), Some(&suspended)).len(), 0);
}

#[test]
fn stateful_sets() {
    let set = json!({"metadata": {"name": "s"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "s",
        "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}}}});
    assert_eq!(causes("statefulsets", "", &set, None), [""; 0], "a mount may be of a claim");
    let other = |change: Value| with(&set, json!({"spec": change}));
    assert_eq!(causes("statefulsets", "", &other(json!({"replicas": 3})), Some(&set)), [""; 0]);
    let found = causes("statefulsets", "", &other(json!({"serviceName": "x"})), Some(&set)).join("; ");
    assert!(
        found.starts_with("spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"),
        "{found}"
    );
    assert_eq!(causes("statefulsets", "", &other(json!({"podManagementPolicy": "Any"})), None).len(), 1);
}

#[test]
fn volumes_and_claims() {
    let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "volumeMode": "Filesystem", "local": {"path": "/d"}, "nodeAffinity": {"required": {"nodeSelectorTerms": []}}}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "1Gi"}}}});
    let class = json!({"metadata": {"name": "c"}, "provisioner": "kubernetes.io/no-provisioner", "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate"});
    for (plural, new, old, expected) in [
        ("persistentvolumes", volume.clone(), None, ""),
        (
            "persistentvolumes",
            with(&volume, json!({"spec": {"nodeAffinity": null}})),
            None,
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ),
        (
            "persistentvolumes",
            with(&volume, json!({"spec": {"local": null}})),
            None,
            "spec: Required value: must specify a volume type",
        ),
        (
            "persistentvolumes",
            with(&volume, json!({"spec": {"local": {"path": "/e"}}})),
            Some(&volume),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
        ),
        ("persistentvolumes", with(&volume, json!({"spec": {"claimRef": {"name": "c"}}})), Some(&volume), ""),
        ("persistentvolumeclaims", claim.clone(), None, ""),
        ("persistentvolumeclaims", with(&claim, json!({"spec": {"volumeName": "v"}})), Some(&claim), ""),
        (
            "persistentvolumeclaims",
            with(&claim, json!({"spec": {"resources": {"requests": {"storage": "much"}}}})),
            None,
            "spec.resources[storage]: Invalid value: \"much\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("storageclasses", class.clone(), None, ""),
        (
            "storageclasses",
            with(&class, json!({"reclaimPolicy": "Retain"})),
            Some(&class),
            "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
        ),
    ] {
        assert_eq!(causes(plural, "", &new, old).join("; "), expected, "{new}");
    }
    let bound = with(&claim, json!({"spec": {"volumeName": "v"}}));
    assert_eq!(causes("persistentvolumeclaims", "", &claim, Some(&bound)).len(), 1, "a bound claim stays bound");
}

#[test]
fn runtime_classes() {
    let class = json!({"metadata": {"name": "k"}, "handler": "kata", "overhead": {"podFixed": {"cpu": "10m"}}});
    assert_eq!(causes("runtimeclasses", "", &class, None), [""; 0]);
    assert_eq!(causes("runtimeclasses", "", &with(&class, json!({"handler": "no/label"})), None).len(), 1);
    assert_eq!(causes("runtimeclasses", "", &with(&class, json!({"handler": "x"})), Some(&class)).len(), 1);
}
