//! What a container is started with: command, environment, user, privileges; and its last words.

use serde_json::{Value, json};

use crate::{Site, pod_with};

/// A pod whose container ends with these words in its log and stays.
fn prints(name: &str, command: &str, change: impl FnOnce(&mut Value)) -> Value {
    pod_with(name, |pod| {
        let main = &mut pod["spec"]["containers"][0];
        let run = format!("{command}; trap 'exit 0' TERM; while :; do sleep 0.1; done");
        main["command"] = json!(["sh", "-c", run, "sh"]);
        change(pod);
    })
}

fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]
}

#[tokio::test]
async fn t11_commands_see_the_environment() {
    let site = Site::start().await;
    site.run(prints("web", "true", |pod| {
        let main = &mut pod["spec"]["containers"][0];
        main["env"] = json!([{"name": "A", "value": "1"}]);
        main["args"] = json!(["$(A)-$$(A)-$(NOPE)"]);
    }))
    .await;
    let oci = site.oci("web", "main").await;
    assert_eq!(oci["process"]["args"].as_array().unwrap().last().unwrap(), "1-$(A)-$(NOPE)");
}

#[tokio::test]
async fn t12_values_see_only_what_comes_before() {
    let site = Site::start().await;
    site.run(prints("web", "true", |pod| {
        pod["spec"]["containers"][0]["env"] = json!([
            {"name": "B", "value": "$(C)"}, {"name": "C", "value": "2"}, {"name": "D", "value": "$(C)"}]);
    }))
    .await;
    assert_eq!(site.sh("web", "main", "echo \"$B $C $D\"").await.1, "$(C) 2 2\n");
}

#[tokio::test]
async fn t13_environment_from_config_maps_and_secrets() {
    let site = Site::start().await;
    site.cloud
        .create_other("default/configmap/cfg", json!({"metadata": {"name": "cfg"}, "data": {"a": "1", "b.c": "2"}}))
        .await;
    site.run(prints("web", "true", |pod| {
        let main = &mut pod["spec"]["containers"][0];
        main["envFrom"] = json!([{"prefix": "P_", "configMapRef": {"name": "cfg"}},
            {"configMapRef": {"name": "none", "optional": true}}]);
        main["env"] = json!([{"name": "P_a", "value": "own"},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "a"}}},
            {"name": "NOKEY", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "x", "optional": true}}},
            {"name": "NOSECRET", "valueFrom": {"secretKeyRef": {"name": "x", "key": "x", "optional": true}}}]);
    }))
    .await;
    let oci = site.oci("web", "main").await;
    let env: Vec<&str> = oci["process"]["env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    for wanted in ["P_a=own", "P_b.c=2", "KEY=1"] {
        assert_eq!(env.iter().filter(|found| **found == wanted).count(), 1, "{wanted} in {env:?}");
    }
    assert!(!env.iter().any(|found| found.starts_with("NO") || found.starts_with("KUBERNETES_SERVICE_HOST=")));
    assert_eq!(env.iter().filter(|found| found.starts_with("P_a=")).count(), 1);

    site.cloud
        .create(prints("late", "true", |pod| {
            pod["spec"]["containers"][0]["env"] =
                json!([{"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]);
        }))
        .await;
    let refused = |pod: &Value| waiting(pod)["reason"] == "CreateContainerConfigError";
    let pod = site.until("late", "waits for the secret", refused).await;
    assert_eq!(waiting(&pod)["message"], "secret \"sec\" not found");
    site.cloud
        .create_other("default/secret/sec", json!({"metadata": {"name": "sec"}, "data": {"k": "aGVsbG8="}}))
        .await;
    let pod = site.until("late", "starts", crate::site::is_ready).await;
    assert_eq!(pod["metadata"]["uid"], "uid-late");
    assert_eq!(site.sh("late", "main", "echo $S").await.1, "hello\n");
    assert_eq!(site.sandboxes("late").await.len(), 1);
}

#[tokio::test]
async fn t14_a_container_learns_of_its_pod_and_its_node() {
    let site = Site::start().await;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, what: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": what, "divisor": divisor}}});
    let web = site
        .run(prints("web", "true", |pod| {
            let main = &mut pod["spec"]["containers"][0];
            main["resources"] = json!({"limits": {"cpu": "1500m"}});
            main["env"] = json!([
                field("IP", "status.podIP"),
                field("HOST", "status.hostIP"),
                field("NODE", "spec.nodeName"),
                field("APP", "metadata.labels['app']"),
                resource("CPU", "limits.cpu", "1"),
                resource("MILLI", "limits.cpu", "1m"),
                resource("MEMORY", "limits.memory", "1"),
                resource("REQUEST", "requests.memory", "1")
            ]);
        }))
        .await;
    let (_, text) = site.sh("web", "main", "echo $IP $HOST $NODE $APP $CPU $MILLI $REQUEST; echo $MEMORY").await;
    let (first, memory) = text.trim_end().split_once('\n').unwrap();
    let ip = web["status"]["podIP"].as_str().unwrap();
    assert_eq!(first, format!("{ip} 192.0.2.2 n1 web 2 1500 0"));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    let memory: u64 = memory.parse().unwrap();
    assert!(memory <= total && memory > total / 2, "allocatable memory of the node: {memory} of {total}");
}

#[tokio::test]
async fn t17_root_is_refused_where_it_is_not_wanted() {
    let site = Site::start().await;
    site.cloud
        .create(prints("root", "true", |pod| pod["spec"]["securityContext"] = json!({"runAsNonRoot": true})))
        .await;
    let refused = |pod: &Value| waiting(pod)["reason"] == "CreateContainerConfigError";
    let pod = site.until("root", "refused", refused).await;
    assert_eq!(
        waiting(&pod)["message"],
        "container has runAsNonRoot and image will run as root (pod: \"root_default(uid-root)\", container: main)"
    );
    site.run(prints("user", "true", |pod| {
        pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 2000,
            "supplementalGroups": [3000]});
    }))
    .await;
    assert_eq!(site.sh("user", "main", "id -u; id -g; id -G").await.1, "1000\n2000\n2000 3000\n");
}

