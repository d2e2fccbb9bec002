//! One pod on real containerd: the proof that what the fake runtime accepts is what a real one needs.

use std::time::Duration;

use edged::runtime::{ContainerStart, RuntimeEvent};
use podlife::observed::RuntimeState;
use serde_json::json;
use testkit::containerd::{BUSYBOX_IMAGE, Containerd, ContainerdOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stub::{LIMIT, StubMeta, pod, runtime};

async fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Repeats until the server has come up.
async fn get_when_up(address: &str) -> String {
    let trying = async {
        loop {
            match get(address).await {
                Ok(text) if !text.is_empty() => return text,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, trying).await.unwrap()
}

#[tokio::test]
async fn a_web_server_answers_over_its_pod_ip() {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(ContainerdOptions::for_test(dir.path(), 9)).await.unwrap();
    containerd.import_busybox().await.unwrap();
    let (stub, meta) = StubMeta::start();
    stub.store("default/configmap/site", json!({"data": {"index.html": "hello from the edge"}}));
    stub.store("default/secret/key", json!({"data": {"k": "c2VjcmV0"}}));
    let (runtime, settings) = runtime(dir.path(), &containerd.endpoint(), &meta);
    let pod = pod(json!({
        "terminationGracePeriodSeconds": 5,
        "securityContext": {},
        "containers": [{
            "name": "web", "image": BUSYBOX_IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c"],
            "args": ["echo \"$NAME $(IP)\"; cat /key/k; hostname; trap 'echo bye > /dev/termination-log; exit 7' TERM; httpd -f -p 80 -h /www & wait"],
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"capabilities": {"drop": ["NET_RAW"]}, "allowPrivilegeEscalation": false},
            "volumeMounts": [{"name": "site", "mountPath": "/www"}, {"name": "key", "mountPath": "/key"},
                {"name": "scratch", "mountPath": "/scratch", "subPath": "a/b"}],
        }],
        "volumes": [{"name": "site", "configMap": {"name": "site"}}, {"name": "key", "secret": {"secretName": "key"}},
            {"name": "scratch", "emptyDir": {}}],
    }));
    let identity = podlife::spec::identity(&pod).unwrap();
    let ready = edged::runtime::RuntimeReadiness { handlers: Some(Vec::new()), ..Default::default() };
    assert_eq!(runtime.readiness().await, ready);
    assert!(runtime.version().await.starts_with("containerd://1."), "{}", runtime.version().await);

    let (sender, mut news) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let watcher = tokio::task::JoinSet::from_iter([{
        let (runtime, stop) = (runtime.clone(), stop.clone());
        async move { runtime.events(sender, stop).await }
    }]);

    runtime.prepare_pod(&pod, &CancellationToken::new()).await.unwrap();
    let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
    let ips = runtime.observe(&identity).await.unwrap().ips().to_vec();
    let start = ContainerStart {
        pod: &pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        sandbox_id: &sandbox,
        sandbox_attempt: 0,
        restart_count: 0,
        target_id: None,
        pod_ips: &ips,
        cancel: &CancellationToken::new(),
    };
    let id = runtime.start_container(start).await.unwrap();
    let answer = get_when_up(&format!("{}:80", ips[0])).await;
    assert!(answer.ends_with("hello from the edge"), "{answer}");

    let log = settings.pod_logs_dir.join(format!("default_web_{}/web/0.log", identity.uid));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains(&format!("web {}", ips[0])) && log.contains("secretweb"), "{log}");
    let link = std::fs::read_dir(dir.path().join("log/containers")).unwrap().count();
    assert_eq!(link, 1);
    let (code, output) = runtime.exec(&id, vec!["ls".into(), "/scratch".into()], LIMIT).await.unwrap();
    assert_eq!((code, output.as_str()), (0, ""));

    // A log that is too large gets a successor, into which the container goes on writing.
    let logs = settings.pod_logs_dir.join(format!("default_web_{}/web", identity.uid));
    let rotating = tokio::task::JoinSet::from_iter([{
        let (runtime, stop) = (runtime.clone(), stop.clone());
        async move { runtime.rotate_logs(stop).await }
    }]);
    let rotated = async {
        while std::fs::read_dir(&logs).unwrap().count() < 2 || !logs.join("0.log").is_file() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, rotated).await.unwrap();

    while news.try_recv().is_ok() {}
    runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(5), news.recv()).await.expect("containerd's event in time");
    assert_eq!(next, Some(RuntimeEvent::Pod { uid: identity.uid.clone() }));
    let observed = runtime.observe(&identity).await.unwrap();
    let ended = observed.newest("web").unwrap();
    assert_eq!((ended.state, ended.exit_code, ended.message.trim()), (RuntimeState::Exited, 7, "bye"));
    assert_eq!(ended.termination_grace, Some(5));

    runtime.remove_container(&id).await.unwrap();
    let pod_cgroups = || {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        let hierarchies = hierarchies.chain(["/sys/fs/cgroup".into()]);
        hierarchies.filter(|path| path.join(format!("kubepods/pod{}", identity.uid)).is_dir()).count()
    };
    assert!(pod_cgroups() > 0, "a Guaranteed pod's cgroup is right below kubepods");
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.clean_up_pod(&identity).await.unwrap();
    assert_eq!(pod_cgroups(), 0);
    assert!(runtime.pods_on_disk().is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&identity.uid), "a mount of the pod is left");
    stop.cancel();
    watcher.join_all().await;
    rotating.join_all().await;
    containerd.stop().await.unwrap();
}

