//! What may change on a pod that runs, and what a RuntimeClass gives to a new one.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use kubeapi::{ApiError, PatchType, User, WriteOptions};
use serde_json::{Value, json};
use support::World;

fn pod(name: &str) -> Value {
    let container = json!({"name": "c", "image": "busybox:1", "resources": {"requests": {"cpu": "100m"}}});
    json!({"metadata": {"name": name}, "spec": {"containers": [container]}})
}

async fn patch(world: &World, sub: &str, how: PatchType, patch: Value) -> Result<Value, ApiError> {
    let what = world.at("pods", "default", "p").sub(sub);
    world.api().patch(&what, &patch, how, &WriteOptions::default()).await
}

async fn ready() -> World {
    let world = World::start().await;
    world.eventually("pods may be created", |w| w.get("serviceaccounts", "default", "default").is_some()).await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debug_containers_and_resizes_have_their_own_doors() {
    let world = ready().await;
    world.create("pods", "default", pod("p")).await;
    let before = world.get("pods", "default", "p").expect("there");

    let debugger =
        json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox:1", "targetContainerName": "c"}]}});
    let refused = patch(&world, "", PatchType::Strategic, debugger.clone()).await.expect_err("not by the pod itself");
    assert!(refused.message.contains("pod updates may not change fields other than"), "{refused}");
    let after = patch(&world, "ephemeralcontainers", PatchType::Strategic, debugger).await.expect("added");
    assert_eq!(after["spec"]["ephemeralContainers"][0]["imagePullPolicy"], "IfNotPresent", "defaults are set");
    assert_eq!(after["metadata"]["generation"].as_i64(), before["metadata"]["generation"].as_i64().map(|g| g + 1));
    let read = world.api().get(&world.at("pods", "default", "p").sub("ephemeralcontainers")).expect("read");
    assert_eq!(read["spec"], after["spec"]);

    let size = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
    let larger = size(json!({"requests": {"cpu": "200m"}}));
    let refused = patch(&world, "", PatchType::Strategic, larger.clone()).await.expect_err("not by the pod itself");
    assert_eq!(refused.code, 422);
    let mut sent = larger;
    sent["spec"]["containers"][0]["image"] = json!("other");
    let after = patch(&world, "resize", PatchType::Strategic, sent).await.expect("resized");
    let container = &after["spec"]["containers"][0];
    assert_eq!(
        (&container["resources"]["requests"]["cpu"], &container["image"]),
        (&json!("200m"), &json!("busybox:1"))
    );
    let guaranteed = size(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}));
    let refused = patch(&world, "resize", PatchType::Strategic, guaranteed).await.expect_err("another class");
    assert!(refused.message.contains("Pod QOS Class may not change as a result of resizing"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_class_gives_its_overhead() {
    let world = ready().await;
    let create = |plural: &str, namespace: &str, object: Value| {
        let (api, what) = (world.api().clone(), world.at(plural, namespace, ""));
        async move { api.create(&User::system("test"), &what, object, &WriteOptions::default()).await }
    };
    let mut wish = pod("p");
    wish["spec"]["runtimeClassName"] = json!("kata");
    let refused = create("pods", "default", wish.clone()).await.expect_err("no such class");
    assert!(refused.message.ends_with("pod rejected: RuntimeClass \"kata\" not found"), "{refused}");
    let class = json!({"metadata": {"name": "kata"}, "handler": "kata", "overhead": {"podFixed": {"memory": "120Mi"}}});
    create("runtimeclasses", "", class).await.expect("class");
    let made = create("pods", "default", wish.clone()).await.expect("pod");
    assert_eq!(made["spec"]["overhead"], json!({"memory": "120Mi"}));
    wish["metadata"]["name"] = json!("q");
    wish["spec"]["overhead"] = json!({"memory": "1Mi"});
    let refused = create("pods", "default", wish).await.expect_err("another overhead");
    assert!(refused.message.contains("Pod's Overhead doesn't match RuntimeClass's defined Overhead"), "{refused}");
}
