//! Simulated nodes of our own kind, which say what they have: what a returning node gets is what it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgesim::{Behaviour, Fleet, Stored};
use serde_json::{Value, json};
use store::rusqlite::Connection;
use tokio::sync::mpsc;

use crate::cloud::{Cloud, SOON, config_map, pod};

const NODES: usize = 12;
/// Longer than what follows the API rests when it cannot be reached.
const RESTED: Duration = Duration::from_secs(60);
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn cloud_of(cloud: &Cloud) -> edgesim::Cloud {
    edgesim::Cloud { websocket: cloud.addresses().websocket, https: cloud.addresses().https }
}

/// A fleet of which each node has a pod that refers to a ConfigMap, and one node more, which has nothing.
async fn start(cloud: &Cloud) -> Result<Fleet> {
    let names = (0..=NODES).map(|number| format!("n{number}"));
    let mut fleet = Fleet::join(cloud_of(cloud), &cloud.token().await?, names).await?;
    fleet.start(Behaviour::default(), None);
    fleet.until_synced(fleet.len(), SOON).await?;
    give_work(cloud).await?;
    Ok(fleet)
}

async fn give_work(cloud: &Cloud) -> Result<()> {
    for number in 0..NODES {
        cloud.create(MAPS, &config_map(&format!("map{number}"), "before")).await?;
        cloud.create(PODS, &pod_with_map(number)).await?;
    }
    // A node asks for what its pods refer to, which these do not; what changes it gets unasked.
    for number in 0..NODES {
        cloud.patch(&format!("{MAPS}/map{number}"), &json!({"data": {"key": "changed"}})).await?;
    }
    Ok(())
}

fn pod_with_map(number: usize) -> Value {
    let mut pod = pod(&format!("pod{number}"), &format!("n{number}"));
    pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": format!("map{number}")}}]);
    pod
}

/// Versions by path of what the API has of this kind.
async fn in_the_api(cloud: &Cloud, list: &str, kind: &str) -> Result<BTreeMap<String, u64>> {
    let list = cloud.get(list).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |item: &Value| {
        let metadata = &item["metadata"];
        let version = text(&metadata["resourceVersion"]).parse().unwrap_or_default();
        (format!("default/{kind}/{}", text(&metadata["name"])), version)
    };
    Ok(items.iter().map(entry).filter(|(path, _)| is_own(path)).collect())
}

/// Not what the cluster makes itself.
fn is_own(path: &str) -> bool {
    path.starts_with("default/") && !path.ends_with("/kube-root-ca.crt")
}

/// Waits until each node has its pod and its ConfigMap in the versions that the API has, and nothing else; the first node's number is
/// `first`.
async fn wait_same(cloud: &Cloud, fleet: &Fleet, first: usize) -> Result<()> {
    same_within(RESTED, cloud, fleet, first).await
}