/// What a pod goes through when the machine loses power and comes back without network.
#[tokio::test]
async fn after_a_power_cut_the_pod_is_seen_as_it_is_and_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let options = ContainerdOptions::for_test(dir.path(), 8);
    let mut containerd = Containerd::start(options.clone()).await.unwrap();
    containerd.import_busybox().await.unwrap();
    let (_stub, meta) = StubMeta::start();
    let (runtime, _settings) = runtime(dir.path(), &containerd.endpoint(), &meta);
    let pod = pod(json!({"containers": [
        {"name": "web", "image": BUSYBOX_IMAGE, "command": ["sleep", "1000"]},
        {"name": "no", "image": "localhost:1/no/such:1"}]}));
    let identity = podlife::spec::identity(&pod).unwrap();
    let cancel = CancellationToken::new();
    let containers = &pod.spec.as_ref().unwrap().containers;
    let start = |index: usize, sandbox_id, sandbox_attempt, restart_count| ContainerStart {
        pod: &pod,
        container: &containers[index],
        sandbox_id,
        sandbox_attempt,
        restart_count,
        target_id: None,
        pod_ips: &[],
        cancel: &cancel,
    };
    runtime.prepare_pod(&pod, &cancel).await.unwrap();
    let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
    let id = runtime.start_container(start(0, &sandbox, 0, 0)).await.unwrap();
    let error = runtime.start_container(start(1, &sandbox, 0, 0)).await.unwrap_err();
    assert_eq!(error.reason, "ErrImagePull");
    assert!(error.message.contains("localhost:1/no/such:1"), "{}", error.message);

    // containerd alone goes away: nothing happens to the container.
    containerd.kill().await.unwrap();
    assert!(runtime.readiness().await.runtime_error.is_some());
    let mut containerd = Containerd::start(options.clone()).await.unwrap();
    let seen = runtime.observe(&identity).await.unwrap();
    assert_eq!((seen.containers.len(), seen.newest("web").unwrap().id == id, seen.sandboxes[0].ready), (1, true, true));
    assert_eq!(seen.newest("web").unwrap().state, RuntimeState::Running);

    containerd.power_off().await.unwrap();
    let containerd = Containerd::start(options).await.unwrap();
    let seen = runtime.observe(&identity).await.unwrap();
    assert_eq!(seen.newest("web").unwrap().state, RuntimeState::Exited);
    assert!(!seen.sandboxes[0].ready);
    runtime.stop_sandbox(&sandbox).await.unwrap();
    let again = runtime.run_sandbox(&pod, 1).await.unwrap();
    runtime.start_container(start(0, &again, 1, 1)).await.unwrap();
    let seen = runtime.observe(&identity).await.unwrap();
    let newest = seen.newest("web").unwrap();
    assert_eq!((newest.state, newest.restart_count), (RuntimeState::Running, 1));
    assert_eq!((seen.sandboxes[0].attempt, seen.sandboxes[0].ready, seen.ips().len()), (1, true, 1));
    containerd.stop().await.unwrap();
}
