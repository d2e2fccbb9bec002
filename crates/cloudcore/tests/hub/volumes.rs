//! What a node may know of claims and volumes: those that pods on it use. Which runtimes there are is no secret.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::go_edge::{GoEdge, request};

use crate::cloud::{Cloud, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

async fn ask(edge: &GoEdge, path: &str) -> Result<Value> {
    Ok(edge.request(request("query", path, Value::Null)).await?["content"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_sees_the_volumes_of_its_own_pods() -> Result<()> {
    let cloud = Cloud::start().await?;
    for name in ["ours", "theirs"] {
        let spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/d"},
            "claimRef": {"namespace": "default", "name": name}});
        cloud.create(VOLUMES, &json!({"metadata": {"name": name}, "spec": spec})).await?;
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}});
        cloud.create(CLAIMS, &json!({"metadata": {"name": name}, "spec": spec})).await?;
        cloud.create(CLASSES, &json!({"metadata": {"name": name}, "handler": "runc"})).await?;
        cloud.wait_for(&format!("{CLAIMS}/{name}"), "a bound claim", |c| c["status"]["phase"] == "Bound").await?;
    }
    let (edge, _) = cloud.edge("n1").await?;
    let (other, _) = cloud.edge("n2").await?;
    for (name, node) in [("ours", "n1"), ("theirs", "n2")] {
        let mut pod = pod(name, node);
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}}]);
        pod["spec"]["runtimeClassName"] = json!(name);
        cloud.create(PODS, &pod).await?;
    }
    edge.wait("its pod", crate::cloud::SOON, |seen| seen.rows.get("default/pod/ours").cloned()).await?;
    other.wait("its pod", crate::cloud::SOON, |seen| seen.rows.get("default/pod/theirs").cloned()).await?;

    let claim = ask(&edge, "default/persistentvolumeclaim/ours").await?;
    assert_eq!(claim["spec"]["volumeName"], "ours", "{claim}");
    assert_eq!(ask(&edge, "null/persistentvolume/ours").await?["spec"]["hostPath"]["path"], "/d");
    assert_eq!(ask(&edge, "null/runtimeclass/ours").await?["handler"], "runc");
    for path in ["default/persistentvolumeclaim/theirs", "null/persistentvolume/theirs"] {
        assert_eq!(ask(&edge, path).await?["ErrStatus"]["reason"], "Forbidden", "{path}");
    }
    Ok(())
}