#[tokio::test]
async fn t18_a_container_without_privileges() {
    let site = Site::start().await;
    let profiles = site.settings.root_dir.join("seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    std::fs::write(profiles.join("nomkdir.json"), profile.to_string()).unwrap();
    site.run(prints("web", "true", |pod| {
        pod["spec"]["containers"][0]["securityContext"] = json!({"allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "Localhost", "localhostProfile": "nomkdir.json"}});
    }))
    .await;
    let (_, status) = site.sh("web", "main", "grep -E 'NoNewPrivs|CapBnd|Seccomp:' /proc/1/status").await;
    let status: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(status, ["CapBnd:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"]);
    let (code, text) = site.sh("web", "main", "touch /file").await;
    assert!(code != 0 && text.contains("Read-only"), "{text}");
    let (code, text) = site.sh("web", "main", "mkdir /dev/shm/x").await;
    assert!(code != 0 && text.contains("not permitted"), "the profile of the node is in force: {text}");
    let oci = site.oci("web", "main").await;
    let paths = |field: &str| oci["linux"][field].as_array().unwrap().clone();
    assert!(
        paths("maskedPaths").contains(&json!("/proc/kcore")) && paths("readonlyPaths").contains(&json!("/proc/sys"))
    );
}

#[tokio::test]
async fn t19_last_words_come_from_the_file_or_the_log() {
    let site = Site::start().await;
    let job = |name: &str, command: &str, policy: &str| {
        pod_with(name, |pod| {
            pod["spec"]["restartPolicy"] = json!("Never");
            let main = &mut pod["spec"]["containers"][0];
            main["command"] = json!(["sh", "-c", command]);
            main["terminationMessagePolicy"] = json!(policy);
        })
    };
    site.cloud.create(job("long", "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log", "File")).await;
    site.cloud.create(job("log", "seq 1 200; exit 1", "FallbackToLogsOnError")).await;
    site.cloud.create(job("quiet", "echo words; exit 1", "File")).await;
    let message = async |name: &str| {
        let ended = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object();
        let pod = site.until(name, "ended", ended).await;
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(message("long").await, "x".repeat(4096));
    let lines = message("log").await;
    assert_eq!(lines.lines().collect::<Vec<_>>(), (121..=200).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    assert_eq!(message("quiet").await, "");
}

#[tokio::test]
async fn t86_pods_find_the_api_server_and_nothing_is_empty() {
    let site = Site::start().await;
    site.cloud
        .create_other(
            "default/service/kubernetes",
            json!({"metadata": {"name": "kubernetes", "namespace": "default"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
        )
        .await;
    site.run(prints("web", "true", |_| {})).await;
    let (_, text) =
        site.sh("web", "main", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT $KUBERNETES_PORT").await;
    assert_eq!(text, "10.96.0.1:443 tcp://10.96.0.1:443\n");
    site.run(prints("own", "true", |pod| {
        pod["spec"]["containers"][0]["env"] = json!([{"name": "KUBERNETES_SERVICE_HOST", "value": "mine"}]);
    }))
    .await;
    let oci = site.oci("own", "main").await;
    let env = oci["process"]["env"].as_array().unwrap();
    let hosts: Vec<&Value> =
        env.iter().filter(|v| v.as_str().unwrap().starts_with("KUBERNETES_SERVICE_HOST=")).collect();
    assert_eq!(hosts, [&json!("KUBERNETES_SERVICE_HOST=mine")]);
}
