//! Devices and their models on their way to nodes: to a Go edge, and to simulated nodes of our own kind.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use edgesim::{Behaviour, Fleet};
use serde_json::{Value, json};
use testkit::go_edge::{GoEdge, Seen, message};

use crate::cloud::{Cloud, SOON, wait_logged};
use crate::device_reports::report;

pub const DEVICES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";
pub const MODELS: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicemodels";
const SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A device with two properties.
pub fn device(name: &str, node: &str, model: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name},
        "spec": {"nodeName": node, "deviceModelRef": {"name": model}, "protocol": {"protocolName": "modbus", "configData": {"slaveID": 1}},
            "properties": [{"name": "temperature", "desired": {"value": "21"}}, {"name": "humidity"}]},
    })
}

pub fn model(name: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": {"name": name},
        "spec": {"protocol": "modbus", "properties": [{"name": "temperature", "type": "FLOAT", "accessMode": "ReadWrite"}]},
    })
}

/// Waits until the edge has a row that is as wanted.
async fn row(edge: &GoEdge, resource: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    edge.wait(resource, SOON, |seen| seen.rows.get(resource).filter(|row| holds(row)).cloned()).await
}

async fn no_row(edge: &GoEdge, resource: &str) -> Result<()> {
    let is_told = |seen: &Seen| seen.pushes(resource).iter().any(|push| push["route"]["operation"] == "delete");
    let gone = |seen: &Seen| (is_told(seen) && !seen.rows.contains_key(resource)).then_some(());
    edge.wait(&format!("the deletion of {resource}"), SOON, gone).await
}

/// Waits for news of which devices the node has.
async fn member(edge: &GoEdge, field: &str, id: &str) -> Result<()> {
    edge.wait(&format!("{field} {id}"), SOON, |seen| {
        let is_it = |message: &&Value| message["content"][field][0]["id"] == id;
        seen.pushes("membership").into_iter().find(is_it).map(drop)
    })
    .await
}

async fn noted(cloud: &Cloud, count: usize) -> Result<()> {
    let noted = |list: &Value| {
        let items = list["items"].as_array().into_iter().flatten();
        items.filter(|item| item["status"]["objectResourceVersion"].as_str().is_some_and(|v| v != "0")).count()
    };
    cloud.wait_for(SYNCS, "the records", |list| noted(list) == count).await.map(drop)
}

