//! `deploy/`: what a real cluster is given before cloudcore starts, and what cloudcore says without it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::go_edge::request;

use crate::cloud::{Cloud, SOON, config_map, logged, pod, wait_logged};
use crate::device_reports::report;
use crate::devices::{DEVICES, MODELS, device, model};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The documents of a file in `deploy/`.
fn documents(file: &str) -> Result<Vec<Value>> {
    let path = format!("{}/../../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).context(path)?;
    text.split("\n---\n").map(|document| Ok(serde_saphyr::from_str(document)?)).collect()
}

/// Whether everything in `wanted` is in `found`, which may have defaults besides.
fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(f), Value::Object(w)) => w.iter().all(|(key, w)| f.get(key).is_some_and(|f| contains(f, w))),
        (Value::Array(f), Value::Array(w)) => f.len() == w.len() && f.iter().zip(w).all(|(f, w)| contains(f, w)),
        (f, w) => f == w,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_in_deploy_are_enough() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    for mut document in documents("rbac.yaml")? {
        // The embedded Kubernetes has roles of this name for its own cloudcore.
        for at in ["/metadata/name", "/roleRef/name"] {
            let is_cluster_wide = document["metadata"]["namespace"].is_null();
            if let Some(name) = document.pointer_mut(at).filter(|name| is_cluster_wide && **name == "cloudcore") {
                *name = json!("deployed");
            }
        }
        let path = match document["kind"].as_str().context("kind")? {
            "Namespace" => continue,
            "ServiceAccount" => "/api/v1/namespaces/kubeedge/serviceaccounts",
            "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "Role" => "/apis/rbac.authorization.k8s.io/v1/namespaces/kubeedge/roles",
            "RoleBinding" => "/apis/rbac.authorization.k8s.io/v1/namespaces/kubeedge/rolebindings",
            other => anyhow::bail!("{other} is new here"),
        };
        cloud.create(path, &document).await?;
    }
    cloud.be_service_account("cloudcore").await?;
    cloud.start_hub("").await?;

    let (edge, _) = cloud.edge("n1").await?;
    cloud.create("/api/v1/namespaces/default/configmaps", &config_map("settings", "value")).await?;
    let mut web = pod("web", "n1");
    web["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    let uid = cloud.create(PODS, &web).await?["metadata"]["uid"].clone();
    edge.wait("the pod", SOON, |seen| seen.rows.get("default/pod/web").cloned()).await?;
    let about = json!({"kind": "Pod", "namespace": "default", "name": "web", "uid": uid});
    let event =
        json!({"metadata": {"name": "e", "namespace": "default"}, "reason": "x", "involvedObject": about, "count": 1});
    let token = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid}}});
    let lease = json!({"metadata": {"name": "n1", "namespace": "kube-node-lease"}, "spec": {"holderIdentity": "n1"}});
    let mut mirror = pod("mirror", "n1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    mirror["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}]);
    for (verb, resource, content) in [
        ("query", "default/configmap/settings", Value::Null),
        ("query", "default/serviceaccounttoken/default", token),
        ("query", "null/node/n1", Value::Null),
        ("query", "default/service/kubernetes", Value::Null),
        ("query", "default/endpoints/kubernetes", Value::Null),
        ("patch", "null/nodepatch/n1", json!({"status": {"phase": "Running"}})),
        ("update", "null/node/n1", json!({"metadata": {"labels": {"colour": "blue"}}})),
        ("insert", "kube-node-lease/lease/n1", lease.clone()),
        ("query", "kube-node-lease/lease/n1", Value::Null),
        ("patch", "default/podpatch/web", json!({"metadata": {"uid": uid}, "status": {"phase": "Running"}})),
        ("insert", "default/pod/mirror", mirror),
        ("delete", "default/pod/web", json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})),
    ] {
        let answer = edge.request(request(verb, resource, content)).await?;
        ensure!(!answer["content"].to_string().contains("\"Failure\""), "{verb} {resource}: {answer}");
    }
    for (verb, content) in [("insert", event.clone()), ("patch", json!({"event": event, "patchData": "{\"count\":2}"}))]
    {
        edge.send(&request(verb, "default/event/e", content)).await?;
    }
    cloud.create(MODELS, &model("thermometer")).await?;
    cloud.create(DEVICES, &device("thermo", "n1", "thermometer")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").cloned()).await?;
    for value in ["1", "2"] {
        let answer = edge.request(report("thermo", "temperature", value)).await?;
        ensure!(answer["content"] == "OK", "{answer}");
    }
    let events = "/api/v1/namespaces/default/events/e";
    cloud.wait_for(events, "the event's second count", |event| event["count"] == 2).await?;
    cloud.wait_for(SYNCS, "a record", |list| list["items"].as_array().is_some_and(|all| !all.is_empty())).await?;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    cloud
        .wait_for(requests, "the certificate's record", |list| list["items"][0]["status"]["certificate"].is_string())
        .await?;
    let refused: Vec<String> =
        logged().lines().filter(|line| line.contains("serviceaccount:kubeedge:cloudcore")).map(str::to_owned).collect();
    assert_eq!(refused, Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_told_at_once() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "powerless"}});
    cloud.create("/api/v1/namespaces/kubeedge/serviceaccounts", &account).await?;
    cloud.be_service_account("powerless").await?;
    let error = cloud.start_hub("").await.expect_err("no rights");
    let text = format!("{error:#}");
    assert!(text.contains("serviceaccount:kubeedge:powerless") && text.contains("cannot get resource"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_definitions_are_told_and_not_waited_for() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    let definitions = documents("crds.yaml")?;
    for definition in &definitions {
        let path = format!("{DEFINITIONS}/{}", definition["metadata"]["name"].as_str().context("name")?);
        let found = cloud.get(&path).await?;
        ensure!(contains(&found["spec"], &definition["spec"]), "the embedded Kubernetes has another: {found}");
        cloud.delete(&path).await?;
        cloud.wait_for(&path, "the definition to go", Value::is_null).await?;
    }
    cloud.start_hub("").await?;
    for kind in ["objectsyncs", "clusterobjectsyncs"] {
        wait_logged(&["ERROR", &format!("\"{kind}.reliablesyncs.kubeedge.io\""), "kubectl apply -f deploy/crds.yaml"])
            .await?;
    }
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    edge.wait("the pod", SOON, |seen| seen.rows.get("default/pod/web").cloned()).await?;
    let before = edge.stop().await;
    // What it has is forgotten with the process, and not waited for.
    cloud.stop_hub().await?;
    cloud.start_hub("").await?;
    let began = Instant::now();
    let edge = cloud.reconnect(&credentials, before, "n1").await?;
    edge.wait("the pod again", SOON, |seen| seen.pushes("default/pod/web").first().map(drop)).await?;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // The cure, without a restart.
    for definition in &definitions {
        cloud.create(DEFINITIONS, definition).await?;
    }
    cloud.wait_for(SYNCS, "the record", |list| list["items"].as_array().is_some_and(|all| !all.is_empty())).await?;
    Ok(())
}
