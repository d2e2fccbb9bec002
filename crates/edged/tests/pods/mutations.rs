//! Pods that make no sense: every field of a rich pod is replaced by values that do not belong there, at random. Whatever such
//! a pod does, no task of the agent panics, other pods run, and it can be deleted.
//!
//! The seed is printed; `MUTATION_SEED` repeats a run.

use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::{Node, pod};

const BATCHES: usize = 12;
const PER_BATCH: usize = 30;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// A pod that uses most of what a pod may say.
fn rich(name: &str) -> Value {
    let probe = |action: Value| {
        let mut probe = json!({"initialDelaySeconds": 1, "periodSeconds": 1, "timeoutSeconds": 1, "successThreshold": 1,
            "failureThreshold": 2, "terminationGracePeriodSeconds": 3});
        probe.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        probe
    };
    let container = |name: &str| {
        json!({
            "name": name, "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "$(A)"], "args": ["-c", "$(B)"], "workingDir": "/tmp", "tty": false, "stdin": false,
            "ports": [{"name": "web", "containerPort": 8080, "hostPort": 0, "protocol": "TCP", "hostIP": "127.0.0.1"}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": true}}},
                {"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
            ],
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c", "optional": true}}],
            "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "volumeMounts": [
                {"name": "scratch", "mountPath": "/scratch", "subPath": "a", "readOnly": false},
                {"name": "config", "mountPath": "/config", "mountPropagation": "None"},
            ],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "privileged": false,
                "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
            "livenessProbe": probe(json!({"exec": {"command": ["true"]}})),
            "readinessProbe": probe(json!({"tcpSocket": {"port": "web", "host": "127.0.0.1"}})),
            "startupProbe": probe(json!({"httpGet": {"port": 1, "path": "/x", "host": "127.0.0.1", "scheme": "HTTP",
                "httpHeaders": [{"name": "X-A", "value": "b"}]}})),
            "lifecycle": {"preStop": {"exec": {"command": ["true"]}}, "postStart": {"sleep": {"seconds": 0}}},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    };
    let mut pod = pod(name);
    pod["metadata"]["labels"] = json!({"app": name});
    pod["metadata"]["annotations"] = json!({"note": "x"});
    pod["metadata"]["creationTimestamp"] = json!("2026-11-24T12:00:00Z");
    let spec = pod["spec"].as_object_mut().unwrap();
    let init = {
        let mut init = container("init");
        for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            init.as_object_mut().unwrap().remove(probe);
        }
        init
    };
    let mut sidecar = container("sidecar");
    sidecar["restartPolicy"] = json!("Always");
    let more = json!({
        "containers": [container("main"), container("second")], "initContainers": [init, sidecar],
        "restartPolicy": "OnFailure", "activeDeadlineSeconds": 600, "dnsPolicy": "None", "hostname": "h", "subdomain": "s",
        "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}]},
        "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["x.example"]}], "hostNetwork": false, "hostPID": false,
        "shareProcessNamespace": false, "serviceAccountName": "default", "enableServiceLinks": true, "priority": 0,
        "imagePullSecrets": [{"name": "none"}], "nodeSelector": {}, "tolerations": [{"operator": "Exists"}],
    });
    spec.extend(more.as_object().unwrap().clone());
    let more = json!({
        "readinessGates": [{"conditionType": "x/y"}], "setHostnameAsFQDN": false, "runtimeClassName": "",
        "securityContext": {"fsGroup": 2000, "runAsUser": 1000, "supplementalGroups": [1, 2],
            "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}], "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "config", "projected": {"defaultMode": 420, "sources": [
                {"configMap": {"name": "c", "optional": true, "items": [{"key": "k", "path": "p", "mode": 256}]}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            ]}},
            {"name": "unused", "hostPath": {"path": "/tmp", "type": "Directory"}},
        ],
    });
    spec.extend(more.as_object().unwrap().clone());
    pod
}

/// Pointers to everything in a value.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut child = |key: &str, value: &Value| {
        let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        // The status is the agent's own.
        if at == "/status" {
            return;
        }
        // Who the pod is and where it runs stays: anything else is another pod, or none of this node.
        if !["/metadata/name", "/metadata/namespace", "/metadata/uid", "/spec/nodeName", "/metadata", "/spec", "/kind"]
            .contains(&at.as_str())
        {
            found.push(at.clone());
        }
        places(value, &at, found);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| child(key, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| child(&index.to_string(), value)),
        _ => {}
    }
}

fn nonsense(random: &mut StdRng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(65_536),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(i32::MAX),
        json!(""),
        json!(" "),
        json!("\u{0}"),
        json!("../../../etc/passwd"),
        json!("/"),
        json!("💥"),
        json!("$(A)$(B"),
        json!("9999999999999999999999Ei"),
        json!("-5"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!([null]),
        json!({"": {}}),
        json!("Always"),
        json!("2026-11-24T12:00:00Z"),
        json!("0001-01-01T00:00:00Z"),
        json!("main"),
        json!(["a\nb"]),
        json!("%s%n"),
    ];
    values.choose(random).unwrap().clone()
}

fn mutate(pod: &mut Value, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let mut found = Vec::new();
        places(pod, "", &mut found);
        let Some(place) = found.choose(random) else { return };
        let (parent, key) = place.rsplit_once('/').unwrap();
        match random.random_range(0..10) {
            // A field that is missing, or there twice.
            0 => match pod.pointer_mut(parent) {
                Some(Value::Object(fields)) => drop(fields.remove(&key.replace("~1", "/").replace("~0", "~"))),
                Some(Value::Array(items)) => {
                    let copy = items[key.parse::<usize>().unwrap()].clone();
                    items.push(copy);
                }
                _ => {}
            },
            _ => {
                let value = nonsense(random);
                if let Some(target) = pod.pointer_mut(place) {
                    *target = value;
                }
            }
        }
    }
}

fn count_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Other tests of the process may fail meanwhile.
        if info.location().is_some_and(|location| !location.file().contains("tests/")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        usual(info);
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mutation_of_a_pod_stops_the_agent() {
    let seed =
        std::env::var("MUTATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    eprintln!("MUTATION_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    count_panics();
    let mut node = Node::started().await;
    node.cri.exit_on_start("init", 0);
    for batch in 0..BATCHES {
        let mut names = Vec::new();
        for index in 0..PER_BATCH {
            let name = format!("m{batch}-{index}");
            let mut odd = rich(&name);
            mutate(&mut odd, &mut random);
            node.cloud.create(odd.clone()).await;
            if index % 3 == 0 {
                // And once more, otherwise.
                mutate(&mut odd, &mut random);
                node.cloud.create(odd).await;
            }
            names.push(name);
        }
        let witness = format!("witness{batch}");
        node.cloud.create(pod(&witness)).await;
        node.until("the pod without fault runs", || node.ready(&witness)).await;
        if batch % 4 == 3 {
            node.kill().await;
            node.start();
        }
        for name in names.iter().chain([&witness]) {
            node.cloud.force_delete(name).await;
        }
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "seed {seed}, batch {batch}");
        assert!(node.is_alive(), "seed {seed}, batch {batch}: edged ended");
    }
    node.until("nothing is left", || node.cri.sandboxes().is_empty() && node.cri.containers().is_empty()).await;
}
