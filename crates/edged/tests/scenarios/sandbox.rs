//! What a pod becomes in the runtime.

use serde_json::{Value, json};
use testkit::cri::{self, PodSandboxState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Site, pod, pod_with};

impl Site {
    /// What the runtime says of the namespaces of a pod's sandbox.
    async fn namespace_options(&self, pod: &str) -> cri::NamespaceOption {
        let pod_sandbox_id = self.sandboxes(pod).await[0].id.clone();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false };
        let answer = self.containerd.client().await.unwrap().pod_sandbox_status(request).await.unwrap().into_inner();
        answer.status.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap()
    }
}

#[tokio::test]
async fn t01_a_pod_is_one_sandbox_with_labels_and_logs() {
    let site = Site::start().await;
    site.run(pod("one")).await;
    let sandboxes = site.sandboxes("one").await;
    assert_eq!(sandboxes.len(), 1);
    assert_eq!(sandboxes[0].state, i32::from(PodSandboxState::SandboxReady));
    assert_eq!(sandboxes[0].metadata.as_ref().unwrap().attempt, 0);
    assert_eq!(sandboxes[0].labels["app"], "one");
    assert_eq!(sandboxes[0].labels["io.kubernetes.pod.uid"], "uid-one");
    let main = site.container("one", "main").await;
    let mut labels: Vec<_> = main.labels.keys().map(String::as_str).collect();
    labels.sort_unstable();
    let four = ["container.name", "pod.name", "pod.namespace", "pod.uid"].map(|name| format!("io.kubernetes.{name}"));
    assert_eq!(labels, four);
    assert!(site.log_dir("one").join("main/0.log").is_file());
    site.cloud.delete("one", 2).await;
    site.until_gone("one").await;
}

/// Address of the node in these tests.
const NODE_IP: &str = "192.0.2.2";

