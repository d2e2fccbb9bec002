//! Volumes: what a container finds in them, what the node keeps of them, and what it says when they are not there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

use crate::{Site, pod, pod_with};

/// A pod whose container mounts these volumes at `/NAME`.
fn with_volumes(name: &str, volumes: Value) -> Value {
    pod_with(name, |pod| {
        let mounts: Vec<Value> = volumes
            .as_array()
            .unwrap()
            .iter()
            .map(
                |volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap())}),
            )
            .collect();
        pod["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
        pod["spec"]["volumes"] = volumes;
    })
}

fn config(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "data": data})
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

impl Site {
    async fn configure(&self, name: &str, data: Value) {
        self.cloud.create_other(&format!("default/configmap/{name}"), config(name, data)).await;
    }

    fn volume(&self, pod: &str, plugin: &str, volume: &str) -> std::path::PathBuf {
        self.pod_dir(&format!("uid-{pod}")).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
    }

    async fn until_event(&self, pod: &str, text: &str) {
        self.eventually(&format!("event {text} in {:?}", self.cloud.event_texts(pod)), async || {
            self.cloud.event_texts(pod).iter().any(|event| event.contains(text))
        })
        .await;
    }
}

#[tokio::test]
async fn t62_a_changed_config_map_reaches_files_and_neither_sub_paths_nor_environment() {
    let site = Site::start().await;
    site.configure("cfg", json!({"k": "one"})).await;
    site.run(pod_with("web", |pod| {
        pod["spec"]["volumes"] = json!([{"name": "cfg", "configMap": {"name": "cfg"}}]);
        let main = &mut pod["spec"]["containers"][0];
        main["volumeMounts"] = json!([{"name": "cfg", "mountPath": "/cfg"},
            {"name": "cfg", "mountPath": "/sub", "subPath": "k"}]);
        main["env"] = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "k"}}}]);
    }))
    .await;
    let data = site.volume("web", "configmap", "cfg").join("..data");
    let before = fs::read_link(&data).unwrap();
    site.configure("cfg", json!({"k": "two"})).await;
    site.eventually("the new text", async || site.sh("web", "main", "cat /cfg/k").await.1 == "two").await;
    assert_ne!(fs::read_link(&data).unwrap(), before);
    assert_eq!(site.sh("web", "main", "cat /sub; echo $K").await.1, "oneone\n");
}

#[tokio::test]
async fn t63_a_reader_never_sees_two_versions_at_once() {
    let site = Site::start().await;
    site.configure("cfg", json!({"a": "0", "b": "0"})).await;
    site.run(pod_with("web", |pod| {
        pod["spec"]["volumes"] =
            json!([{"name": "cfg", "configMap": {"name": "cfg"}}, {"name": "out", "emptyDir": {}}]);
        let main = &mut pod["spec"]["containers"][0];
        main["volumeMounts"] = json!([{"name": "cfg", "mountPath": "/cfg"}, {"name": "out", "mountPath": "/out"}]);
        // A whole version lies behind the link; it may be gone before it is read.
        main["command"] = json!([
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do cd -P /cfg/..data 2>/dev/null || continue; \
            a=$(cat a 2>/dev/null) && b=$(cat b 2>/dev/null) || continue; echo $a >> /out/seen; \
            [ $a = $b ] || echo $a $b >> /out/mixed; done"
        ]);
    }))
    .await;
    let file = site.volume("web", "configmap", "cfg").join("a");
    for number in 1..=100 {
        let text = number.to_string();
        site.configure("cfg", json!({"a": text, "b": text})).await;
        site.eventually("the update", async || fs::read_to_string(&file).is_ok_and(|found| found == text)).await;
    }
    let out = site.volume("web", "empty-dir", "out");
    site.eventually("the last version is read", async || {
        fs::read_to_string(out.join("seen")).unwrap_or_default().ends_with("100\n")
    })
    .await;
    assert!(!out.join("mixed").exists(), "{:?}", fs::read_to_string(out.join("mixed")));
    let seen = fs::read_to_string(out.join("seen")).unwrap();
    let versions: std::collections::BTreeSet<&str> = seen.lines().collect();
    assert!(versions.len() > 10, "the reader was at work meanwhile: {versions:?}");
}

