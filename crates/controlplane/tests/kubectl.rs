//! The real kubectl against the API: the one that is installed, and beside it Debian 12's (1.20), which `cargo xtask test`
//! puts into the target folder.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use support::World;
use support::kubectl::{Kubectl, installed, old};
use tokio::io::{AsyncBufReadExt, BufReader};

/// How long a watch may take to tell.
const PATIENCE: Duration = Duration::from_secs(20);

const DEPLOYMENT: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 1,
    "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
    "spec": {"containers": [{"name": "one", "image": "one:1", "env": [{"name": "A", "value": "old"}]}, {"name": "two", "image": "two:1"}]}}}}"#;
const DEFINITION: &str = r#"{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.org"},
    "spec": {"group": "example.org", "scope": "Namespaced", "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["wg"]},
    "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
    "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}}}}}]}}"#;
const WIDGET: &str =
    r#"{"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}}"#;

const STORAGE: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"},
    {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "db-a"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "local": {"path": "/a"}, "nodeAffinity": {"required":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["edge-1"]}]}]}}}},
    {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "db-b"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "local": {"path": "/b"}, "nodeAffinity": {"required":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["edge-1"]}]}]}}}}]}"#;
const SET: &str = r#"{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
    "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [
        {"name": "c", "image": "c:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
    "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}}]}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_afternoon_with_kubectl() {
    let mut world = World::start().await;
    world.node("edge-1", serde_json::json!({})).await;
    let kubectl = Kubectl { world: &world, program: installed() };
    let version = kubectl.works("version", "").await;
    assert!(version.contains("v1.32"), "{version}");

    // Apply, change, roll out; no warnings on the way.
    assert_eq!(kubectl.works("apply -f -", DEPLOYMENT).await, "deployment.apps/web created\n");
    assert_eq!(kubectl.works("apply -f -", DEPLOYMENT).await, "deployment.apps/web unchanged\n");
    let changed = DEPLOYMENT.replace("old", "new");
    assert_eq!(kubectl.works("apply -f -", &changed).await, "deployment.apps/web configured\n");
    assert_eq!(kubectl.works("diff -f -", &changed).await, "");
    assert!(kubectl.works("rollout status deploy/web --timeout=20s", "").await.contains("successfully rolled out"));
    let names = kubectl.works("get deploy web -o jsonpath={.spec.template.spec.containers[*].name}", "").await;
    assert_eq!(names, "one two", "merged by name");
    kubectl.works("scale deploy web --replicas=2", "").await;
    kubectl.works("set image deploy/web one=one:2", "").await;
    assert!(kubectl.works("rollout status deploy/web --timeout=20s", "").await.contains("successfully rolled out"));
    let table = kubectl.works("get deploy", "").await;
    assert!(table.contains("READY   UP-TO-DATE   AVAILABLE") && table.contains("2/2     2            2"), "{table}");
    assert!(kubectl.works("get pods -o wide", "").await.contains("edge-1"));
    assert!(kubectl.works("describe deploy web", "").await.contains("ScalingReplicaSet"));
    kubectl.works("label deploy web tier=front", "").await;
    assert!(kubectl.works("get deploy -l tier=front -o name", "").await.contains("deployment.apps/web"));
    kubectl.works("rollout undo deploy/web", "").await;

    // A resource of one's own.
    kubectl.works("apply -f -", DEFINITION).await;
    kubectl.works("wait --for=condition=Established crd/widgets.example.org --timeout=5s", "").await;
    assert_eq!(kubectl.works("apply -f -", WIDGET).await, "widget.example.org/w created\n");
    kubectl.fails("apply -f -", &WIDGET.replace('3', "0"), "spec.size: Invalid value: 0").await;
    kubectl.fails("apply -f -", &WIDGET.replace("size", "sise"), "unknown field \"spec.sise\"").await;
    assert_eq!(kubectl.works("get wg", "").await, "NAME   SIZE\nw      3\n");

    // Bodies in protobuf.
    kubectl.works("create configmap c --from-literal=a=b", "").await;
    assert_eq!(kubectl.works("get cm c -o jsonpath={.data.a}", "").await, "b");
    kubectl.works("create sa bob", "").await;
    kubectl.works("create role r --verb=get,list --resource=pods", "").await;
    kubectl.works("create rolebinding b --role=r --serviceaccount=default:bob", "").await;
    let as_bob = "--as=system:serviceaccount:default:bob";
    assert_eq!(kubectl.works(&format!("auth can-i list pods {as_bob}"), "").await, "yes\n");
    kubectl.fails(&format!("auth can-i delete pods {as_bob}"), "", "no").await;
    kubectl.fails(&format!("get cm {as_bob}"), "", "cannot list resource \"configmaps\"").await;
    assert!(kubectl.works("create token bob", "").await.starts_with("ey"));
    assert!(kubectl.works("auth whoami", "").await.contains("kubernetes-admin"));

    // A job from protobuf; a set with names and volumes of its own.
    kubectl.works("create job j --image=j -- true", "").await;
    kubectl.works("wait --for=condition=complete job/j --timeout=20s", "").await;
    kubectl.works("wait --for=jsonpath={.status.succeeded}=1 job/j --timeout=20s", "").await;
    let table = kubectl.works("get job", "").await;
    assert!(table.contains("STATUS     COMPLETIONS   DURATION") && table.contains("Complete   1/1"), "{table}");
    assert!(kubectl.works("describe job j", "").await.contains("Job completed"));
    kubectl.works("apply -f -", STORAGE).await;
    kubectl.works("apply -f -", SET).await;
    let status = kubectl.works("rollout status sts/db --timeout=20s", "").await;
    assert!(status.contains("partitioned roll out complete") || status.contains("rolling update complete"), "{status}");
    for (line, expected) in [
        ("get sts", "db     2/2"),
        ("get pv", "RWO            Retain           Bound"),
        ("get pvc", "data-db-1   Bound    "),
        ("get sc", "kubernetes.io/no-provisioner   Delete          WaitForFirstConsumer   false"),
        ("describe sts db", "create Pod db-1 in StatefulSet db successful"),
        ("describe pvc data-db-0", "Used By:       db-0"),
        ("describe pv db-a", "Term 0:        kubernetes.io/hostname in [edge-1]"),
    ] {
        let text = kubectl.works(line, "").await;
        assert!(text.contains(expected), "kubectl {line}: {text}");
    }
    kubectl.works("scale sts db --replicas=1", "").await;
    kubectl.works("wait --for=delete pod/db-1 --timeout=20s", "").await;
    kubectl.works("delete sts/db job/j --cascade=foreground --timeout=20s", "").await;

    // A pod that is debugged and resized while it runs.
    kubectl.works("run p --image=p:1", "").await;
    kubectl.works("wait --for=condition=Ready pod/p --timeout=20s", "").await;
    kubectl.works("debug p --image=d:1 --target=p --attach=false", "").await;
    assert_eq!(kubectl.works("get pod p -o jsonpath={.spec.ephemeralContainers[0].image}", "").await, "d:1");
    let larger = r#"{"spec":{"containers":[{"name":"p","resources":{"requests":{"cpu":"20m"}}}]}}"#;
    kubectl.fails(&format!("patch pod p --subresource=resize -p {larger}"), "", "Pod QOS Class may not change").await;
    kubectl.works("delete pod p --now --timeout=20s", "").await;

    // What is not there is refused in words.
    kubectl.fails("apply --server-side -f -", WIDGET, "server-side apply is not supported").await;
    kubectl.fails("create quota q --hard=pods=1", "", "could not find the requested resource").await;
    kubectl.fails("explain pod", "", "not found").await;

    assert!(kubectl.works("describe ns default", "").await.contains("Active"));

    // Clean up: drain, delete, wait until all is gone.
    kubectl.works("cordon edge-1", "").await;
    assert!(kubectl.works("get nodes", "").await.contains("SchedulingDisabled"));
    kubectl.works("uncordon edge-1", "").await;
    kubectl.works("delete deploy web --cascade=foreground --timeout=20s", "").await;
    assert_eq!(kubectl.works("get pods", "").await, "No resources found in default namespace.\n");
    kubectl.works("create ns shop", "").await;
    kubectl.works("delete ns shop --timeout=20s", "").await;
    kubectl.works("delete crd widgets.example.org --timeout=20s", "").await;
    kubectl.fails("get wg", "", "could not find the requested resource").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_day_with_any_kubectl() {
    for program in [Some(installed()), old()].into_iter().flatten() {
        eprintln!("with {}", program.display());
        first_day(program).await;
    }
}

/// What everybody types first.
async fn first_day(program: PathBuf) {
    let mut world = World::start().await;
    world.node("edge-1", serde_json::json!({})).await;
    let kubectl = Kubectl { world: &world, program };
    assert!(kubectl.works("get nodes -o wide", "").await.contains("edge-1"));
    assert!(kubectl.works("api-resources", "").await.contains("deployments"));
    kubectl.works("create deployment shop --image=one:1", "").await;
    kubectl.works("scale deployment shop --replicas=2", "").await;
    kubectl.works("set image deployment/shop one=one:2", "").await;
    let done = kubectl.works("rollout status deployment/shop --timeout=20s", "").await;
    assert!(done.contains("successfully rolled out"), "{done}");
    assert!(kubectl.works("get nodes,pods -o wide", "").await.contains("shop-"));
    kubectl.works("wait --for=condition=Available deployment/shop --timeout=20s", "").await;
    assert!(kubectl.works("describe deployment shop", "").await.contains("one:2"));
    assert!(kubectl.works("get events", "").await.contains("ScalingReplicaSet"));
    kubectl.works("apply -f -", DEPLOYMENT).await;
    kubectl.works("label deployment web tier=front", "").await;
    assert!(kubectl.works("get deployment -l tier=front", "").await.contains("web"));

    // The editor writes another image; the next one leaves the file as it is.
    let editor = world.dir.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/one:2/one:3/' \"$1\"\n").expect("written");
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let mut edit = kubectl.command("edit deployment shop");
    let output =
        edit.env("EDITOR", &editor).env_remove("KUBE_EDITOR").stdin(Stdio::null()).output().await.expect("ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("deployment.apps/shop edited"), "{output:?}");
    let image = kubectl.works("get deployment shop -o jsonpath={.spec.template.spec.containers[0].image}", "").await;
    assert_eq!(image, "one:3");

    // A watch tells what was there, and what happens.
    let mut watch = kubectl.command("get configmaps -w --no-headers").stdin(Stdio::null()).spawn().expect("kubectl");
    let mut lines = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    kubectl.works("create configmap seen --from-literal=a=b", "").await;
    let told = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.starts_with("seen") {
                return true;
            }
        }
        false
    });
    assert!(told.await.expect("the watch tells in time"), "the watch ended");
    watch.kill().await.expect("ended");

    kubectl.works("cordon edge-1", "").await;
    assert!(kubectl.works("get nodes", "").await.contains("SchedulingDisabled"));
    kubectl.works("uncordon edge-1", "").await;
    kubectl.works("delete deployment shop web --timeout=20s", "").await;
    kubectl.fails("get deployment shop", "", "NotFound").await;
}
