//! `keadm reset edge`.

use std::collections::BTreeMap;
use std::process::Stdio;

use edged::cri::{CriClient, proto};

use crate::cloud::{Cloud, FREE};
use crate::machine::Machine;

async fn joined() -> Machine {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    machine.put("/var/lib/other", "somebody's");
    machine.put("/etc/hosts", "somebody's");
    machine.with_systemd();
    let run = machine.join(&[cloud.flags(), vec![format!("--token={}", cloud.token())]].concat()).await;
    assert_eq!(run.code, 0, "{run:?}");
    machine
}

async fn run_pod(machine: &Machine, uid: &str) {
    let cri = CriClient::new(&machine.runtime.endpoint(), "");
    let labels =
        [("io.kubernetes.pod.uid", uid), ("io.kubernetes.pod.name", uid), ("io.kubernetes.pod.namespace", "default")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let metadata =
        proto::PodSandboxMetadata { name: uid.into(), uid: uid.into(), namespace: "default".into(), attempt: 0 };
    let config = proto::PodSandboxConfig { metadata: Some(metadata), labels, ..Default::default() };
    cri.run_sandbox(config, "").await.expect("sandbox");
}

#[tokio::test]
async fn what_join_made_is_removed_and_nothing_else() {
    let machine = joined().await;
    for uid in ["own", "foreign"] {
        run_pod(&machine, uid).await;
    }
    machine.put("/var/lib/kubelet/pods/own/volumes/x", "data");
    let run = machine.reset(&["--force"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("kubectl delete node edge-1"), "{}", run.stdout);
    for gone in ["/etc/kubeedge", "/var/lib/kubeedge", "/var/lib/kubelet", "/etc/systemd/system/edgecore.service"] {
        assert!(!machine.at(gone).exists(), "{gone}");
    }
    for kept in ["/var/lib/other", "/etc/hosts", "/usr/local/bin/edgecore"] {
        assert!(machine.at(kept).exists(), "{kept}");
    }
    assert!(machine.read("/systemctl.log").ends_with("disable --now edgecore.service\ndaemon-reload\n"));
    let left = CriClient::new(&machine.runtime.endpoint(), "").list_sandboxes(BTreeMap::new()).await.expect("list");
    let uids: Vec<&str> = left.iter().map(|sandbox| sandbox.labels["io.kubernetes.pod.uid"].as_str()).collect();
    assert_eq!(uids, ["foreign"], "only pods of this node are removed");

    let run = machine.reset(&["--force"]).await;
    assert!(run.code == 0 && run.stdout.contains("nothing to reset"), "{run:?}");
}

#[tokio::test]
async fn without_a_yes_nothing_happens() {
    let machine = joined().await;
    let run = machine.reset(&[]).await;
    assert!(
        run.code == 3 && run.stdout.contains("/etc/kubeedge") && run.stderr.contains("nothing was changed"),
        "{run:?}"
    );
    let run = machine.reset(&["--force", "--pre-run=/bin/false"]).await;
    assert_eq!(run.code, 3, "{run:?}");
    assert!(machine.at("/etc/kubeedge/config/edgecore.yaml").exists());
    assert!(!machine.read("/systemctl.log").contains("disable"));
}

#[tokio::test]
async fn pods_that_cannot_be_removed_keep_the_node() {
    let machine = joined().await;
    run_pod(&machine, "own").await;
    machine.put("/var/lib/kubelet/pods/own/volumes/x", "data");
    machine.runtime.fail_next("StopPodSandbox", "shim is stuck");
    let run = machine.reset(&["--remote-runtime-endpoint", &machine.runtime.endpoint(), "--force"]).await;
    assert!(run.code == 0 && run.stderr.contains("pods are left"), "{run:?}");
}

#[tokio::test]
async fn a_running_edgecore_without_a_service_is_stopped() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    let flags = [cloud.flags(), vec![format!("--token={}", cloud.token())]].concat();
    assert_eq!(machine.join(&flags).await.code, 0);
    let config = machine.at("/etc/kubeedge/config/edgecore.yaml");
    // A shell under the name of edgecore: its command line stays as it was given.
    let program = machine.root().with_file_name("edgecore");
    std::fs::copy("/bin/sh", &program).expect("a program");
    let mut edgecore = std::process::Command::new(&program)
        .args(["-c", "read line", "--config"])
        .arg(&config)
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    let run = machine.join(&[flags, vec!["--force".into()]].concat()).await;
    assert!(run.code == 3 && run.stderr.contains("edgecore runs already"), "{run:?}");
    let run = machine.reset(&["--force"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!edgecore.wait().expect("ended").success());
    assert!(!config.exists());
}

#[tokio::test]
async fn a_folder_of_somebody_else_is_left_alone() {
    let machine = Machine::new().await;
    machine.put("/srv/photos/a.jpg", "x");
    let folder = format!("--config-dir={}", machine.at("/srv/photos").display());
    let run = machine.keadm(&["reset", "edge", "--force", &folder]).await;
    assert!(run.code == 3 && run.stderr.contains("was not made by `keadm join"), "{run:?}");
    assert!(machine.at("/srv/photos/a.jpg").exists());
}
