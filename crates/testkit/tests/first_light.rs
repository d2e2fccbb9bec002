//! The whole of it with real programs: embedded Kubernetes, cloudcore, containerd, edgecore, kubectl.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::process::Command;

use testkit::deployment::edgecore_name;
use testkit::site::{LONG, PODS, Site, container, logs};

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

    // cloudcore is killed and comes back: no pod is touched.
    site.deployment().children.kill("cloudcore").expect("killed");
    site.deployment().children.kill(&edgecore_name(1)).expect("killed");
    // edgecore starts without the cloud: it must adopt what runs.
    site.deployment().start_edgecore(1).expect("started");
    let log = site.deployment().layout.log(&edgecore_name(1));
    let deadline = std::time::Instant::now() + LONG;
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("no connection to the cloud") {
        assert!(std::time::Instant::now() < deadline, "edgecore did not start offline");
        std::thread::yield_now();
    }
    let deployment = site.deployment.as_mut().expect("running");
    site.runtime.block_on(deployment.start_cloud()).expect("cloud again");
    let deployment = site.deployment.as_ref().expect("running");
    site.runtime.block_on(deployment.wait_ready(&site.cluster, 1)).expect("ready again");
    // A change after the return shows that the link works both ways.
    site.create_pod("second", &["sleep", "3600"]);
    let after = container(&site.wait_ready("lonely"));
    assert_eq!(after, before, "the container was restarted or replaced");
    assert_eq!(after.1, 0);
}

#[test]
fn a_node_without_link_comes_back_after_a_power_cut() {
    let mut site = Site::start(3);
    site.create_pod("phoenix", &["sleep", "3600"]);
    site.deployment().children.kill("cloudcore").expect("killed");
    site.deployment().children.kill(&edgecore_name(1)).expect("killed");
    let deployment = site.deployment.as_mut().expect("running");
    site.runtime.block_on(deployment.power_cut(1)).expect("power cut");
    // The machine boots: containerd and edgecore start, the cloud does not answer.
    site.runtime.block_on(deployment.start_edge(1)).expect("boot");
    let running = || -> bool {
        let ctr = Command::new("ctr")
            .args(["--address", &deployment.containerd_socket(1), "--namespace", "k8s.io", "tasks", "list"])
            .output()
            .expect("ctr");
        // The pod's sandbox and its container.
        String::from_utf8_lossy(&ctr.stdout).matches("RUNNING").count() >= 2
    };
    let deadline = std::time::Instant::now() + LONG;
    while !running() {
        assert!(std::time::Instant::now() < deadline, "the pod did not come back:\n{}", logs(deployment));
        std::thread::yield_now();
    }
}