fn faultless(edge: &GoEdge) {
    assert_eq!(edge.seen().faults, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_comes_changes_moves_and_goes() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let (other, _) = cloud.edge("n2").await?;
    cloud.create(MODELS, &model("thermometer")).await?;
    let created = cloud.create(DEVICES, &device("thermo", "n1", "thermometer")).await?;
    let got = row(&edge, "default/device/thermo", |_| true).await?;
    assert_eq!((&got["kind"], &got["apiVersion"]), (&json!("Device"), &json!("devices.kubeedge.io/v1beta1")));
    assert_eq!(got["spec"]["protocol"]["configData"]["slaveID"], 1);
    member(&edge, "added_devices", "default/thermo").await?;
    let pushed: Vec<Value> = edge.seen().received;
    let at = |resource: &str| pushed.iter().position(|message| message["route"]["resource"] == resource);
    let (of_model, of_device) = (at("default/devicemodel/thermometer"), at("default/device/thermo"));
    ensure!(of_model.is_some() && of_model < of_device, "the model comes first");
    let message = &pushed[of_device.context("device")?];
    let header = &message["header"]["resourceversion"];
    assert_eq!(
        (header, &message["route"]["source"]),
        (&created["metadata"]["resourceVersion"], &json!("devicecontroller"))
    );
    assert_eq!(message["route"]["operation"], "insert");
    noted(&cloud, 2).await?;

    // A desired value, and the model alone.
    cloud
        .patch(
            &format!("{DEVICES}/thermo"),
            &json!({"spec": {"properties": [{"name": "temperature", "desired": {"value": "25"}}]}}),
        )
        .await?;
    row(&edge, "default/device/thermo", |row| row["spec"]["properties"][0]["desired"]["value"] == "25").await?;
    cloud.patch(&format!("{MODELS}/thermometer"), &json!({"spec": {"protocol": "opcua"}})).await?;
    row(&edge, "default/devicemodel/thermometer", |row| row["spec"]["protocol"] == "opcua").await?;

    // To another node, back and away again.
    for (node, from, to) in [("n2", &edge, &other), ("n1", &other, &edge), ("n2", &edge, &other)] {
        cloud.patch(&format!("{DEVICES}/thermo"), &json!({"spec": {"nodeName": node}})).await?;
        row(to, "default/device/thermo", |row| row["spec"]["nodeName"] == node).await?;
        row(to, "default/devicemodel/thermometer", |row| row["spec"]["protocol"] == "opcua").await?;
        for resource in ["default/device/thermo", "default/devicemodel/thermometer"] {
            no_row(from, resource).await?;
            from.wait("that it stays away", SOON, |seen| (!seen.rows.contains_key(resource)).then_some(())).await?;
        }
        member(from, "removed_devices", "default/thermo").await?;
    }
    cloud.delete(&format!("{DEVICES}/thermo")).await?;
    no_row(&other, "default/device/thermo").await?;
    no_row(&other, "default/devicemodel/thermometer").await?;
    cloud.wait_for(SYNCS, "no records", |list| list["items"].as_array().is_some_and(Vec::is_empty)).await?;
    faultless(&edge);
    faultless(&other);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_edge_gets_devices_bound_before_it_came_and_what_changed_while_it_was_away() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    for name in ["early", "changed", "deleted", "moved"] {
        cloud.create(DEVICES, &device(name, "n1", "late")).await?;
    }
    let (edge, credentials) = cloud.edge("n1").await?;
    let path = |name: &str| format!("default/device/{name}");
    for name in ["early", "changed", "deleted", "moved"] {
        row(&edge, &path(name), |_| true).await?;
    }
    // A model that comes after its devices.
    cloud.create(MODELS, &model("late")).await?;
    row(&edge, "default/devicemodel/late", |_| true).await?;
    noted(&cloud, 5).await?;
    let before = edge.stop().await;
    cloud.patch(&format!("{DEVICES}/changed"), &json!({"metadata": {"labels": {"description": "new"}}})).await?;
    cloud.stop_hub().await?;
    cloud.delete(&format!("{DEVICES}/deleted")).await?;
    cloud.patch(&format!("{DEVICES}/moved"), &json!({"spec": {"nodeName": "n2"}})).await?;
    cloud.patch(&format!("{MODELS}/late"), &json!({"spec": {"protocol": "opcua"}})).await?;
    cloud.create(DEVICES, &device("new", "n1", "late")).await?;
    cloud.start_hub("").await?;
    let edge = cloud.reconnect(&credentials, before, "n1").await?;
    row(&edge, &path("changed"), |row| row["metadata"]["labels"]["description"] == "new").await?;
    row(&edge, "default/devicemodel/late", |row| row["spec"]["protocol"] == "opcua").await?;
    row(&edge, &path("new"), |_| true).await?;
    no_row(&edge, &path("deleted")).await?;
    no_row(&edge, &path("moved")).await?;
    assert!(edge.seen().pushes(&path("early")).is_empty(), "it has that");
    // And all that are its own, so that it forgets others.
    let all = edge
        .wait("all devices", SOON, |seen| {
            seen.pushes("membership/detail").first().map(|message| message["content"]["devices"].clone())
        })
        .await?;
    let ids: Vec<&str> = all.as_array().context("list")?.iter().filter_map(|member| member["id"].as_str()).collect();
    assert_eq!(ids, ["default/changed", "default/early", "default/new"]);
    assert_eq!(all[0]["description"], "new");
    faultless(&edge);
    Ok(())
}

/// What the API says that these nodes have to have, by path.
async fn wanted(cloud: &Cloud, node: &str) -> Result<BTreeMap<String, u64>> {
    let mut wanted = BTreeMap::new();
    let mut of_models = Vec::new();
    for (list, segment) in [(DEVICES, "device"), (MODELS, "devicemodel")] {
        for item in cloud.get(list).await?["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            let is_own = match segment {
                "device" => item["spec"]["nodeName"] == node,
                _ => of_models.iter().any(|model: &Value| model == name),
            };
            if !is_own {
                continue;
            }
            of_models.push(item["spec"]["deviceModelRef"]["name"].clone());
            let version = item["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?;
            wanted.insert(format!("default/{segment}/{name}"), version);
        }
    }
    Ok(wanted)
}

async fn wait_same(cloud: &Cloud, fleet: &Fleet) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    for place in 0..fleet.len() {
        let wanted = wanted(cloud, &format!("n{place}")).await?;
        loop {
            let held = fleet.held(place).into_iter().filter(|held| held.resource.contains("/device"));
            let held: BTreeMap<String, u64> = held.map(|held| (held.resource, held.version)).collect();
            if held == wanted {
                break;
            }
            ensure!(tokio::time::Instant::now() < deadline, "n{place} has {held:?} and not {wanted:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_edges_have_what_is_theirs_whoever_was_away() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    for number in 0..3 {
        cloud.create(MODELS, &model(&format!("m{number}"))).await?;
        for name in ["a", "b", "c"] {
            cloud
                .create(DEVICES, &device(&format!("{name}{number}"), &format!("n{number}"), &format!("m{number}")))
                .await?;
        }
    }
    let at = edgesim::Cloud { websocket: cloud.addresses().websocket, https: cloud.addresses().https };
    let names = (0..3).map(|number| format!("n{number}"));
    let mut fleet = Fleet::join(at, &cloud.token().await?, names).await?;
    fleet.start(Behaviour::default(), None);
    fleet.until_synced(3, SOON).await?;
    wait_same(&cloud, &fleet).await?;
    // Only the nodes are away, then cloudcore too, then only cloudcore.
    for round in 0..3 {
        if round < 2 {
            fleet.stop().await;
        }
        if round > 0 {
            cloud.stop_hub().await?;
        }
        let name = ["a", "b", "c"][round];
        cloud.patch(&format!("{DEVICES}/{name}0"), &json!({"spec": {"nodeName": "n1"}})).await?;
        cloud.delete(&format!("{DEVICES}/{name}1")).await?;
        cloud.patch(&format!("{DEVICES}/{name}2"), &json!({"spec": {"properties": []}})).await?;
        cloud.patch(&format!("{MODELS}/m2"), &json!({"spec": {"protocol": format!("p{round}")}})).await?;
        // A namesake.
        cloud.delete(&format!("{MODELS}/m1")).await?;
        cloud.create(MODELS, &model("m1")).await?;
        if round > 0 {
            cloud.start_hub("").await?;
            fleet.lead_to(cloud.addresses().websocket);
        }
        if round == 1 {
            fleet.empty(2);
        }
        if round < 2 {
            fleet.start(Behaviour::default(), None);
        }
        wait_same(&cloud, &fleet).await?;
    }
    assert_eq!(wanted(&cloud, "n0").await?.len(), 0);
    // A desired value reaches the node where the device is.
    cloud
        .patch(
            &format!("{DEVICES}/a0"),
            &json!({"spec": {"properties": [{"name": "temperature", "desired": {"value": "3"}}]}}),
        )
        .await?;
    wait_same(&cloud, &fleet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_definitions_everything_else_works_and_devices_come_when_they_are_there() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    let mut definitions = Vec::new();
    for plural in ["devices", "devicemodels", "devicestatuses"] {
        let path = format!("{DEFINITIONS}/{plural}.devices.kubeedge.io");
        let mut definition = cloud.get(&path).await?;
        definition["metadata"] = json!({"name": definition["metadata"]["name"]});
        definitions.push(definition);
        cloud.delete(&path).await?;
        cloud.wait_for(&path, "the definition to go", Value::is_null).await?;
    }
    cloud.start_hub("").await?;
    wait_logged(&["ERROR", "\"devices.devices.kubeedge.io\"", "kubectl apply -f deploy/crds.yaml"]).await?;
    let (edge, _) = cloud.edge("n1").await?;
    let began = std::time::Instant::now();
    cloud.create("/api/v1/namespaces/default/pods", &crate::cloud::pod("web", "n1")).await?;
    row(&edge, "default/pod/web", |_| true).await?;
    assert!(began.elapsed().as_secs() < 8, "{:?}", began.elapsed());
    for definition in &definitions {
        cloud.create(DEFINITIONS, definition).await?;
    }
    let is_known = |list: &Value| list["items"].is_array();
    cloud.wait_for(DEVICES, "the kind", is_known).await?;
    cloud.wait_for(MODELS, "the kind", is_known).await?;
    cloud.create(MODELS, &model("m")).await?;
    cloud.create(DEVICES, &device("d", "n1", "m")).await?;
    row(&edge, "default/devicemodel/m", |_| true).await?;
    row(&edge, "default/device/d", |_| true).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_sees_where_devices_are_and_old_clients_see_their_version() -> Result<()> {
    let cloud = Cloud::start_without_hub().await?;
    cloud.create(DEVICES, &device("d", "n1", "m")).await?;
    let definition = cloud.get(&format!("{DEFINITIONS}/devices.devices.kubeedge.io")).await?;
    let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"].to_string();
    assert!(columns.contains(".spec.nodeName") && columns.contains(".spec.deviceModelRef.name"), "{columns}");
    let old = cloud.get("/apis/devices.kubeedge.io/v1alpha2/namespaces/default/devices/d").await?;
    assert_eq!(old["apiVersion"], "devices.kubeedge.io/v1alpha2");
    assert_eq!(old["spec"]["deviceModelRef"]["name"], "m");
    let now = cloud.get(&format!("{DEVICES}/d")).await?;
    assert_eq!(now["spec"]["nodeName"], "n1");
    let mut wrong = model("wrong");
    wrong["spec"]["properties"][0]["type"] = json!("COLOUR");
    let (status, answer) = cloud.cluster.post(MODELS, &wrong).await?;
    assert_eq!(status, 422, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_switches_devices_off_has_none() -> Result<()> {
    let cloud = Cloud::start_with("  deviceController: {enable: false}\n").await?;
    let (edge, _) = cloud.edge("n1").await?;
    cloud.create(DEVICES, &device("d", "n1", "m")).await?;
    cloud.create("/api/v1/namespaces/default/pods", &crate::cloud::pod("web", "n1")).await?;
    row(&edge, "default/pod/web", |_| true).await?;
    assert_eq!(edge.request(report("d", "temperature", "1")).await?["content"], "OK", "it is not repeated for ever");
    let question = message("twin", "resource", "get", "membership/detail", json!("{}"));
    assert_eq!(edge.request(question).await?["content"], "OK");
    let seen = edge.seen();
    assert!(!seen.rows.contains_key("default/device/d"));
    assert!(seen.pushes("membership/detail").is_empty(), "what is not known is not none");
    Ok(())
}
