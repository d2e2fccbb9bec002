//! What a user sees of the example, and what to try next.

use anyhow::Result;
use testkit::deployment::example::{self, PORT};
use testkit::deployment::{Cluster, Deployment, Layout};

use crate::terminal::{say, step};

/// Creates the example unless an earlier `up` did, waits until it answers, and shows it.
pub async fn deploy(deployment: &Deployment, cluster: &Cluster, nodes: u8) -> Result<()> {
    step(match example::create(cluster).await? {
        true => "created deployment.apps/hello, two busybox web servers",
        false => "found deployment.apps/hello of an earlier run",
    });
    let began = std::time::Instant::now();
    let (pods, answer) = example::wait(deployment, cluster, nodes).await?;
    let Some(first) = pods.first() else {
        step("it is scaled to no pods");
        return Ok(());
    };
    step(format_args!("its pods run and answer ({:.1} s)", began.elapsed().as_secs_f32()));
    say(format_args!("\n{:<28} {:<9} {:<8} {:<15}", "POD", "STATUS", "NODE", "IP"));
    for pod in &pods {
        say(format_args!("{:<28} {:<9} {:<8} {:<15}", pod.name, pod.phase, pod.node, pod.ip));
    }
    say(format_args!("\n$ curl http://{}:{PORT}/\n{answer}", first.ip));
    Ok(())
}

/// Prints where things are and what to try next.
pub fn show_files(layout: &Layout, cluster: &Cluster, has_nodes: bool) {
    say(format_args!("\nkubeconfig  {}", cluster.kubeconfig().display()));
    say(format_args!("logs        {}", layout.dir().join("logs").display()));
    say("\nTry next:");
    say(format_args!("  export KUBECONFIG={}", cluster.kubeconfig().display()));
    if !has_nodes {
        say("  kubectl get namespaces");
        say("  kubectl create deployment web --image=docker.io/library/busybox:1 -- sleep 3600");
        say(
            "  kubectl get pods      # Pending, until a node joins: `cargo xtask down`, then `up` without --cloud-only",
        );
        return;
    }
    say("  kubectl get nodes,pods -o wide");
    say("  kubectl scale deployment hello --replicas=4");
    say("  kubectl rollout status deployment hello");
    say("  kubectl logs -f deployment/hello");
    say("  kubectl exec -it deployment/hello -- sh");
    say("  kubectl top pod");
    say("  kubectl get events");
    say("  kubectl get devices,devicestatuses");
    say(
        "  kubectl patch device thermometer --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/properties/1/desired/value\",\"value\":\"25\"}]'",
    );
    say("  kubectl get devicestatus thermometer -o yaml      # it gets warmer");
}
