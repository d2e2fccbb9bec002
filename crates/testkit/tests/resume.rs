//! A deployment that is stopped and started again, as by `cargo xtask up` twice.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::containerd::Containerd;
use testkit::deployment::example;
use testkit::site::{PODS, Site, container};

/// Waits for the example; every pod must answer under its own address with its own name. The ids of its containers.
fn answers(site: &Site) -> BTreeSet<String> {
    let deployment = site.deployment.as_ref().expect("running");
    let waited = site.runtime.block_on(example::wait(deployment, &site.cluster, 1));
    let (pods, answer) = waited.unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(pods.len(), 2);
    assert_eq!(answer, format!("hello from {} on edge-1", pods[0].name));
    let known = site.runtime.block_on(site.cluster.get(PODS)).expect("pods");
    let ids = known["items"].as_array().into_iter().flatten().map(|pod| container(pod).0).collect();
    for pod in &pods {
        let hello = format!("hello from {} on edge-1", pod.name);
        // Its container runs; its web server may need a moment until it listens.
        let mut last = Ok(String::new());
        site.until("each pod to answer", || {
            last = site.runtime.block_on(example::ask(&pod.ip));
            last.is_ok()
        });
        assert_eq!(last.expect("an answer"), hello, "{} is another pod's address", pod.ip);
    }
    ids
}

#[test]
fn a_second_up_waits_for_containers_of_its_own() {
    let mut site = Site::start(31);
    assert!(site.runtime.block_on(example::create(&site.cluster)).expect("created"));
    let mut before = answers(&site);
    assert_eq!(before.len(), 2);
    for _ in 0..3 {
        let deployment = site.deployment.as_mut().expect("running");
        site.runtime.block_on(deployment.stop()).expect("stopped");
        site.restart_cloud();
        site.start_edge();
        assert!(!site.runtime.block_on(example::create(&site.cluster)).expect("found"));
        let after = answers(&site);
        assert!(after.is_disjoint(&before), "{after:?} ran before the stop");
        before = after;
    }
    // Scaled to none, there is nothing to wait for.
    site.ask(&["scale", "deployment", "hello", "--replicas=0"]);
    site.wait("its pods to go", |list: &Value| list["items"].as_array().is_some_and(Vec::is_empty), PODS);
    let deployment = site.deployment.as_ref().expect("running");
    let (pods, answer) = site.runtime.block_on(example::wait(deployment, &site.cluster, 1)).expect("at once");
    assert!(pods.is_empty() && answer.is_empty());
}

#[test]
fn down_stops_what_was_started_by_hand() {
    let mut site = Site::start(32);
    site.create_pod("left", &["sleep", "3600"]);
    let edge = site.edge_dir();
    let deployment = site.deployment();
    for program in ["edge-1-edgecore", "edge-1-containerd", "cloudcore"] {
        deployment.children.kill(program).expect("killed");
    }
    let mut by_hand = [
        Command::new("containerd").arg("--config").arg(edge.join("containerd/config.toml")),
        site.program("edgecore").arg("--config=config/edgecore.yaml").current_dir(&edge),
    ]
    .map(|command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started"));
    site.until("containerd to answer again", || site.tasks().len() == 2);

    let deployment = site.deployment.as_mut().expect("running");
    let stopped = site.runtime.block_on(deployment.stop());
    let mounts = Containerd::mounts_below(&edge).expect("a list");
    let sockets = deployment.layout.sockets();
    if stopped.is_err() {
        for child in &mut by_hand {
            // One may have been stopped, and its status collected.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    stopped.expect("stopped");
    assert!(mounts.is_empty(), "{mounts:?}");
    assert!(!sockets.exists());
    assert!(
        !std::path::Path::new("/sys/class/net").join(format!("fe{}n1", deployment.layout.short_id())).exists(),
        "its bridge is left"
    );
}
