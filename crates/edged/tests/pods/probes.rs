//! Probes decide about Ready and restarts, and a restart of edged keeps what they said.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::{Node, pod_with};

fn probed(name: &str, kind: &str, probe: Value) -> Value {
    pod_with(name, |pod| pod["spec"]["containers"][0][kind] = probe)
}

#[tokio::test]
async fn readiness_follows_the_exec_probe() {
    let mut node = Node::started().await;
    node.cri.set_exec_result("main", 1, "not yet");
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    node.cloud.create(probed("web", "readinessProbe", probe)).await;
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "Unhealthy")).await;
    node.until("running", || node.phase("web") == "Running").await;
    assert!(!node.ready("web"));
    node.cri.set_exec_result("main", 0, "");
    node.until("ready", || node.ready("web")).await;
    let told = node.cloud.patches("web").len();
    node.kill().await;
    node.start();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    assert_eq!(node.cloud.patches("web").len(), told, "a restart of edged does not take the pod out of service");
    node.cri.set_exec_result("main", 1, "broken");
    node.until("not ready", || !node.ready("web")).await;
    assert_eq!(node.status("web")["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test]
async fn a_failed_liveness_probe_restarts_the_container() {
    let node = Node::started().await;
    node.cri.set_exec_result("main", 1, "dead");
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 2});
    node.cloud.create(probed("web", "livenessProbe", probe)).await;
    node.until("restarted", || node.status("web")["containerStatuses"][0]["restartCount"] == 1).await;
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "Killing")).await;
}

#[tokio::test]
async fn the_startup_probe_goes_first() {
    let node = Node::started().await;
    node.cri.set_exec_result("main", 1, "starting");
    let startup = json!({"exec": {"command": ["up"]}, "periodSeconds": 1, "failureThreshold": 30});
    let mut pod = probed("web", "startupProbe", startup);
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
    node.cloud.create(pod).await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("ExecSync") >= 3).await.unwrap();
    node.until("running", || node.phase("web") == "Running").await;
    let container = node.status("web")["containerStatuses"][0].clone();
    assert_eq!(
        (&container["started"], &container["restartCount"]),
        (&json!(false), &json!(0)),
        "no liveness probe yet"
    );
    node.cri.set_exec_result("main", 0, "");
    node.until("started and ready", || node.ready("web")).await;
}

#[tokio::test]
async fn http_and_tcp_probes_reach_the_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (status, wanted) = tokio::sync::watch::channel("500 Internal Server Error");
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let good = String::from_utf8_lossy(&request[..read]).contains("User-Agent: kube-probe/1.32");
            let line = if good { *wanted.borrow() } else { "400 Bad Request" };
            let _ = stream.write_all(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    let node = Node::started().await;
    let http = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": "/healthz"}, "periodSeconds": 1});
    node.cloud.create(probed("web", "readinessProbe", http)).await;
    let tcp = json!({"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1});
    node.cloud.create(probed("tcp", "readinessProbe", tcp)).await;
    node.until("tcp ready", || node.ready("tcp")).await;
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "Unhealthy")).await;
    assert!(!node.ready("web"));
    status.send_replace("204 No Content");
    node.until("http ready", || node.ready("web")).await;
}
