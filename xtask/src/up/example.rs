//! The example: a Deployment of two busybox web servers, and what the user sees of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use testkit::deployment::{Cluster, Layout};

use super::step;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dhello";
/// Where the web server listens inside its pod.
const PORT: u16 = 8080;

/// Creates the Deployment unless an earlier `up` did, and waits until both pods are Ready.
pub async fn deploy(cluster: &Cluster) -> Result<()> {
    let (status, answer) = cluster.post(DEPLOYMENTS, &manifest()).await?;
    match status {
        201 => step("created deployment.apps/hello, two busybox web servers"),
        409 => step("found deployment.apps/hello of an earlier run"),
        _ => bail!("creating deployment.apps/hello: {status} {}", answer["message"]),
    }
    let began = std::time::Instant::now();
    cluster
        .wait("two Ready pods of deployment.apps/hello", Duration::from_secs(60), || async {
            let deployment = cluster.get(&format!("{DEPLOYMENTS}/hello")).await?;
            let wanted = &deployment["spec"]["replicas"];
            Ok(wanted == &deployment["status"]["readyReplicas"] && wanted == &deployment["status"]["updatedReplicas"])
        })
        .await?;
    step(&format!("its pods are Ready ({:.1} s)", began.elapsed().as_secs_f32()));
    Ok(())
}

/// Prints the pods and the answer of one of them over HTTP.
pub async fn show(cluster: &Cluster) -> Result<()> {
    let pods = cluster.get(PODS).await?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    println!("\n{:<28} {:<9} {:<8} {:<15}", "POD", "STATUS", "NODE", "IP");
    for pod in &pods {
        println!(
            "{:<28} {:<9} {:<8} {:<15}",
            text(&pod["metadata"]["name"]),
            text(&pod["status"]["phase"]),
            text(&pod["spec"]["nodeName"]),
            text(&pod["status"]["podIP"]),
        );
    }
    let ip = pods
        .iter()
        .map(|pod| text(&pod["status"]["podIP"]))
        .find(|ip| !ip.is_empty())
        .context("no pod of deployment.apps/hello has an IP")?;
    let answer = http_get(ip).with_context(|| format!("asking http://{ip}:{PORT}/"))?;
    println!("\n$ curl http://{ip}:{PORT}/\n{}", answer.trim());
    Ok(())
}

/// Prints where things are and what to try next.
pub fn show_files(layout: &Layout, cluster: &Cluster) {
    println!("\nkubeconfig  {}", cluster.kubeconfig().display());
    println!("logs        {}", layout.dir().join("logs").display());
    println!("\nTry next:");
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("  kubectl get nodes,pods -o wide");
    println!("  kubectl scale deployment hello --replicas=4");
    println!("  kubectl rollout status deployment hello");
    println!("  kubectl get events");
}

fn manifest() -> Value {
    let serve = format!(
        "mkdir -p /www && echo \"hello from $POD_NAME on $NODE_NAME\" > /www/index.html && exec httpd -f -p {PORT} -h /www"
    );
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "hello", "labels": {"app": "hello"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "hello"}},
            "template": {
                "metadata": {"labels": {"app": "hello"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web",
                        "image": "docker.io/library/busybox:1",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", serve],
                        "ports": [{"containerPort": PORT}],
                        "env": [field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName")],
                    }],
                },
            },
        },
    })
}

fn http_get(ip: &str) -> Result<String> {
    let address = format!("{ip}:{PORT}").parse()?;
    let mut last = None;
    // The container runs, but its web server may need a moment until it listens.
    for _ in 0..50 {
        match ask(&address) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
        #[allow(clippy::disallowed_methods, reason = "bounded polling in a command-line tool")]
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(last.context("never asked")?)
}

fn ask(address: &std::net::SocketAddr) -> Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
