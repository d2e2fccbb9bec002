//! The Node object and the lease, seen from MetaManager.

use edged::events::Recorder;
use edged::node::{NodeAgent, NodeOnline};
use serde_json::{Value, json};
use testkit::fake_cri::FakeCri;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::stub::{Answer, StubMeta, runtime};

/// Status of the condition Ready in a node or patch.
fn ready(object: &Value) -> Option<(&str, &str)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    Some((ready["status"].as_str()?, ready["reason"].as_str()?))
}

struct Running {
    online: NodeOnline,
    stub: StubMeta,
    fake: FakeCri,
    _dir: tempfile::TempDir,
    _agent: JoinSet<()>,
}

async fn start(prepare: impl FnOnce(&StubMeta)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeCri::start(dir.path()).await.unwrap();
    let (stub, meta) = StubMeta::start();
    prepare(&stub);
    let (runtime, settings) = runtime(dir.path(), &fake.endpoint(), &meta);
    let mut settings = (*settings).clone();
    settings.node_status_update_frequency = std::time::Duration::from_millis(50);
    let (_, pressure) = tokio::sync::watch::channel(Default::default());
    let agent = NodeAgent::new(settings.into(), meta, runtime, Recorder::silent("n1"), pressure);
    let online = agent.online();
    let agent = JoinSet::from_iter([agent.run(CancellationToken::new())]);
    Running { online, stub, fake, _dir: dir, _agent: agent }
}

#[tokio::test]
async fn a_new_node_is_ready_with_its_first_message_and_has_a_lease() {
    let running = start(|stub| {
        let made = json!({"Object": {"metadata": {"name": "n1", "uid": "node-uid"}}, "Err": null});
        stub.set("insert", "null/node/n1", Answer::Content(made));
    })
    .await;
    let node = &running.stub.wait_for("insert", "null/node/n1", 1).await[0];
    assert_eq!(ready(node), Some(("True", "EdgeReady")));
    assert_eq!(node["metadata"]["labels"]["node-role.kubernetes.io/agent"], "");
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1.0.0");
    assert_eq!(node["status"].get("runtimeHandlers"), None, "the runtime tells of none");
    assert_eq!(node["status"]["addresses"][0], json!({"type": "InternalIP", "address": "192.0.2.2"}));
    let lease = &running.stub.wait_for("insert", "kube-node-lease/lease/n1", 1).await[0];
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "node-uid");
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert_eq!(lease["spec"]["renewTime"].as_str().unwrap().len(), "2026-11-23T02:08:26.410258Z".len());
}

