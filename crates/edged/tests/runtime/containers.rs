//! What the runtime is asked for, seen from the runtime.

use std::time::Duration;

use edged::runtime::{ContainerStart, Runtime, RuntimeError, RuntimeEvent};
use k8s_openapi::api::core::v1::Pod;
use podlife::observed::{PodIdentity, RuntimeState};
use serde_json::json;
use testkit::fake_cri::FakeCri;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stub::{Answer, LIMIT, StubMeta, pod, runtime};

const IMAGE: &str = "docker.io/library/busybox:1";

fn pod_with_one_container() -> Pod {
    pod(json!({"containers": [{"name": "c", "image": IMAGE}]}))
}

/// Starts container number `index` of a pod in a sandbox.
async fn start(runtime: &Runtime, pod: &Pod, index: usize, sandbox_id: &str) -> Result<String, (String, String)> {
    let start = ContainerStart {
        pod,
        container: &pod.spec.as_ref().unwrap().containers[index],
        sandbox_id,
        sandbox_attempt: 0,
        restart_count: 0,
        target_id: None,
        pod_ips: &["10.99.0.3".to_owned()],
        cancel: &CancellationToken::new(),
    };
    runtime.start_container(start).await.map_err(|error| (error.reason.to_owned(), error.message))
}

#[tokio::test]
async fn a_pod_starts_is_observed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeCri::start(dir.path()).await.unwrap();
    fake.add_image(IMAGE);
    let (stub, meta) = StubMeta::start();
    stub.store("default/configmap/cm", json!({"data": {"K": "from map"}}));
    let (runtime, settings) = runtime(dir.path(), &fake.endpoint(), &meta);
    let pod = pod(json!({"hostname": "box", "containers": [{"name": "c", "image": IMAGE, "args": ["$(K)"],
        "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "K"}}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "conf", "mountPath": "/conf"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "cm"}}]}));
    let identity = podlife::spec::identity(&pod).unwrap();

    runtime.prepare_pod(&pod, &CancellationToken::new()).await.unwrap();
    let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
    let id = start(&runtime, &pod, 0, &sandbox).await.unwrap();

    let made = &fake.sandboxes()[0];
    assert_eq!(made.config.hostname, "box");
    assert_eq!(made.config.linux.as_ref().unwrap().cgroup_parent, "");
    let container = &fake.containers()[0];
    assert_eq!(container.config.args, ["from map"]);
    assert_eq!(container.env("KUBERNETES_SERVICE_HOST").as_deref(), Some("169.254.30.10"));
    let mounts: Vec<_> = container.config.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
    assert_eq!(mounts, ["/data", "/conf", "/etc/hosts", "/dev/termination-log"]);
    let conf = std::fs::read_to_string(format!("{}/K", container.config.mounts[1].host_path)).unwrap();
    assert_eq!(conf, "from map");
    let hosts = std::fs::read_to_string(&container.config.mounts[2].host_path).unwrap();
    assert!(hosts.contains("10.99.0.3\tbox\n"), "{hosts}");

    std::fs::write(&container.config.mounts[3].host_path, "last words").unwrap();
    fake.exit_container(&id, 3);
    let observed = runtime.observe(&identity).await.unwrap();
    assert_eq!(observed.ips(), ["10.99.0.3"]);
    let seen = observed.newest("c").unwrap();
    assert_eq!((seen.state, seen.exit_code, seen.message.as_str()), (RuntimeState::Exited, 3, "last words"));
    assert_eq!(seen.hash, Some(podlife::spec::container_hash(&pod.spec.as_ref().unwrap().containers[0])));
    assert_eq!(runtime.list_pods().await.unwrap(), [observed]);
    assert_eq!(runtime.name(), "fake");

    runtime.remove_container(&id).await.unwrap();
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    // Of what is found on disk only the UID is known.
    let nameless = PodIdentity { namespace: String::new(), name: String::new(), uid: identity.uid.clone() };
    runtime.clean_up_pod(&nameless).await.unwrap();
    // Everything may be repeated.
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.clean_up_pod(&identity).await.unwrap();
    assert!(runtime.pods_on_disk().is_empty());
    assert!(std::fs::read_dir(&settings.pod_logs_dir).unwrap().next().is_none());
    let reasons: Vec<_> =
        stub.wait_for("insert", "/event/", 3).await.into_iter().map(|e| e["reason"].clone()).collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started"]);
}

#[tokio::test]
async fn image_policies_and_their_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeCri::start(dir.path()).await.unwrap();
    fake.add_to_registry("registry.example/app:2");
    let (stub, meta) = StubMeta::start();
    let (runtime, _) = runtime(dir.path(), &fake.endpoint(), &meta);
    let pod = pod(json!({"containers": [
        {"name": "never", "image": "nothing:1", "imagePullPolicy": "Never"},
        {"name": "missing", "image": "nothing:1", "imagePullPolicy": "IfNotPresent"},
        {"name": "bad", "image": "Upper:1"},
        {"name": "good", "image": "registry.example/app:2", "imagePullPolicy": "Always"}]}));
    let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
    let reason = async |index| start(&runtime, &pod, index, &sandbox).await.unwrap_err();

    let (never, text) = reason(0).await;
    assert_eq!(
        (never.as_str(), text.as_str()),
        ("ErrImageNeverPull", "Container image \"nothing:1\" is not present with pull policy of Never")
    );
    let (missing, text) = reason(1).await;
    assert_eq!(missing, "ErrImagePull");
    assert!(text.contains("not found"), "{text}");
    let (again, text) = reason(1).await;
    assert_eq!(again, "ImagePullBackOff");
    assert!(text.starts_with("Back-off pulling image \"nothing:1\": ErrImagePull: "), "{text}");
    assert_eq!(fake.count("PullImage"), 1, "nothing is pulled during the back-off");
    let (bad, text) = reason(2).await;
    assert_eq!(bad, "InvalidImageName");
    assert!(text.contains("must be lowercase"), "{text}");
    start(&runtime, &pod, 3, &sandbox).await.unwrap();
    assert_eq!(fake.count("PullImage"), 2);
    let events = stub.wait_for("insert", "/event/", 10).await;
    let has = |reason: &str, text: &str| {
        events.iter().any(|event| event["reason"] == reason && event["message"].as_str().unwrap().contains(text))
    };
    assert!(has("BackOff", "Back-off pulling") && has("Failed", "Error: ImagePullBackOff") && has("Pulling", "app:2"));
}

#[tokio::test]
async fn missing_configuration_and_failing_calls_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeCri::start(dir.path()).await.unwrap();
    fake.add_image(IMAGE);
    let (_stub, meta) = StubMeta::start();
    let (runtime, _) = runtime(dir.path(), &fake.endpoint(), &meta);
    let pod = pod(json!({"containers": [
        {"name": "a", "image": IMAGE, "envFrom": [{"secretRef": {"name": "none"}}]},
        {"name": "b", "image": IMAGE, "volumeMounts": [{"name": "conf", "mountPath": "/c"}, {"name": "disk", "mountPath": "/d"}]}],
        "volumes": [{"name": "conf", "configMap": {"name": "later"}},
            {"name": "disk", "persistentVolumeClaim": {"claimName": "x"}}]}));
    let plain = pod_with_one_container();
    let error = runtime.prepare_pod(&pod, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.reason, "FailedMount");
    assert!(error.message.contains("volume \"conf\" : configmap \"later\" not found"), "{}", error.message);
    assert!(error.message.contains("error processing PVC default/x: failed to fetch PVC"), "{}", error.message);

    fake.fail_next("RunPodSandbox", "no network");
    let error = runtime.run_sandbox(&pod, 0).await.unwrap_err();
    assert!(error.message.contains("desc = no network"), "{}", error.message);
    let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
    let (reason, text) = start(&runtime, &pod, 0, &sandbox).await.unwrap_err();
    assert_eq!((reason.as_str(), text.as_str()), ("CreateContainerConfigError", "secret \"none\" not found"));
    assert!(start(&runtime, &pod, 1, &sandbox).await.is_err(), "a volume is missing");
    fake.fail_next("CreateContainer", "boom");
    assert_eq!(start(&runtime, &plain, 0, &sandbox).await.unwrap_err().0, "CreateContainerError");
    fake.fail_next("StartContainer", "exec: no such file");
    assert_eq!(start(&runtime, &plain, 0, &sandbox).await.unwrap_err().0, "RunContainerError");
}

#[tokio::test]
async fn names_that_lead_out_of_their_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_stub, meta) = StubMeta::start();
    let (runtime, _) = runtime(dir.path(), "unix:///none", &meta);
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let mut pod = pod_with_one_container();
    pod.metadata.uid = Some("../../kept".into());
    let error = runtime.prepare_pod(&pod, &CancellationToken::new()).await.unwrap_err();
    assert!(error.message.contains("UID \"../../kept\""), "{error}");
    assert!(runtime.clean_up_pod(&podlife::spec::identity(&pod).unwrap()).await.is_err());
    assert!(kept.is_dir());
}

