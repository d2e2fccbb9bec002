//! Resources of a running pod that change, on the runtime in memory.

use serde_json::{Value, json};
use testkit::fake_cri::State;

use crate::{Node, pod_with};

fn cpus() -> i64 {
    std::thread::available_parallelism().unwrap().get() as i64 * 1000
}

fn requests(milli: i64) -> Value {
    json!({"requests": {"cpu": format!("{milli}m"), "memory": "16Mi"}})
}

fn requesting(name: &str, milli: i64) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["containers"][0]["resources"] = requests(milli);
        pod["status"]["qosClass"] = json!("Burstable");
    })
}

impl Node {
    async fn resize(&self, pod: &str, resources: Value) {
        self.cloud.change(pod, |pod| pod["spec"]["containers"][0]["resources"] = resources).await;
    }

    /// The `cpu.shares` and the id of the running container.
    fn shares(&self, pod: &str) -> (i64, String) {
        let running = self.cri.containers().into_iter().find(|c| c.pod == pod && c.state == State::Running).unwrap();
        let resources = running.config.linux.unwrap().resources.unwrap();
        (resources.cpu_shares, running.id)
    }

    fn resize_word(&self, pod: &str) -> String {
        self.status(pod)["resize"].as_str().unwrap_or_default().to_owned()
    }

    fn restarts(&self, pod: &str) -> i64 {
        self.status(pod)["containerStatuses"][0]["restartCount"].as_i64().unwrap()
    }

    /// CPU that the status says the container has.
    fn told_cpu(&self, pod: &str) -> String {
        let status = self.status(pod);
        status["containerStatuses"][0]["resources"]["requests"]["cpu"].as_str().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_container_gets_other_limits_and_runs_on() {
    let node = Node::started().await;
    node.cloud.create(requesting("web", 250)).await;
    node.until("ready", || node.ready("web")).await;
    assert!(
        node.status("web")["containerStatuses"][0].get("resources").is_none(),
        "as a node without resizing tells it"
    );
    let (shares, id) = node.shares("web");
    assert_eq!(shares, 256);

    node.cri.fail_next("UpdateContainerResources", "the kernel is busy");
    node.resize("web", requests(500)).await;
    node.until("failure told", || node.cloud.event_texts("web").iter().any(|e| e.starts_with("ResizeError: "))).await;
    node.until("in progress", || node.resize_word("web") == "InProgress" && node.told_cpu("web") == "250m").await;
    node.until("resized", || node.told_cpu("web") == "500m" && node.resize_word("web").is_empty()).await;
    assert_eq!(node.shares("web"), (512, id.clone()), "the same container");
    assert_eq!((node.restarts("web"), node.ready("web")), (0, true));
    let asked = node.cri.count("UpdateContainerResources");

    node.cloud.push_again("web").await;
    node.resize("web", requests(250)).await;
    node.until("back", || node.told_cpu("web") == "250m").await;
    assert_eq!(node.shares("web"), (256, id));
    assert_eq!(node.cri.count("UpdateContainerResources"), asked + 1, "asked for changes only");
}

#[tokio::test]
async fn what_has_no_room_waits_for_it_also_when_the_agent_is_killed() {
    let mut node = Node::started().await;
    let half = cpus() / 2;
    node.cloud.create(requesting("other", half)).await;
    node.cloud.create(requesting("web", 100)).await;
    node.until("ready", || node.ready("web") && node.ready("other")).await;
    let (shares, id) = node.shares("web");

    node.resize("web", requests(cpus() + 1)).await;
    node.until("infeasible", || node.resize_word("web") == "Infeasible").await;
    let text = format!("Node didn't have enough capacity: cpu, requested: {}, capacity: {}", cpus() + 1, cpus());
    node.until("told", || node.cloud.event_texts("web").contains(&format!("ResizeInfeasible: {text}"))).await;

    node.resize("web", requests(half + 1)).await;
    node.until("deferred", || node.resize_word("web") == "Deferred" && node.told_cpu("web") == "100m").await;
    assert_eq!(node.shares("web"), (shares, id.clone()));
    node.kill().await;
    node.start();
    node.cloud.create(requesting("late", 10)).await;
    node.until("at work", || node.ready("late")).await;
    assert_eq!(node.shares("web"), (shares, id.clone()), "neither refused nor resized");
    assert_eq!(node.resize_word("web"), "Deferred");

    node.cloud.delete("other", 1).await;
    node.until("resized", || node.told_cpu("web") == format!("{}m", half + 1)).await;
    node.until("told", || node.resize_word("web").is_empty()).await;
    assert_eq!(node.shares("web"), ((half + 1) * 1024 / 1000, id));
    assert_eq!((node.restarts("web"), node.ready("web")), (0, true));
}

#[tokio::test]
async fn a_policy_of_restart_starts_the_container_again_and_once() {
    let mut node = Node::started().await;
    let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    let mut pod = requesting("web", 250);
    pod["spec"]["containers"][0]["resizePolicy"] = policy;
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    node.cloud.create(pod).await;
    node.until("ready", || node.ready("web")).await;
    node.resize("web", requests(500)).await;
    node.until("started again", || node.restarts("web") == 1 && node.ready("web")).await;
    let (shares, id) = node.shares("web");
    assert_eq!((shares, node.cri.count("UpdateContainerResources")), (512, 0));
    node.until("told", || node.told_cpu("web") == "500m" && node.resize_word("web").is_empty()).await;
    let events = node.cloud.event_texts("web");
    assert!(events.contains(&"Killing: Container main resize requires restart".to_owned()), "{events:?}");

    // An agent that was killed before it could tell finds it done.
    node.kill().await;
    let mut old = node.cloud.pod("web").unwrap();
    old["status"]["containerStatuses"][0]["resources"] = requests(250);
    node.cloud.store(old);
    node.start();
    node.until("told", || node.told_cpu("web") == "500m" && node.resize_word("web").is_empty()).await;
    assert_eq!(node.shares("web"), (512, id));
    assert_eq!(node.restarts("web"), 1);
}