#[tokio::test]
async fn an_existing_node_gets_its_whole_status_patched() {
    let running = start(|stub| {
        let exists =
            json!({"ErrStatus": {"reason": "AlreadyExists", "code": 409, "message": "nodes \"n1\" already exists"}});
        stub.set("insert", "null/node/n1", Answer::Content(json!({"Object": {}, "Err": exists})));
        let node = json!({"metadata": {"name": "n1", "uid": "u", "labels": {"mine": "kept"}}});
        stub.set("patch", "null/nodepatch/n1", Answer::Content(json!({"Object": node, "Err": null})));
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"});
        stub.store("null/node/n1", json!({"metadata": {"name": "n1"}, "status": {"conditions": [ready]}}));
        let lease = json!({"metadata": {"name": "n1", "namespace": "kube-node-lease", "resourceVersion": "7"}});
        stub.set("query", "kube-node-lease/lease/n1", Answer::Content(json!({"Object": lease, "Err": null})));
    })
    .await;
    let first = &running.stub.wait_for("patch", "null/nodepatch/n1", 1).await[0];
    assert_eq!(ready(first), Some(("True", "EdgeReady")));
    assert_eq!(first["status"]["capacity"]["pods"], "110");
    assert_eq!(first["status"]["conditions"][3]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    let labelled = &running.stub.wait_for("update", "null/node/n1", 1).await[0];
    assert_eq!(labelled["metadata"]["labels"]["mine"], "kept");
    assert_eq!(labelled["metadata"]["labels"]["node-role.kubernetes.io/edge"], "");
    let lease = &running.stub.wait_for("update", "kube-node-lease/lease/n1", 1).await[0];
    assert_eq!(lease["metadata"]["resourceVersion"], "7");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
}

#[tokio::test]
async fn a_dead_runtime_makes_the_node_unready_and_back() {
    let mut running = start(|stub| {
        let made = json!({"Object": {"metadata": {"name": "n1", "uid": "u"}}, "Err": null});
        stub.set("insert", "null/node/n1", Answer::Content(made.clone()));
        stub.set("patch", "null/nodepatch/n1", Answer::Content(made));
    })
    .await;
    running.stub.wait_for("insert", "null/node/n1", 1).await;
    running.fake.stop_serving().await;
    let down = &running.stub.wait_for("patch", "null/nodepatch/n1", 1).await[0];
    assert_eq!(ready(down), Some(("False", "KubeletNotReady")));
    assert!(down.to_string().contains("is not reachable"), "{down}");
    running.fake.serve().await.unwrap();
    let up = &running.stub.wait_for("patch", "null/nodepatch/n1", 2).await[1];
    assert_eq!(ready(up), Some(("True", "EdgeReady")));
}

#[tokio::test]
async fn registration_waits_for_the_cloud_and_repeats_when_the_node_is_gone() {
    let offline = Answer::Error("the cloud is out of reach".into());
    let running = start(|stub| stub.set("insert", "null/node/n1", offline)).await;
    running.stub.wait_for("insert", "null/node/n1", 3).await;
    assert!(running.stub.requests("insert", "lease").is_empty(), "no lease without a node");
    let made = json!({"Object": {"metadata": {"name": "n1", "uid": "u"}}, "Err": null});
    running.stub.set("insert", "null/node/n1", Answer::Content(made));
    running.stub.wait_for("insert", "kube-node-lease/lease/n1", 1).await;
    let before = running.stub.requests("insert", "null/node/n1").len();
    let gone = json!({"ErrStatus": {"reason": "NotFound", "code": 404, "message": "nodes \"n1\" not found"}});
    running.stub.set("patch", "null/nodepatch/n1", Answer::Content(json!({"Object": {}, "Err": gone})));
    running.fake.set_readiness(Some("down"), None);
    running.stub.wait_for("insert", "null/node/n1", before + 1).await;
}

#[tokio::test]
async fn a_node_that_the_cloud_calls_unknown_reports_again() {
    let made = json!({"Object": {"metadata": {"name": "n1", "uid": "u"}}, "Err": null});
    let running = start(|stub| {
        stub.set("insert", "null/node/n1", Answer::Content(made.clone()));
        stub.set("patch", "null/nodepatch/n1", Answer::Content(made.clone()));
    })
    .await;
    running.stub.wait_for("insert", "null/node/n1", 1).await;
    let unknown = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status."});
    let node =
        json!({"metadata": {"name": "n1", "uid": "u", "resourceVersion": "9"}, "status": {"conditions": [unknown]}});
    running.stub.store("null/node/n1", node);
    let again = &running.stub.wait_for("patch", "null/nodepatch/n1", 1).await[0];
    assert_eq!(ready(again), Some(("True", "EdgeReady")));
}

#[tokio::test]
async fn a_connection_that_is_back_brings_the_whole_status_and_the_lease_at_once() {
    let made = json!({"Object": {"metadata": {"name": "n1", "uid": "u"}}, "Err": null});
    let running = start(|stub| {
        stub.set("insert", "null/node/n1", Answer::Content(made.clone()));
        stub.set("patch", "null/nodepatch/n1", Answer::Content(made.clone()));
    })
    .await;
    running.stub.wait_for("insert", "kube-node-lease/lease/n1", 1).await;
    running.online.tell();
    let whole = &running.stub.wait_for("patch", "null/nodepatch/n1", 1).await[0];
    assert_eq!((ready(whole), &whole["status"]["capacity"]["pods"]), (Some(("True", "EdgeReady")), &json!("110")));
    running.stub.wait_for("update", "kube-node-lease/lease/n1", 1).await;
}

/// Every field that a Go edge registers its node with is there, with the same words where they are fixed.
#[tokio::test]
async fn the_node_has_the_shape_of_a_recorded_one() {
    let recording = include_str!("../../../testkit/golden/wire-fresh-node.jsonl");
    let frames = recording
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["frame"].as_str().map(str::to_owned));
    let messages = frames.filter_map(|frame| wire::Message::parse(frame.as_bytes()).ok());
    let recorded =
        messages.into_iter().find(|m| m.route.operation == "insert" && m.route.resource.starts_with("null/node/"));
    let recorded: Value = recorded.unwrap().content.parse().unwrap();
    let running = start(|_| {}).await;
    let ours = &running.stub.wait_for("insert", "null/node/n1", 1).await[0];
    assert_eq!(ours["metadata"]["annotations"], recorded["metadata"]["annotations"]);
    for part in ["/metadata/labels", "/status", "/status/nodeInfo", "/status/conditions/0"] {
        let keys = |node: &Value| node.pointer(part).unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        for key in keys(&recorded) {
            assert!(keys(ours).contains(&key), "{part} has no {key}");
        }
    }
    for index in 0..4 {
        let kind = |node: &Value| node["status"]["conditions"][index]["type"].clone();
        assert_eq!(kind(ours), kind(&recorded));
    }
    for index in 0..3 {
        let words = |node: &Value| {
            let condition = &node["status"]["conditions"][index];
            [condition["status"].clone(), condition["reason"].clone(), condition["message"].clone()]
        };
        assert_eq!(words(ours), words(&recorded));
    }
}

#[tokio::test]
async fn handlers_of_the_runtime_are_told_with_what_they_can_do() {
    let running = start(|stub| {
        let made = json!({"Object": {"metadata": {"name": "n1", "uid": "u"}}, "Err": null});
        stub.set("insert", "null/node/n1", Answer::Content(made.clone()));
        stub.set("patch", "null/nodepatch/n1", Answer::Content(made));
    })
    .await;
    running.stub.wait_for("insert", "null/node/n1", 1).await;
    running.fake.set_handlers(&["", "kata"]);
    let patch = &running.stub.wait_for("patch", "null/nodepatch/n1", 1).await[0];
    let features = json!({"recursiveReadOnlyMounts": true, "userNamespaces": true});
    let handlers = json!([{"name": "", "features": features}, {"name": "kata", "features": features}]);
    assert_eq!(patch["status"]["runtimeHandlers"], handlers);
}
