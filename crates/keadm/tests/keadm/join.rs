//! `keadm join`.

use api::edgecore::Config;

use crate::cloud::{Cloud, FREE, NodeAnswer};
use crate::machine::Machine;

const CONFIG: &str = "/etc/kubeedge/config/edgecore.yaml";
const BOOTSTRAP: &str = "/etc/kubeedge/bootstrap-edgecore.conf";

fn with(cloud: &Cloud, more: &[String]) -> Vec<String> {
    [cloud.flags(), more.to_vec()].concat()
}

fn good(cloud: &Cloud, more: &[&str]) -> Vec<String> {
    let mut flags = with(cloud, &[format!("--token={}", cloud.token())]);
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    flags
}

#[tokio::test]
async fn a_machine_without_systemd_gets_its_files_and_is_told_how_to_start() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    let run = machine.join(&good(&cloud, &["--labels=site=berlin"])).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("edgecore --config /etc/kubeedge/config/edgecore.yaml"), "{}", run.stdout);

    let config = Config::load(&machine.at(CONFIG)).expect("configuration");
    assert!(config.document.warnings.is_empty());
    assert_eq!(config.node_name(), "edge-1");
    assert_eq!(config.node_labels()["site"], "berlin");
    assert_eq!(config.edge_hub().servers, [cloud.channel()]);
    assert_eq!(config.edge_hub().ca_file, std::path::Path::new("/etc/kubeedge/ca/rootCA.crt"));
    assert_eq!(machine.read(BOOTSTRAP).trim(), cloud.token());
    assert_eq!((machine.mode(BOOTSTRAP), machine.mode(CONFIG)), (0o600, 0o600));
    assert!(!machine.read(CONFIG).contains(&cloud.token()) && !run.stdout.contains(&cloud.token()));
    assert_eq!(cloud.asked(), ["/ca.crt", "/node/edge-1"]);
}

#[tokio::test]
async fn a_node_can_be_kept_below_one_folder() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    let own = machine.at("/srv/edge-1");
    let folder = format!("--config-dir={}", own.display());
    let endpoint = format!("-p{}", machine.runtime.endpoint());
    let mut words =
        vec!["join".to_owned(), "--edgenode-name=edge-1".to_owned(), endpoint, folder.clone(), "--no-start".to_owned()];
    words.extend(good(&cloud, &[]));
    let run = machine.keadm(&words).await;
    assert_eq!(run.code, 0, "{run:?}");
    let config = Config::load(&own.join("config/edgecore.yaml")).expect("configuration");
    assert_eq!(config.database(), own.join("data/edgecore.db"));
    assert!(own.join("bootstrap-edgecore.conf").exists());

    let run = machine.keadm(&words).await;
    assert!(run.code == 3 && run.stderr.contains("keadm reset edge"), "{run:?}");
    std::fs::write(own.join("stranger"), "x").expect("file");
    let run = machine.keadm(&["reset", "edge", "--force", &folder]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!own.exists(), "join made the folder, so all of it was the node's");
    let run = machine.keadm(&["reset", "edge", "--force", &folder]).await;
    assert!(run.code == 0 && run.stdout.contains("nothing to reset"), "{run:?}");
}

#[tokio::test]
async fn with_systemd_the_service_is_started_and_waited_for() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    machine.with_systemd();
    let run = machine.join(&good(&cloud, &[])).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("has its certificate"), "{}", run.stdout);
    assert_eq!(machine.read("/systemctl.log"), "daemon-reload\nenable edgecore.service\nrestart edgecore.service\n");
    let unit = machine.read("/etc/systemd/system/edgecore.service");
    assert!(unit.contains("ExecStart=/usr/local/bin/edgecore --config=/etc/kubeedge/config/edgecore.yaml"), "{unit}");
    assert!(unit.contains("KillMode=process"), "pods outlive edgecore: {unit}");
}