#[tokio::test]
async fn t64_modes_owners_and_layout_of_a_config_map() {
    let site = Site::start().await;
    site.configure("cfg", json!({"a": "1", "b": "2", "c": "3"})).await;
    site.cloud.create_other("default/secret/sec", json!({"metadata": {"name": "sec"}, "data": {"s": "eA=="}})).await;
    let mut pod = with_volumes(
        "web",
        json!([
            {"name": "cfg", "configMap": {"name": "cfg", "defaultMode": 0o400,
                "items": [{"key": "a", "path": "a"}, {"key": "b", "path": "dir/b", "mode": 0o440}]}},
            {"name": "all", "configMap": {"name": "cfg", "defaultMode": 0o400}},
            {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}},
            {"name": "dir", "emptyDir": {}}]),
    );
    pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
    site.run(pod).await;
    let volume = site.volume("web", "configmap", "cfg");
    for (path, wanted) in
        [("a", 0o440), ("dir/b", 0o440), ("dir", 0o2755), ("..data/a", 0o440), ("", 0o2777), ("..data", 0o2755)]
    {
        let path = volume.join(path);
        assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid()), (wanted, 2000), "{}", path.display());
    }
    assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::read_link(volume.join("dir")).unwrap(), Path::new("..data/dir"));
    assert!(fs::read_link(volume.join("..data")).unwrap().to_str().unwrap().starts_with("..20"));
    assert_eq!(fs::metadata(site.volume("web", "secret", "sec").join("s")).unwrap().gid(), 2000);
    let dir = site.volume("web", "empty-dir", "dir");
    assert_eq!((mode(&dir), fs::metadata(&dir).unwrap().gid()), (0o2777, 2000));
    let (_, listing) = site.sh("web", "main", "ls -la /cfg; id -G; touch /dir/x; stat -c %g /dir/x").await;
    assert!(listing.contains("..data -> ..20") && listing.contains("a -> ..data/a"), "{listing}");
    assert!(listing.ends_with("2000\n2000\n"), "{listing}");

    site.configure("cfg", json!({"a": "1", "b": "2"})).await;
    let gone = site.volume("web", "configmap", "all").join("c");
    site.eventually("the key is gone", async || fs::symlink_metadata(&gone).is_err()).await;
    assert_eq!(site.sh("web", "main", "ls /all").await.1, "a\nb\n");
}