fn namespaces(status: &Value) -> Vec<&str> {
    let list = status["linux"]["namespaces"].as_array().unwrap();
    list.iter().filter(|namespace| namespace.get("path").is_none()).map(|n| n["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn t03_a_pod_on_the_nodes_network() {
    let site = Site::start().await;
    let web = site.run(pod_with("web", |pod| pod["spec"]["hostNetwork"] = json!(true))).await;
    assert_eq!((&web["status"]["podIP"], &web["status"]["hostIP"]), (&json!(NODE_IP), &json!(NODE_IP)));
    let options = site.namespace_options("web").await;
    assert_eq!(options.network(), testkit::cri::NamespaceMode::Node);
    let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(site.sh("web", "main", "hostname").await.1, node, "the node's own name");
    let (_, hosts) = site.sh("web", "main", "cat /etc/hosts").await;
    let own = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(hosts, format!("# Kubernetes-managed hosts file (host network).\n{own}"));
}

#[tokio::test]
async fn t04_namespaces_are_shared_as_asked() {
    use testkit::cri::NamespaceMode::{Container, Node, Pod};
    let site = Site::start().await;
    for (name, field, pid, ipc) in [
        ("hostpid", "hostPID", Node, Pod),
        ("hostipc", "hostIPC", Container, Node),
        ("shared", "shareProcessNamespace", Pod, Pod),
        ("plain", "automountServiceAccountToken", Container, Pod),
    ] {
        site.run(pod_with(name, |pod| pod["spec"][field] = json!(true))).await;
        let options = site.namespace_options(name).await;
        assert_eq!((options.pid(), options.ipc()), (pid, ipc), "{name}");
        let oci = site.oci(name, "main").await;
        assert_eq!(namespaces(&oci).contains(&"pid"), pid == Container, "{name}");
    }
    let (_, processes) = site.sh("shared", "main", "cat /proc/1/cmdline").await;
    assert!(!processes.contains("trap"), "the sandbox is the first process: {processes}");
}

#[tokio::test]
async fn t05_long_names_make_short_hostnames() {
    let site = Site::start().await;
    let name = format!("{}-{}", "a".repeat(62), "b".repeat(17));
    site.run(pod(&name)).await;
    assert_eq!(site.sh(&name, "main", "hostname").await.1, format!("{}\n", "a".repeat(62)));
    let name = "c".repeat(80);
    site.run(pod(&name)).await;
    assert_eq!(site.sh(&name, "main", "hostname").await.1, format!("{}\n", "c".repeat(63)));
}

#[tokio::test]
async fn t06_the_hosts_file_is_the_kubelets() {
    let site = Site::start().await;
    let web = site
        .run(pod_with("web", |pod| {
            pod["spec"]["subdomain"] = json!("sub");
            pod["spec"]["hostAliases"] = json!([{"ip": "1.2.3.4", "hostnames": ["a.example", "b.example"]}]);
        }))
        .await;
    let ip = web["status"]["podIP"].as_str().unwrap();
    let (_, hosts) = site.sh("web", "main", "cat /etc/hosts").await;
    let wanted = format!(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
         {ip}\tweb.sub.default.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta.example\tb.example\n"
    );
    assert_eq!(hosts, wanted);
    let own = site.directory().join("hosts");
    std::fs::write(&own, "127.0.0.1 mine\n").unwrap();
    site.run(pod_with("own", |pod| {
        pod["spec"]["volumes"] = json!([{"name": "h", "hostPath": {"path": own, "type": "File"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "h", "mountPath": "/etc/hosts"}]);
    }))
    .await;
    assert_eq!(site.sh("own", "main", "cat /etc/hosts").await.1, "127.0.0.1 mine\n");
}

#[tokio::test]
async fn t07_resolver_configuration_by_policy() {
    let host = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(host.path(), "nameserver 9.9.9.9\nsearch lan\noptions rotate\n").unwrap();
    let site = Site::start_with(|settings| {
        settings.cluster_dns = vec!["10.96.0.10".into()];
        settings.resolv_conf = host.path().to_owned();
    })
    .await;
    let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\noptions ndots:5\n";
    let node = "search lan\nnameserver 9.9.9.9\noptions rotate\n";
    let config = json!({"nameservers": ["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4", "1.0.0.5"], "searches": ["x"],
        "options": [{"name": "ndots", "value": "1"}]});
    for (name, policy, host_network, config, wanted) in [
        ("first", "ClusterFirst", false, Value::Null, cluster),
        ("hosted", "ClusterFirst", true, Value::Null, node),
        ("both", "ClusterFirstWithHostNet", true, Value::Null, cluster),
        ("default", "Default", false, Value::Null, node),
        (
            "none",
            "None",
            false,
            config.clone(),
            "search x\nnameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\noptions ndots:1\n",
        ),
        (
            "more",
            "ClusterFirst",
            false,
            json!({"nameservers": ["8.8.8.8"], "options": [{"name": "ndots", "value": "1"}]}),
            "search default.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:1\n",
        ),
    ] {
        site.run(pod_with(name, |pod| {
            pod["spec"]["dnsPolicy"] = json!(policy);
            pod["spec"]["hostNetwork"] = json!(host_network);
            pod["spec"]["dnsConfig"] = config;
        }))
        .await;
        assert_eq!(site.sh(name, "main", "cat /etc/resolv.conf").await.1, wanted, "{name}");
    }
    assert!(site.cloud.events("none").contains(&"DNSConfigForming".to_owned()));
}

#[tokio::test]
async fn t08_safe_sysctls_are_set() {
    let site = Site::start().await;
    let with = |name: &str, sysctl: &str, value: &str| {
        pod_with(name, |pod| pod["spec"]["securityContext"]["sysctls"] = json!([{"name": sysctl, "value": value}]))
    };
    site.run(with("web", "net/ipv4/tcp_syncookies", "0")).await;
    assert_eq!(site.sh("web", "main", "cat /proc/sys/net/ipv4/tcp_syncookies").await.1, "0\n");
}

#[tokio::test]
async fn t09_host_ports_lead_to_the_pod() {
    let site = Site::start().await;
    // Free a moment ago; other tests take none of these.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let with = |name: &str| {
        pod_with(name, |pod| {
            let main = &mut pod["spec"]["containers"][0];
            main["ports"] = json!([{"containerPort": 80, "hostPort": port}]);
            main["command"] = json!([
                "sh",
                "-c",
                "mkdir /www; echo hello > /www/index.html; httpd -p 80 -h /www; \
                trap 'exit 0' TERM; while :; do sleep 0.1; done"
            ]);
        })
    };
    site.run(with("web")).await;
    site.eventually("an answer at the node's port", async || {
        let Ok(mut stream) = tokio::net::TcpStream::connect((site.containerd.gateway().as_str(), port)).await else {
            return false;
        };
        let mut answer = String::new();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.is_ok()
            && stream.read_to_string(&mut answer).await.is_ok()
            && answer.ends_with("hello\n")
    })
    .await;
}