async fn same_within(patience: Duration, cloud: &Cloud, fleet: &Fleet, first: usize) -> Result<()> {
    let mut all = in_the_api(cloud, PODS, "pod").await?;
    all.extend(in_the_api(cloud, MAPS, "configmap").await?);
    let differs = || {
        (0..NODES).find_map(|number| {
            let paths =
                [format!("default/pod/pod{}", first + number), format!("default/configmap/map{}", first + number)];
            let has_pod = all.contains_key(&paths[0]);
            // One that no pod refers to any more may stay where it is.
            let counts = |path: &String| has_pod || *path != paths[1];
            let expected: BTreeMap<String, u64> = paths
                .iter()
                .filter(|path| counts(path))
                .filter_map(|path| Some((path.clone(), *all.get(path)?)))
                .collect();
            let held = fleet.held(number).into_iter().filter(|held| is_own(&held.resource));
            let held = held.map(|held| (held.resource, held.version)).filter(|(path, _)| counts(path));
            let held: BTreeMap<String, u64> = held.collect();
            (held != expected).then(|| format!("node n{} has {held:?} and not {expected:?}", first + number))
        })
    };
    let deadline = tokio::time::Instant::now() + patience;
    while let Some(difference) = differs() {
        ensure!(tokio::time::Instant::now() < deadline, "{difference}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returning_nodes_get_what_they_lack_and_no_more() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let mut fleet = start(&cloud).await?;
    wait_same(&cloud, &fleet, 0).await?;
    fleet.stop().await;
    cloud.stop_hub().await?;

    cloud.patch(&format!("{PODS}/pod0"), &json!({"metadata": {"annotations": {"a": "b"}}})).await?;
    cloud.delete_pod("pod1", 0).await?;
    // Nothing on the node refers to it any more.
    cloud.patch(&format!("{MAPS}/map1"), &json!({"data": {"key": "unseen"}})).await?;
    // A namesake takes its place.
    cloud.delete_pod("pod2", 0).await?;
    cloud.create(PODS, &pod_with_map(2)).await?;
    cloud.patch(&format!("{MAPS}/map3"), &json!({"data": {"key": "after"}})).await?;
    cloud.delete(&format!("{MAPS}/map4")).await?;
    cloud.delete(&format!("{MAPS}/map6")).await?;
    cloud.create(MAPS, &config_map("map6", "another")).await?;
    cloud.start_hub("").await?;
    fleet.lead_to(cloud.addresses().websocket);
    // These have lost their databases.
    fleet.empty(5);
    fleet.empty(NODES);
    let (tell, mut stored) = mpsc::channel::<Stored>(1024);
    let before = cloud.requests();
    fleet.start(Behaviour::default(), Some(tell));
    fleet.until_synced(fleet.len(), SOON).await?;
    let requests = cloud.requests() - before;
    let mut told = BTreeSet::new();
    while let Ok(event) = stored.try_recv() {
        told.insert((event.node, event.resource));
    }
    let expected = [
        (0, "default/pod/pod0"),
        // It has changed, and nothing refers to it any more.
        (1, "default/configmap/map1"),
        (1, "default/pod/pod1"),
        (2, "default/pod/pod2"),
        (3, "default/configmap/map3"),
        (4, "default/configmap/map4"),
        (5, "default/pod/pod5"),
        (5, "null/node/n5"),
        (6, "default/configmap/map6"),
        (NODES, "null/node/n12"),
    ];
    assert_eq!(told, expected.map(|(node, path)| (node, path.to_owned())).into());
    // For what has changed, and for the records of it; nothing for the others.
    ensure!(requests <= 16, "{requests} requests to the Kubernetes API");
    cloud.patch(&format!("{MAPS}/map5"), &json!({"data": {"key": "after"}})).await?;
    wait_same(&cloud, &fleet, 0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_hub_costs_repetitions_and_nothing_else() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let fleet = start(&cloud).await?;
    for round in 0..3 {
        for number in 0..NODES {
            let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
            cloud.patch(&format!("{PODS}/pod{number}"), &patch).await.context("a pod")?;
        }
        // In the middle of the deliveries.
        cloud.kill_hub();
        cloud.start_hub("").await?;
        fleet.lead_to(cloud.addresses().websocket);
    }
    fleet.until_synced(fleet.len(), SOON).await?;
    wait_same(&cloud, &fleet, 0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_replica_that_dies_go_on_at_another() -> Result<()> {
    let cloud = Cloud::start().await?;
    let other = cloud.start_replica("").await?;
    let names = |numbers: std::ops::Range<usize>| numbers.map(|number| format!("n{number}"));
    let token = cloud.token().await?;
    let mut stays = Fleet::join(cloud_of(&cloud), &token, names(0..NODES)).await?;
    stays.start(Behaviour::default(), None);
    let at_other = edgesim::Cloud { websocket: other.addresses.websocket, https: other.addresses.https };
    let mut moves = Fleet::join(at_other, &token, names(NODES..2 * NODES)).await?;
    moves.start(Behaviour::default(), None);
    stays.until_synced(NODES, SOON).await?;
    moves.until_synced(NODES, SOON).await?;
    for number in 0..2 * NODES {
        cloud.create(PODS, &pod(&format!("pod{number}"), &format!("n{number}"))).await?;
    }
    wait_same(&cloud, &stays, 0).await?;
    wait_same(&cloud, &moves, NODES).await?;

    // What a load balancer does.
    moves.lead_to(cloud.addresses().websocket);
    drop(other);
    for number in 0..2 * NODES {
        let patch = json!({"metadata": {"annotations": {"a": "b"}}});
        cloud.patch(&format!("{PODS}/pod{number}"), &patch).await?;
    }
    wait_same(&cloud, &moves, NODES).await?;
    wait_same(&cloud, &stays, 0).await?;
    assert_eq!((stays.connected(), stays.connections()), (NODES, NODES), "nobody else was disturbed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_what_counts_while_the_hub_runs() -> Result<()> {
    restored_backup(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_what_counts_for_a_hub_that_starts_after_it() -> Result<()> {
    restored_backup(false).await
}

async fn restored_backup(hub_runs: bool) -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let mut fleet = start(&cloud).await?;
    wait_same(&cloud, &fleet, 0).await?;
    let backup = tempfile::tempdir()?;
    cloud.restart_kubernetes(|state| copy(state, backup.path())).await?;

    // What the backup does not know.
    cloud.create(PODS, &pod("later", "n0")).await?;
    cloud.delete_pod("pod1", 0).await?;
    for round in 0..3 {
        for number in 0..NODES {
            cloud.patch(&format!("{MAPS}/map{number}"), &json!({"data": {"key": round.to_string()}})).await?;
        }
        cloud.patch(&format!("{PODS}/pod2"), &json!({"metadata": {"annotations": {"a": round.to_string()}}})).await?;
    }
    // Of the last ones the versions are known.
    let mut versions = Vec::new();
    for number in 0..NODES {
        if number == NODES - 1 {
            // This one's stays in the future for long.
            for step in 0..1000 {
                cloud.patch(&format!("{MAPS}/map1"), &json!({"data": {"burn": step.to_string()}})).await?;
            }
        }
        let patch = json!({"data": {"key": "lost"}});
        versions.push(version(&cloud.patch(&format!("{MAPS}/map{number}"), &patch).await?)?);
    }
    let later = || fleet.held(0).iter().any(|held| held.resource == "default/pod/later");
    let told = |number: usize, key: &str| fleet.held(number).iter().any(|held| held.resource == key);
    cloud
        .cluster
        .wait("the later pod", RESTED, || std::future::ready(Ok(later() && !told(1, "default/pod/pod1"))))
        .await?;
    let has = |number: usize| number == 1 || fleet.held(number).iter().any(|held| held.version == versions[number]);
    cloud.cluster.wait("the last versions", RESTED, || std::future::ready(Ok((0..NODES).all(has)))).await?;

    if !hub_runs {
        fleet.stop().await;
        cloud.stop_hub().await?;
    }
    cloud
        .restart_kubernetes(|state| {
            std::fs::remove_dir_all(state)?;
            copy(backup.path(), state)
        })
        .await?;
    // The versions of these are numbers that the nodes know already, of other objects or of what these were.
    for number in 0..NODES {
        cloud.patch(&format!("{PODS}/pod{number}"), &json!({"metadata": {"annotations": {"b": "c"}}})).await?;
    }
    let (tell, mut stored) = mpsc::channel::<Stored>(1024);
    let mut namesakes = BTreeSet::new();
    if !hub_runs {
        // Something else has the very version that the node knows.
        for (number, known) in versions.iter().enumerate().take(NODES - 1).skip(2) {
            while newest(&cloud).await? + 1 < *known {
                let burn = json!({"data": {"burn": newest(&cloud).await?.to_string()}});
                cloud.patch(&format!("{MAPS}/map1"), &burn).await?;
            }
            let kept = json!({"data": {"key": "kept"}});
            if version(&cloud.patch(&format!("{MAPS}/map{number}"), &kept).await?)? == *known {
                namesakes.insert((number, format!("default/configmap/map{number}")));
            }
        }
        ensure!(!namesakes.is_empty(), "others wrote too much meanwhile");
        cloud.start_hub("").await?;
        fleet.lead_to(cloud.addresses().websocket);
        fleet.start(Behaviour::default(), Some(tell));
    }
    // While n1 had no pod, a comparison may have rid it of the map. A node asks for what a pod that is back refers to; these get it when it
    // changes while they are connected.
    let has_map = || fleet.held(1).iter().any(|held| held.resource == "default/configmap/map1");
    let change = async || {
        if !has_map() {
            cloud.patch(&format!("{MAPS}/map1"), &json!({"data": {"key": newest(&cloud).await?.to_string()}})).await?;
        }
        Ok(has_map())
    };
    let deadline = tokio::time::Instant::now() + RESTED;
    loop {
        cloud.cluster.wait("the map of the pod that is back", RESTED, &change).await?;
        match same_within(Duration::from_secs(3), &cloud, &fleet, 0).await {
            // It was still on its way out.
            Err(difference) => ensure!(tokio::time::Instant::now() < deadline, "{difference}"),
            Ok(()) => break,
        }
    }
    fleet.until_synced(fleet.len(), RESTED).await?;
    let sent_again = async {
        while !namesakes.is_empty() {
            let event = stored.recv().await.context("the fleet ended")?;
            namesakes.remove(&(event.node, event.resource));
        }
        Ok(())
    };
    tokio::time::timeout(RESTED, sent_again).await.context("not all were sent again")?
}

fn version(object: &Value) -> Result<u64> {
    Ok(object["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?)
}

/// The version at which the API is.
async fn newest(cloud: &Cloud) -> Result<u64> {
    version(&cloud.get(&format!("{MAPS}?limit=1")).await?)
}

/// Databases are copied by SQLite: the last connection of what has just ended may not be closed yet.
fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        ensure!(entry.file_type()?.is_file(), "{} is no file", path.display());
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("db") => {
                let copy = copy.to_str().context("no UTF-8")?;
                Connection::open(&path)?.execute("VACUUM INTO ?1", [copy])?;
            }
            Some("db-wal" | "db-shm") => {}
            _ => drop(std::fs::copy(&path, &copy)?),
        }
    }
    Ok(())
}