#[tokio::test]
async fn t65_memory_volumes_have_their_size_and_disk_volumes_are_easy_to_find() {
    let site = Site::start().await;
    site.run(with_volumes(
        "web",
        json!([{"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}, {"name": "disk", "emptyDir": {}}]),
    ))
    .await;
    let stat = rustix::fs::statvfs(site.volume("web", "empty-dir", "mem")).unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, 16 << 20);
    let (code, text) = site.sh("web", "main", "dd if=/dev/zero of=/mem/x bs=1M count=17; stat -c %a /mem /disk").await;
    assert!(code == 0 && text.contains("No space left") && text.contains("777\n777\n"), "{text}");
    assert!(site.volume("web", "empty-dir", "disk").is_dir());
}

#[tokio::test]
async fn t66_host_paths_are_checked_by_their_type() {
    let site = Site::start().await;
    let dir = site.directory().join("host");
    fs::create_dir_all(dir.join("dir")).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    mknodat(CWD, dir.join("block"), FileType::BlockDevice, Mode::from_raw_mode(0o600), makedev(7, 200)).unwrap();
    let volume =
        |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": dir.join(path), "type": kind}});
    let good = [
        volume("none", "anything", ""),
        volume("made", "made", "DirectoryOrCreate"),
        volume("again", "dir", "DirectoryOrCreate"),
        volume("dir", "dir", "Directory"),
        volume("madefile", "madefile", "FileOrCreate"),
        volume("filetoo", "file", "FileOrCreate"),
        volume("file", "file", "File"),
        volume("socket", "socket", "Socket"),
        json!({"name": "char", "hostPath": {"path": "/dev/null", "type": "CharDevice"}}),
        volume("block", "block", "BlockDevice"),
    ];
    site.run(with_volumes("good", json!(good))).await;
    assert_eq!((mode(&dir.join("made")), mode(&dir.join("madefile"))), (0o755, 0o644));
    let bad = [
        ("b1", volume("v", "missing", "Directory"), "is not a directory"),
        ("b2", volume("v", "missing", "File"), "is not a file"),
        ("b3", volume("v", "missing", "Socket"), "is not a socket file"),
        ("b4", volume("v", "missing", "CharDevice"), "is not a character device"),
        ("b5", volume("v", "missing", "BlockDevice"), "is not a block device"),
        ("b6", volume("v", "file", "Directory"), "is not a directory"),
        ("b7", volume("v", "dir", "File"), "is not a file"),
        ("b8", volume("v", "file", "DirectoryOrCreate"), "is not a directory"),
        ("b9", volume("v", "dir", "FileOrCreate"), "is not a file"),
        ("b10", volume("v", "file", "Socket"), "is not a socket file"),
        ("b11", volume("v", "no/parent", "FileOrCreate"), "No such file or directory"),
    ];
    for (name, volume, _) in &bad {
        site.cloud.create(with_volumes(name, json!([volume]))).await;
    }
    for (name, _, text) in &bad {
        site.until_event(name, text).await;
        let events = site.cloud.event_texts(name);
        assert!(events.iter().any(|e| e.starts_with("FailedMount: MountVolume.SetUp failed for volume \"v\" : ")));
        assert!(site.sandboxes(name).await.is_empty());
    }
    for (name, _, _) in &bad {
        site.cloud.delete(name, 0).await;
        site.until(name, "deleted though it never ran", Value::is_null).await;
    }
}

#[tokio::test]
async fn t67_tokens_are_bound_private_renewed_and_kept_while_the_cloud_is_away() {
    use base64::Engine as _;
    let site = Site::start().await;
    site.cloud.issue_tokens(3600, 0);
    site.configure("nudge", json!({"n": "0"})).await;
    let token = |audience: &str| json!({"serviceAccountToken": {"path": "token", "audience": audience, "expirationSeconds": 3600}});
    let mut pod = with_volumes(
        "web",
        json!([{"name": "tok", "projected": {"sources": [token("vault")]}}, {"name": "cfg", "configMap": {"name": "nudge"}}]),
    );
    pod["spec"]["serviceAccountName"] = json!("robot");
    pod["spec"]["securityContext"] = json!({"runAsUser": 1000});
    site.run(pod).await;
    let mut grouped = with_volumes("grouped", json!([{"name": "tok", "projected": {"sources": [token("vault")]}}]));
    grouped["spec"]["securityContext"] = json!({"fsGroup": 2000});
    site.run(grouped).await;
    site.run(with_volumes("open", json!([{"name": "tok", "projected": {"sources": [token("")]}}]))).await;
    let file = |pod: &str| site.volume(pod, "projected", "tok").join("token");
    let owner = |pod: &str| {
        let found = fs::metadata(file(pod)).unwrap();
        (found.mode() & 0o777, found.uid(), found.gid())
    };
    assert_eq!((owner("web"), owner("grouped"), owner("open")), ((0o600, 1000, 0), (0o640, 0, 2000), (0o644, 0, 0)));
    assert_eq!(site.sh("web", "main", "cat /tok/token | wc -c; id -u").await.1.lines().last(), Some("1000"));
    let claims = || -> Value {
        let token = fs::read_to_string(file("web")).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    };
    assert_eq!(claims()["aud"], json!(["vault"]));
    assert_eq!(claims()["kubernetes.io"]["pod"], json!({"name": "web", "uid": "uid-web"}));
    let asked =
        |site: &Site| site.cloud.log().iter().filter(|(_, r, _)| r == "default/serviceaccounttoken/robot").count();
    assert_eq!(asked(&site), 1);
    let nudge = async |text: &str| {
        site.configure("nudge", json!({"n": text})).await;
        site.eventually("a sync", async || {
            fs::read_to_string(site.volume("web", "configmap", "cfg").join("n")).unwrap() == text
        })
        .await;
    };

    // Young: a sync asks for nothing. Old at four fifths of its life: the next one replaces it.
    nudge("1").await;
    assert_eq!(asked(&site), 1);
    let old = |issued: i64| {
        let text = json!({"iat": issued, "exp": issued + 3600}).to_string();
        format!("h.{}.s", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text))
    };
    let now = jiff::Timestamp::now().as_second();
    fs::write(fs::canonicalize(file("web")).unwrap(), old(now - 2890)).unwrap();
    nudge("2").await;
    site.eventually("a new token", async || claims()["aud"] == json!(["vault"])).await;

    // Out of reach, and even expired: the old one stays.
    let expired = old(now - 4000);
    fs::write(fs::canonicalize(file("web")).unwrap(), &expired).unwrap();
    site.cloud.set_offline(true);
    nudge("3").await;
    assert_eq!(fs::read_to_string(file("web")).unwrap(), expired);
    site.cloud.set_offline(false);
    nudge("4").await;
    site.eventually("a new token again", async || claims()["aud"] == json!(["vault"])).await;
}

#[tokio::test]
async fn t69_a_missing_secret_is_waited_for_unless_it_is_optional() {
    let site = Site::start().await;
    let secret = |optional: bool| json!([{"name": "sec", "secret": {"secretName": "late", "optional": optional}}]);
    site.run(with_volumes("eager", secret(true))).await;
    assert_eq!(site.sh("eager", "main", "ls /sec | wc -l").await.1, "0\n");
    site.cloud.create(with_volumes("strict", secret(false))).await;
    site.until_event("strict", "FailedMount: MountVolume.SetUp failed for volume \"sec\" : secret \"late\" not found")
        .await;
    let waiting = site.cloud.pod("strict").unwrap();
    assert_eq!(waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    assert!(site.sandboxes("strict").await.is_empty());
    site.cloud
        .create_other("default/secret/late", json!({"metadata": {"name": "late"}, "data": {"k": "aGVsbG8="}}))
        .await;
    site.until("strict", "starts", crate::site::is_ready).await;
    assert_eq!(site.sh("strict", "main", "cat /sec/k").await.1, "hello");
    site.eventually("the file", async || site.sh("eager", "main", "cat /sec/k").await.1 == "hello").await;
}

#[tokio::test]
async fn t70_mounts_travel_between_host_and_container_as_asked() {
    let site = Site::start().await;
    let shared = site.settings.root_dir.join("shared");
    fs::create_dir_all(&shared).unwrap();
    let with = |name: &str, propagation: &str| {
        let mut pod = with_volumes(name, json!([{"name": "m", "hostPath": {"path": shared}}]));
        pod["spec"]["containers"][0]["volumeMounts"][0]["mountPropagation"] = json!(propagation);
        pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
        pod
    };
    for (name, propagation) in [("both", "Bidirectional"), ("in", "HostToContainer"), ("apart", "None")] {
        site.run(with(name, propagation)).await;
    }
    let (code, text) =
        site.sh("both", "main", "mkdir /m/c && mount -t tmpfs none /m/c && touch /m/c/from-container").await;
    assert_eq!(code, 0, "{text}");
    assert!(shared.join("c/from-container").exists(), "the host sees it");
    fs::create_dir(shared.join("h")).unwrap();
    rustix::mount::mount("none", shared.join("h"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(shared.join("h/from-host"), "").unwrap();
    let (_, seen) = site.sh("in", "main", "ls /m/c /m/h").await;
    assert!(seen.contains("from-container") && seen.contains("from-host"), "{seen}");
    let (_, seen) = site.sh("both", "main", "ls /m/h").await;
    assert!(seen.contains("from-host"), "{seen}");
    let (_, seen) = site.sh("apart", "main", "ls /m/c /m/h").await;
    assert!(!seen.contains("from-"), "{seen}");
    let (_, seen) = site.sh("in", "main", "mkdir /m/i && mount -t tmpfs none /m/i && touch /m/i/x; ls /m/i").await;
    assert!(seen.contains('x') && !shared.join("i/x").exists(), "what it mounts stays inside");
}

#[tokio::test]
async fn t20_sub_paths_stay_in_their_volume() {
    let site = Site::start().await;
    site.configure("cfg", json!({"k": "text"})).await;
    let mut good =
        with_volumes("good", json!([{"name": "dir", "emptyDir": {}}, {"name": "cfg", "configMap": {"name": "cfg"}}]));
    let main = &mut good["spec"]["containers"][0];
    main["env"] = json!([{"name": "WHO", "value": "me"}]);
    main["volumeMounts"] = json!([
        {"name": "dir", "mountPath": "/a", "subPath": "missing/deep"},
        {"name": "dir", "mountPath": "/b", "subPathExpr": "of-$(WHO)"},
        {"name": "cfg", "mountPath": "/file", "subPath": "k"}]);
    site.run(good).await;
    let dir = site.volume("good", "empty-dir", "dir");
    assert_eq!((mode(&dir.join("missing")), mode(&dir.join("missing/deep"))), (0o777, 0o777));
    let (_, text) = site.sh("good", "main", "touch /a/x /b/y; cat /file").await;
    assert_eq!(text, "text");
    assert!(dir.join("missing/deep/x").exists() && dir.join("of-me/y").exists());
    let subpaths = site.pod_dir("uid-good").join("volume-subpaths");
    let oci = site.oci("good", "main").await;
    for (index, volume) in [(0, "dir"), (1, "dir"), (2, "cfg")] {
        let source = subpaths.join(volume).join("main").join(index.to_string());
        assert!(source.exists());
        let mounts = oci["mounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["source"] == source.to_str().unwrap()), "{}", source.display());
    }

    let evil = site.directory().join("evil");
    fs::create_dir(&evil).unwrap();
    std::os::unix::fs::symlink("/etc", evil.join("link")).unwrap();
    for (name, sub) in [
        ("e1", json!({"subPath": "link"})),
        ("e2", json!({"subPath": "link/passwd"})),
        ("e3", json!({"subPath": "../evil"})),
        ("e4", json!({"subPath": "/etc"})),
        ("e5", json!({"subPathExpr": "$(NOPE)"})),
    ] {
        let mut pod = with_volumes(name, json!([{"name": "v", "hostPath": {"path": evil}}]));
        for (field, value) in sub.as_object().unwrap() {
            pod["spec"]["containers"][0]["volumeMounts"][0][field] = value.clone();
        }
        site.cloud.create(pod).await;
        let refused = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        };
        site.until(name, "refused", refused).await;
        assert!(site.containers(name).await.is_empty());
    }
}

#[tokio::test]
async fn a_claim_on_a_local_volume_is_mounted_kept_and_released() {
    let mut site = Site::start().await;
    let disk = site.directory().join("disk");
    fs::create_dir(&disk).unwrap();
    fs::write(disk.join("old"), "data").unwrap();
    let claim = |phase: &str| {
        json!({"metadata": {"name": "data", "namespace": "default", "uid": "uid-claim"},
            "spec": {"volumeName": "pv-1"}, "status": {"phase": phase}})
    };
    let volume = |node: &str, path: &Path| {
        json!({"metadata": {"name": "pv-1", "uid": "uid-pv"}, "spec": {"claimRef": {"uid": "uid-claim"}, "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
    };
    let mut pod = with_volumes("db", json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]));
    pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
    site.cloud.create(pod).await;
    let all = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], \
               failed to process volumes=[data]: error processing PVC default/data: ";
    site.until_event("db", &format!("{all}failed to fetch PVC from API server: ")).await;
    site.cloud.create_other("default/persistentvolumeclaim/data", claim("Pending")).await;
    site.until_event("db", &format!("{all}PVC is not bound")).await;
    site.cloud.create_other("default/persistentvolumeclaim/data", claim("Bound")).await;
    site.until_event("db", "failed to fetch PV pv-1 from API server: ").await;
    site.cloud.create_other("null/persistentvolume/pv-1", volume("n2", &disk)).await;
    site.until_event(
        "db",
        "FailedMount: MountVolume.NodeAffinity check failed for volume \"pv-1\" : no matching NodeSelectorTerms",
    )
    .await;
    site.cloud.create_other("null/persistentvolume/pv-1", volume("n1", &disk.join("none"))).await;
    site.until_event("db", "FailedMount: MountVolume.NewMounter initialization failed for volume \"pv-1\" : path ")
        .await;
    site.cloud.create_other("null/persistentvolume/pv-1", volume("n1", &disk)).await;
    site.until("db", "ready", crate::site::is_ready).await;
    let (_, text) = site.sh("db", "main", "cat /data/old; touch /data/new; stat -c %g:%a /data /data/new").await;
    assert_eq!(text, "data2000:2775\n2000:644\n");

    // A restart of the agent in between, and a power cut without the cloud.
    site.kill_edged().await;
    site.start_edged();
    site.power_cut().await;
    site.start_edged();
    let again = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && crate::site::is_ready(pod);
    site.until("db", "back", again).await;
    assert_eq!(site.sh("db", "main", "ls /data").await.1, "new\nold\n");
    site.cloud.delete("db", 2).await;
    site.until_gone("db").await;
    site.eventually("the pod's folder is gone", async || !site.pod_dir("uid-db").exists()).await;
    assert_eq!(fs::read_to_string(disk.join("old")).unwrap(), "data");
    assert!(disk.join("new").exists());
}

#[tokio::test]
async fn t51_nothing_is_left_of_a_deleted_pod() {
    let site = Site::start().await;
    let disk = site.directory().join("disk");
    fs::create_dir(&disk).unwrap();
    site.configure("cfg", json!({"k": "v"})).await;
    let mut web = with_volumes(
        "web",
        json!([{"name": "mem", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}},
            {"name": "cfg", "configMap": {"name": "cfg"}}, {"name": "down", "downwardAPI": {"items": [
                {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]),
    );
    web["spec"]["containers"][0]["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "disk", "mountPath": "/sub", "subPath": "s"}));
    site.run(web).await;
    site.sh("web", "main", "mkdir -p /disk/a/b/c; ln -s / /disk/root; mkfifo /disk/pipe; chmod 0 /disk/a").await;
    assert!(site.log_dir("web").exists());
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    site.eventually("directories, mounts, logs, cgroups are gone", async || {
        !site.pod_dir("uid-web").exists()
            && !site.log_dir("web").exists()
            && !mounts().contains("uid-web")
            && site.cgroups_of("uid-web").is_empty()
    })
    .await;
    // A name that nobody uses any more leads to no log.
    let links = site.settings.pod_logs_dir.parent().unwrap().join("containers");
    assert_eq!(fs::read_dir(links).unwrap().count(), 0);
}

#[tokio::test]
async fn a_finished_pod_gives_its_volumes_back_and_keeps_its_logs() {
    let site = Site::start().await;
    let mut job = with_volumes("job", json!([{"name": "mem", "emptyDir": {"medium": "Memory"}}]));
    job["spec"]["restartPolicy"] = json!("Never");
    job["spec"]["containers"][0]["command"] = json!(["sh", "-c", "echo done; echo words > /dev/termination-log"]);
    site.cloud.create(job).await;
    let done = site.until("job", "succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["message"], "words\n");
    site.eventually("the volume is gone", async || !site.pod_dir("uid-job").join("volumes").exists()).await;
    assert!(site.log("job", "main", 0).contains("stdout F done"));
}

#[tokio::test]
async fn a_pod_that_the_node_cannot_mount_says_which_field() {
    let site = Site::start().await;
    let kinds = [
        (
            "k1",
            json!({"name": "v", "iscsi": {"iqn": "i", "lun": 0, "targetPortal": "t"}}),
            "iscsi volumes are not supported",
        ),
        (
            "k2",
            json!({"name": "v", "emptyDir": {"medium": "HugePages"}}),
            "no container of the pod asks for huge pages",
        ),
        ("k3", json!({"name": "v", "nfs": {"server": "127.0.0.1", "path": "/none"}}), "mount failed: "),
    ];
    for (name, volume, text) in kinds {
        site.cloud.create(with_volumes(name, json!([volume]))).await;
        site.until_event(name, text).await;
    }
    // Others are not held up.
    site.run(pod("other")).await;
}
