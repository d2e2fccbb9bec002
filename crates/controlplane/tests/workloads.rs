//! Deployments, ReplicaSets and DaemonSets from their creation to their end, with a stand-in for the kubelet.

mod support;

use serde_json::{Value, json};
use support::{World, deployment};

fn status(world: &World, name: &str) -> Value {
    world.get("deployments", "default", name).map(|d| d["status"].clone()).unwrap_or_default()
}

fn condition(object: &Value, kind: &str) -> String {
    let list = object["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or(""), found["reason"].as_str().unwrap_or(""))
}

/// As `kubectl rollout status` decides.
fn rolled_out(world: &World, name: &str) -> bool {
    let Some(d) = world.get("deployments", "default", name) else { return false };
    let n = |field: &str| d["status"][field].as_i64().unwrap_or(0);
    let wanted = d["spec"]["replicas"].as_i64().unwrap_or(1);
    n("observedGeneration") >= d["metadata"]["generation"].as_i64().unwrap_or(0)
        && n("updatedReplicas") == wanted
        && n("replicas") == wanted
        && n("availableReplicas") == wanted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_scales_rolls_and_ends() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    world.create("deployments", "default", deployment("web", 2, "busybox:1")).await;
    world
        .eventually("two pods run and the rollout is complete", |w| {
            rolled_out(w, "web")
                && w.running("default").len() == 2
                && condition(&status(w, "web"), "Progressing") == "True NewReplicaSetAvailable"
        })
        .await;
    assert_eq!(condition(&status(&world, "web"), "Available"), "True MinimumReplicasAvailable");
    for pod in world.running("default") {
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(condition(&pod["status"], "PodScheduled").split(' ').next(), Some("True"));
    }

    let scale = world.at("deployments", "default", "web").sub("scale");
    let change = json!({"spec": {"replicas": 5}});
    let options = kubeapi::WriteOptions::default();
    world.api().patch(&scale, &change, kubeapi::PatchType::Merge, &options).await.expect("scaled");
    world.eventually("five pods run", |w| rolled_out(w, "web") && w.running("default").len() == 5).await;
    assert_eq!(world.list("replicasets", "default").len(), 1, "scaling makes no revision");

    let template = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}}}});
    world.patch("deployments", "default", "web", template).await;
    world
        .eventually("all pods have the new image", |w| {
            let pods = w.running("default");
            rolled_out(w, "web")
                && pods.len() == 5
                && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "busybox:2")
        })
        .await;
    let mut revisions: Vec<(String, i64)> = world
        .list("replicasets", "default")
        .iter()
        .map(|s| {
            let revision = &s["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
            (revision.as_str().unwrap_or("").to_owned(), s["spec"]["replicas"].as_i64().unwrap_or(-1))
        })
        .collect();
    revisions.sort();
    assert_eq!(revisions, [("1".to_owned(), 0), ("2".to_owned(), 5)]);
    let annotations = world.get("deployments", "default", "web").expect("there")["metadata"]["annotations"].clone();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "2");

    world
        .eventually("the events tell the story", |w| {
            let all = w.reasons("default", "web");
            all.iter()
                .any(|e| e.starts_with("ScalingReplicaSet: Scaled up replica set web-") && e.ends_with("from 0 to 2"))
                && all.iter().any(|e| e.ends_with("from 2 to 5"))
                && all.iter().any(|e| e.contains("Scaled down"))
        })
        .await;

    world.delete("deployments", "default", "web", "Background").await;
    world
        .eventually("sets and pods are gone too", |w| {
            w.list("replicasets", "default").is_empty() && w.list("pods", "default").is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_waits_for_dependents_and_orphan_spares_them() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    world.create("deployments", "default", deployment("a", 2, "busybox:1")).await;
    world.create("deployments", "default", deployment("b", 2, "busybox:1")).await;
    world.eventually("both run", |w| rolled_out(w, "a") && rolled_out(w, "b")).await;

    world.delete("deployments", "default", "a", "Foreground").await;
    world.eventually("a is gone with all its pods", |w| w.get("deployments", "default", "a").is_none()).await;
    assert_eq!(world.running("default").len(), 2, "the pods went first");

    world.delete("deployments", "default", "b", "Orphan").await;
    world.eventually("b is gone", |w| w.get("deployments", "default", "b").is_none()).await;
    let sets = world.list("replicasets", "default");
    assert_eq!(sets.len(), 1);
    assert!(sets[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(world.running("default").len(), 2);

    // A namesake takes the orphan over instead of making another one.
    world.create("deployments", "default", deployment("b", 2, "busybox:1")).await;
    world.eventually("the orphan is adopted", |w| rolled_out(w, "b")).await;
    assert_eq!(world.list("replicasets", "default").len(), 1);
    assert_eq!(world.running("default").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_the_nodes() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    let set = |image: &str| {
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
    };
    world.create("daemonsets", "default", set("busybox:1")).await;
    world.eventually("one pod runs", |w| w.running("default").len() == 1).await;
    world.node("n2", json!({})).await;
    world
        .eventually("two pods run", |w| {
            let d = w.get("daemonsets", "default", "agent").expect("there");
            w.running("default").len() == 2
                && d["status"]["numberAvailable"] == 2
                && d["status"]["desiredNumberScheduled"] == 2
        })
        .await;
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}}}});
    world.patch("daemonsets", "default", "agent", change).await;
    world
        .eventually("both pods are replaced", |w| {
            let d = w.get("daemonsets", "default", "agent").expect("there");
            let pods = w.running("default");
            d["status"]["updatedNumberScheduled"] == 2
                && d["status"]["numberAvailable"] == 2
                && pods.len() == 2
                && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "busybox:2")
        })
        .await;
    assert_eq!(world.list("controllerrevisions", "default").len(), 2);
    world.delete("daemonsets", "default", "agent", "").await;
    world
        .eventually("nothing is left", |w| {
            w.list("pods", "default").is_empty() && w.list("controllerrevisions", "default").is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_a_node_comes() {
    let mut world = World::start().await;
    let mut wish = deployment("web", 1, "busybox:1");
    wish["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    world.create("deployments", "default", wish).await;
    world
        .eventually("it is told that there are no nodes", |w| {
            w.list("pods", "default").first().is_some_and(|p| {
                condition(&p["status"], "PodScheduled") == "False Unschedulable"
                    && w.reasons("default", p["metadata"]["name"].as_str().unwrap_or(""))
                        .iter()
                        .any(|e| e == "FailedScheduling: no nodes available to schedule pods")
            })
        })
        .await;
    world.node("n1", json!({})).await;
    world
        .eventually("it is told that the node does not suit", |w| {
            w.list("pods", "default").first().is_some_and(|p| {
                w.reasons("default", p["metadata"]["name"].as_str().unwrap_or("")).iter().any(|e| {
                e == "FailedScheduling: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            })
            })
        })
        .await;
    world.patch("nodes", "", "n1", json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    world.eventually("it runs", |w| rolled_out(w, "web")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_knows_its_pods() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    world.create("deployments", "default", deployment("web", 2, "busybox:1")).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    world.create("services", "default", service).await;
    let addresses = |w: &World| -> usize {
        let endpoints = w.get("endpoints", "default", "web").unwrap_or_default();
        endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len)
    };
    world.eventually("both pods are behind it", |w| addresses(w) == 2).await;
    let slices = world.list("endpointslices", "default");
    assert_eq!((slices.len(), &slices[0]["ports"][0]["port"]), (1, &json!(8080)));
    world.patch("deployments", "default", "web", json!({"spec": {"replicas": 1}})).await;
    world.eventually("one pod is behind it", |w| addresses(w) == 1).await;
    world.delete("services", "default", "web", "").await;
    world
        .eventually("its addresses go with it", |w| {
            w.get("endpoints", "default", "web").is_none() && w.list("endpointslices", "default").is_empty()
        })
        .await;
}