#[tokio::test]
async fn changes_reach_mounted_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let (stub, meta) = StubMeta::start();
    let (runtime, settings) = runtime(dir.path(), "unix:///none", &meta);
    let pod = pod(json!({"serviceAccountName": "sa", "containers": [{"name": "c", "image": IMAGE,
            "volumeMounts": [{"name": "all", "mountPath": "/all"}]}],
        "volumes": [{"name": "all", "projected": {"sources": [
            {"configMap": {"name": "cm"}},
            {"downwardAPI": {"items": [{"path": "meta/labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}]}));
    let uid = pod.metadata.uid.clone().unwrap();
    let token =
        |token: &str| Answer::Content(json!({"status": {"token": token}, "spec": {"boundObjectRef": {"uid": uid}}}));
    stub.store("default/configmap/cm", json!({"data": {"a": "1"}}));
    stub.set("query", "default/serviceaccounttoken/sa", token("first"));
    let cancel = CancellationToken::new();
    runtime.prepare_pod(&pod, &cancel).await.unwrap();
    let volume = settings.root_dir.join("pods").join(&uid).join("volumes/kubernetes.io~projected/all");
    let read = |name: &str| std::fs::read_to_string(volume.join(name)).unwrap();
    assert_eq!([read("a"), read("meta/labels"), read("token")], ["1", "app=\"web\"", "first"]);
    let request = &stub.requests("query", "serviceaccounttoken")[0];
    assert_eq!(request["spec"]["boundObjectRef"]["uid"], uid);
    assert_eq!(request["spec"]["expirationSeconds"], 3607);

    stub.store("default/configmap/cm", json!({"data": {"b": "2"}}));
    // The token cannot be renewed offline: the old one stays, expired or not.
    stub.set("query", "default/serviceaccounttoken/sa", Answer::Error("the cloud is out of reach".into()));
    runtime.prepare_pod(&pod, &cancel).await.unwrap();
    assert_eq!([read("b"), read("token")], ["2", "first"]);
    assert!(!volume.join("a").exists());
    let identity = podlife::spec::identity(&pod).unwrap();
    runtime.clean_up_pod(&identity).await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&uid), "a mount of the pod is left");
}

#[tokio::test]
async fn an_unreachable_or_hanging_runtime_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_stub, meta) = StubMeta::start();
    let mut fake = FakeCri::start(dir.path()).await.unwrap();
    let (runtime, _) = runtime(dir.path(), &fake.endpoint(), &meta);
    let ready = edged::runtime::RuntimeReadiness { handlers: Some(Vec::new()), ..Default::default() };
    assert_eq!(runtime.readiness().await, ready);
    fake.set_readiness(None, Some("cni plugin not initialized"));
    let network = runtime.readiness().await.network_error.unwrap();
    assert!(network.contains("NetworkReady=false") && network.contains("cni plugin not initialized"), "{network}");
    fake.stop_serving().await;
    let error = runtime.list_pods().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&fake.endpoint()), "{error}");
    assert!(runtime.readiness().await.runtime_error.unwrap().contains("is not reachable"));
    fake.serve().await.unwrap();
    runtime.list_pods().await.unwrap();
}

#[tokio::test]
async fn news_of_pods_with_and_without_events() {
    for with_events in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeCri::start(dir.path()).await.unwrap();
        fake.add_image(IMAGE);
        if with_events {
            fake.enable_events();
        }
        let (_stub, meta) = StubMeta::start();
        let (runtime, _) = runtime(dir.path(), &fake.endpoint(), &meta);
        let pod = pod_with_one_container();
        let uid = pod.metadata.uid.clone().unwrap();
        let sandbox = runtime.run_sandbox(&pod, 0).await.unwrap();
        let id = start(&runtime, &pod, 0, &sandbox).await.unwrap();
        let (sender, mut news) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let watcher = tokio::task::JoinSet::from_iter([{
            let (runtime, stop) = (runtime.clone(), stop.clone());
            async move { runtime.events(sender, stop).await }
        }]);
        // With events, looks become rare although the question for them is not answered yet.
        let looks = if with_events { 2 } else { 1 };
        fake.wait_until(LIMIT, |fake| fake.count("ListContainers") >= looks).await.unwrap();
        fake.exit_container(&id, 1);
        let next = tokio::time::timeout(LIMIT / 4, news.recv()).await.unwrap();
        assert_eq!(fake.count("GetContainerEvents"), 1, "asked once, and left to be answered");
        assert_eq!(next, Some(RuntimeEvent::Pod { uid }), "events: {with_events}");
        fake.fail_next("ListContainers", "overloaded");
        runtime.set_busy(true);
        let next = tokio::time::timeout(LIMIT, news.recv()).await.unwrap();
        assert_eq!(next, Some(RuntimeEvent::Resync), "events: {with_events}");
        stop.cancel();
        watcher.join_all().await;
    }
}

#[tokio::test]
async fn huge_pages_are_mounted_in_the_size_that_the_pod_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeCri::start(dir.path()).await.unwrap();
    let (_stub, meta) = StubMeta::start();
    let (runtime, settings) = runtime(dir.path(), &fake.endpoint(), &meta);
    let pod =
        pod(json!({"containers": [{"name": "c", "image": IMAGE, "resources": {"limits": {"hugepages-2Mi": "4Mi"}},
        "volumeMounts": [{"name": "huge", "mountPath": "/huge"}]}],
        "volumes": [{"name": "huge", "emptyDir": {"medium": "HugePages"}}]}));
    let identity = podlife::spec::identity(&pod).unwrap();
    runtime.prepare_pod(&pod, &CancellationToken::new()).await.unwrap();
    let place = settings.root_dir.join("pods").join(&identity.uid).join("volumes/kubernetes.io~empty-dir/huge");
    let mounted = || {
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        table.lines().find(|line| line.contains(place.to_str().unwrap())).map(str::to_owned)
    };
    let line = mounted().unwrap();
    assert!(line.contains(" hugetlbfs ") && line.contains("pagesize=2M"), "{line}");
    runtime.clean_up_pod(&identity).await.unwrap();
    assert_eq!(mounted(), None);
}
