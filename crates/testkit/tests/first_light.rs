//! The whole of it with real programs: embedded Kubernetes, cloudcore, containerd, edgecore, kubectl.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::collections::BTreeSet;

use testkit::site::{PODS, Site, container};

#[test]
fn a_deployment_created_with_kubectl_runs_on_the_edge_node() {
    let site = Site::start(1);
    let nodes = site.ask(&["get", "nodes", "-o", "wide"]);
    assert!(nodes.contains("edge-1") && nodes.contains("Ready") && nodes.contains("agent,edge"), "{nodes}");
    let csr = site.ask(&["get", "csr"]);
    assert!(csr.contains("Approved,Issued") && csr.contains("ferroedge.io/edge-client"), "{csr}");

    site.ask(&["create", "deployment", "web", "--image=docker.io/library/busybox:1", "--", "sleep", "3600"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    site.ask(&["scale", "deployment", "web", "--replicas=3"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = site.ask(&["get", "pods", "-o", "wide"]);
    assert_eq!(pods.matches("Running").count(), 3, "{pods}");
    assert_eq!(pods.matches("edge-1").count(), 3, "{pods}");

    site.ask(&["set", "env", "deployment/web", "COLOUR=green"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    site.ask(&["label", "deployment", "web", "tier=front"]);
    assert!(site.ask(&["get", "deployments", "-l", "tier=front"]).contains("web"));
    site.ask(&["cordon", "edge-1"]);
    assert!(site.ask(&["get", "nodes"]).contains("SchedulingDisabled"));
    site.ask(&["uncordon", "edge-1"]);
    let described = site.ask(&["describe", "deployment", "web"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let events = site.ask(&["get", "events"]);
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "no event {reason}:\n{events}");
    }
    assert!(site.ask(&["api-resources"]).contains("deployments"));
    site.ask(&["delete", "deployment", "web"]);
    site.wait("all pods to be gone", |list| list["items"].as_array().is_some_and(Vec::is_empty), PODS);
}

#[test]
fn a_node_goes_on_without_the_cloud() {
    let mut site = Site::start(2);
    let before = container(&site.create_pod("lonely", &["sleep", "3600"]));

    // cloudcore alone is killed and comes back: no pod is touched.
    let tasks = site.tasks();
    assert_eq!(tasks.len(), 2, "a sandbox and a container: {tasks:?}");
    site.kill_cloud();
    misses_the_cloud(&site, 0);
    assert_eq!(site.tasks(), tasks, "pods go on without the cloud");
    site.restart_cloud();
    // A change after the return shows that the link works both ways.
    site.create_pod("second", &["sleep", "3600"]);
    assert_eq!(container(&site.wait_ready("lonely")), before, "the container was restarted or replaced");
    let tasks = site.tasks();
    assert_eq!(tasks.len(), 4, "{tasks:?}");

    // edgecore is killed while the cloud is away, and starts without it: it adopts what runs.
    site.kill_cloud();
    site.kill_edge();
    let ended = site.containers_of("second").concat();
    site.kill_container(&ended);
    let log = site.edge_log().len();
    site.deployment().start_edgecore(1).expect("started");
    // It has taken control: what ended while nobody looked runs again, and nothing else was touched.
    site.until("edgecore to restart what ended", || site.tasks().len() == 4);
    let kept = |now: &BTreeSet<String>| now.intersection(&tasks).count();
    assert_eq!(kept(&site.tasks()), 3, "another container was restarted");
    misses_the_cloud(&site, log);
    assert_eq!((site.tasks().len(), kept(&site.tasks())), (4, 3), "duplicates or restarts");
    site.restart_cloud();
    site.create_pod("third", &["sleep", "3600"]);
    let after = container(&site.wait_ready("lonely"));
    assert_eq!(after, before, "the container was restarted or replaced");
    assert_eq!(after.1, 0);
    assert_eq!(container(&site.wait_ready("second")).1, 1, "restarted once");
    assert_eq!(site.tasks().len(), 6);
}

#[test]
fn a_node_without_link_comes_back_after_a_power_cut() {
    let mut site = Site::start(3);
    let names = ["phoenix", "roc"];
    for name in names {
        site.create_pod(name, &["sleep", "3600"]);
    }
    site.kill_cloud();
    site.kill_edge();
    let deployment = site.deployment.as_mut().expect("running");
    site.runtime.block_on(deployment.power_cut(1)).expect("power cut");
    // The machine boots: containerd and edgecore start, the cloud does not answer.
    site.runtime.block_on(deployment.start_edge(1)).expect("boot");
    site.until("the pods to come back", || site.tasks().len() == 4);
    for name in names {
        assert_eq!(site.containers_of(name).len(), 1, "{name} runs once");
    }
    // With the cloud again they are the same pods, restarted once, and nothing is made a second time.
    site.restart_cloud();
    site.create_pod("later", &["sleep", "3600"]);
    for name in names {
        let told = site.wait("the restart to be told", |pod| container(pod).1 == 1, &format!("{PODS}/{name}"));
        assert_eq!(told["status"]["phase"], "Running");
    }
    assert_eq!(site.tasks().len(), 6);
}

/// Waits until edgecore says, after this place in its log, that the cloud does not answer.
fn misses_the_cloud(site: &Site, from: usize) {
    site.until("edgecore to miss the cloud", || {
        site.edge_log().get(from..).is_some_and(|log| log.contains("no connection to the cloud"))
    });
}