#[tokio::test]
async fn a_failed_check_tells_the_cure_and_changes_nothing() {
    let machine = Machine::new().await;
    let cloud = Cloud::start(FREE).await;
    let other = Cloud::start(FREE).await;
    let expired = link::token::mint(cloud.ca.certificate(), cloud.ca.key(), 1_000_000);
    let taken = Cloud::start(NodeAnswer(200, "Node founded")).await;
    let broken = Cloud::start(NodeAnswer(500, "Failed to query node information")).await;
    let elsewhere = Cloud::start_for(FREE, "10.9.8.7").await;
    let token = |cloud: &Cloud| format!("--token={}", cloud.token());
    let no_runtime = "--remote-runtime-endpoint=unix:///no/such.sock".to_owned();
    let cases = [
        (with(&cloud, &[]), 3, "--token is missing"),
        (with(&cloud, &["--token=abc".into()]), 3, "the whole output of `keadm gettoken`"),
        (with(&cloud, &[format!("--token={expired}")]), 3, "get a new one with `keadm gettoken`"),
        (with(&cloud, &[token(&other)]), 3, "the token is of another cloud"),
        (good(&taken, &[]), 3, "kubectl delete node edge-1"),
        (good(&broken, &[]), 3, "Failed to query node information"),
        (good(&elsewhere, &[]), 3, "advertiseAddress"),
        (good(&cloud, &["--certport=1"]), 3, "--certport"),
        (good(&cloud, &["--cloudcore-ipport=127.0.0.1:1"]), 3, "message channel at 127.0.0.1:1"),
        (good(&cloud, &["--cloudcore-ipport=127.0.0.1"]), 2, "must be host:port"),
        (good(&cloud, &[&no_runtime]), 3, "--remote-runtime-endpoint"),
        (good(&cloud, &["--edgenode-name=Edge_1"]), 2, "no valid node name"),
        (good(&cloud, &["--hub-protocol=quic"]), 2, "only websocket"),
        (good(&cloud, &["--kubeedge-version=v1.20.0"]), 2, "nothing is downloaded"),
        (good(&cloud, &["--image-repository=r.example"]), 2, "no installation image"),
        (good(&cloud, &["--set", "modules.edgeHub.hartbeat=1"]), 2, "did you mean heartbeat"),
        (good(&cloud, &["--pre-run=/bin/false"]), 3, "/bin/false ended with"),
    ];
    for (flags, code, told) in cases {
        // The last of a repeated flag wins.
        let run = machine.join(&flags).await;
        assert!(run.code == code && run.stderr.contains(told), "{told}: {run:?}");
        assert!(!machine.at("/etc").exists(), "{told}: nothing is changed");
    }
}

#[tokio::test]
async fn a_runtime_without_cri_or_network_is_told() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    machine.runtime.fail_next_with("Version", tonic::Code::Unimplemented, "unknown service runtime.v1");
    let run = machine.join(&good(&cloud, &[])).await;
    assert!(run.code == 3 && run.stderr.contains("disabled_plugins"), "{run:?}");
    machine.runtime.set_readiness(None, Some("cni plugin not initialized"));
    let run = machine.join(&good(&cloud, &[])).await;
    assert!(run.code == 0 && run.stderr.contains("cni plugin not initialized"), "{run:?}");
}

#[tokio::test]
async fn a_second_join_needs_force_and_keeps_the_data() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    assert_eq!(machine.join(&good(&cloud, &[])).await.code, 0);
    machine.put("/var/lib/kubeedge/edgecore.db", "data");
    let run = machine.join(&good(&cloud, &[])).await;
    assert!(run.code == 3 && run.stderr.contains("--force"), "{run:?}");
    let receipt = machine.read("/etc/kubeedge/joined.json");

    let again = Cloud::start(NodeAnswer(200, "Node founded")).await;
    let run = machine.join(&good(&again, &["--force"])).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(machine.read(BOOTSTRAP).trim(), again.token());
    assert_eq!(machine.read("/var/lib/kubeedge/edgecore.db"), "data");
    assert_eq!(machine.read("/etc/kubeedge/joined.json"), receipt, "the first join's record is kept");
}

#[tokio::test]
async fn a_failed_write_is_undone() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    // A file where a folder must be.
    machine.put("/etc/kubeedge/config", "in the way");
    let run = machine.join(&good(&cloud, &[])).await;
    assert!(run.code == 1 && run.stderr.contains("removed again"), "{run:?}");
    assert_eq!(std::fs::read_dir(machine.at("/etc/kubeedge")).expect("folder").count(), 1);
    assert_eq!(machine.read("/etc/kubeedge/config"), "in the way");
}

#[tokio::test]
async fn the_administrators_programs_run_before_and_after() {
    let (cloud, machine) = (Cloud::start(FREE).await, Machine::new().await);
    let log = machine.root().with_file_name("order.log");
    let before =
        machine.program("before", &format!("ls {} >> {} 2>&1; exit 0", machine.at("/etc").display(), log.display()));
    let after = machine.program("after", &format!("echo after >> {}; exit 3", log.display()));
    let flags = [format!("--pre-run={}", before.display()), format!("--post-run={}", after.display())];
    let run = machine.join(&[good(&cloud, &[]), flags.to_vec()].concat()).await;
    assert!(run.code == 0 && run.stderr.contains("the node has joined, but"), "{run:?}");
    let order = std::fs::read_to_string(log).expect("log");
    assert!(order.contains("No such file") && order.ends_with("after\n"), "{order}");
}
