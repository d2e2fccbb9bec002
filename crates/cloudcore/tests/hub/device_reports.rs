//! What nodes report of devices, and what becomes of it in `DeviceStatus` objects.

use std::time::Duration;

use anyhow::{Result, ensure};
use edgesim::Fleet;
use serde_json::{Value, json};
use testkit::go_edge::{Behaviour, GoEdge, Seen, message};

use crate::cloud::{Cloud, SOON, wait_logged};
use crate::devices::{DEVICES, device};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const STATUSES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicestatuses";

/// A value of a property, as a Go edge reports it.
pub fn report(name: &str, property: &str, value: &str) -> Value {
    let entry = json!({"actual": {"value": value, "metadata": {"timestamp": 1795399904052_i64}}, "optional": true,
        "metadata": {"type": "float"}, "actual_version": {"cloud": 0, "edge": 1}});
    let content = json!({"event_id": "e", "timestamp": 1, "twin": {property: entry}});
    message("twin", "resource", "update", &format!("device/default/{name}/twin/edge_updated"), content)
}

/// How many of these were confirmed with `OK`.
fn confirmed(seen: &Seen, messages: &[Value]) -> usize {
    let ids: std::collections::HashSet<&str> =
        messages.iter().filter_map(|message| message["header"]["msg_id"].as_str()).collect();
    let is_confirmation = |answer: &&Value| {
        let route = &answer["route"];
        answer["header"]["parent_msg_id"].as_str().is_some_and(|id| ids.contains(id))
            && answer["content"] == "OK"
            && route["source"] == "devicecontroller"
            && route["group"] == "twin"
            && route["operation"] == "response"
    };
    seen.received.iter().filter(is_confirmation).count()
}

async fn wait_confirmed(edge: &GoEdge, messages: &[Value]) -> Result<()> {
    edge.wait("the confirmations", SOON, |seen| (confirmed(seen, messages) == messages.len()).then_some(())).await
}

/// What is reported of a property.
fn reported<'a>(status: &'a Value, property: &str) -> &'a Value {
    let twins = status["status"]["twins"].as_array().into_iter().flatten();
    twins
        .into_iter()
        .find(|twin| twin["propertyName"] == property)
        .map_or(&Value::Null, |twin| &twin["reported"]["value"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_report_keeps_its_value_and_each_is_confirmed_when_it_is_written() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let created = cloud.create(DEVICES, &device("thermo", "n1", "")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").map(drop)).await?;
    let answer = edge.request(report("thermo", "temperature", "23.5")).await?;
    assert_eq!((&answer["content"], &answer["route"]["resource"]), (&json!("OK"), &json!("twin")));
    let status = cloud.get(&format!("{STATUSES}/thermo")).await?;
    let metadata = json!({"timestamp": "1795399904052", "type": "float"});
    let twin = json!({"propertyName": "temperature", "reported": {"value": "23.5", "metadata": metadata}, "observedDesired": {"value": ""}});
    assert_eq!(status["status"], json!({"twins": [twin]}));
    let owner = &status["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["uid"], &owner["controller"]), (&created["metadata"]["uid"], &json!(true)));

    // Another property, the value that shall be, and the state as a text and under its other key.
    let mut humidity = report("thermo", "humidity", "50");
    humidity["content"]["twin"]["humidity"]["expected"] = json!({"value": "40"});
    humidity["content"]["twin"]["unknown"] = json!({"actual": {"value": "1"}});
    let state = json!({"event_id": "e", "Device": {"name": "thermo", "state": "online", "lastOnlineTime": "2026-11-23T02:11:05Z"}});
    let about = "device/default/thermo/state/update";
    let all = [
        humidity,
        message("twin", "resource", "update", about, json!(state.to_string())),
        report("thermo", "unknown", "5"),
    ];
    for message in &all {
        edge.send(message).await?;
    }
    wait_confirmed(&edge, &all).await?;
    let status = cloud.get(&format!("{STATUSES}/thermo")).await?;
    assert_eq!((reported(&status, "temperature"), reported(&status, "humidity")), (&json!("23.5"), &json!("50")));
    assert_eq!(status["status"]["twins"][1]["observedDesired"], json!({"value": "40", "metadata": {"type": "float"}}));
    assert_eq!(
        status["status"]["twins"].as_array().map(Vec::len),
        Some(2),
        "what the device does not have is left out"
    );
    assert_eq!(
        (&status["status"]["state"], &status["status"]["lastOnlineTime"]),
        (&json!("online"), &json!("2026-11-23T02:11:05Z"))
    );

    // Somebody else has deleted it, made it, then changed it: nothing is lost.
    cloud.delete(&format!("{STATUSES}/thermo")).await?;
    edge.request(report("thermo", "humidity", "51")).await?;
    assert_eq!(reported(&cloud.get(&format!("{STATUSES}/thermo")).await?, "humidity"), "51");
    cloud.delete(&format!("{STATUSES}/thermo")).await?;
    let by_hand = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceStatus", "metadata": {"name": "thermo"}, "status": {"state": "ok"}});
    cloud.create(STATUSES, &by_hand).await?;
    edge.request(report("thermo", "temperature", "24")).await?;
    let status = cloud.get(&format!("{STATUSES}/thermo")).await?;
    assert_eq!((reported(&status, "temperature"), &status["status"]["state"]), (&json!("24"), &json!("ok")));
    assert_eq!(status["metadata"]["ownerReferences"][0]["uid"], created["metadata"]["uid"]);
    cloud.patch(&format!("{STATUSES}/thermo"), &json!({"status": {"state": "unhealthy"}})).await?;
    edge.request(report("thermo", "temperature", "25")).await?;
    let status = cloud.get(&format!("{STATUSES}/thermo")).await?;
    assert_eq!((reported(&status, "temperature"), &status["status"]["state"]), (&json!("25"), &json!("unhealthy")));
    // It goes with the device.
    cloud.delete(&format!("{DEVICES}/thermo")).await?;
    cloud.wait_for(&format!("{STATUSES}/thermo"), "the status to go", Value::is_null).await?;
    assert_eq!(edge.seen().faults, Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_node_of_a_device_may_speak_of_it() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let (other, _) = cloud.edge("n2").await?;
    cloud.create(DEVICES, &device("thermo", "n1", "")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").map(drop)).await?;
    let answer = other.request(report("thermo", "temperature", "99")).await?;
    assert_eq!(answer["content"]["ErrStatus"]["code"], 403, "{answer}");
    let status = cloud.cluster.get(&format!("{STATUSES}/thermo")).await;
    ensure!(status.is_err() || status.is_ok_and(|status| status.is_null()), "nothing was written");
    // One of a device that nobody knows is confirmed, so that it is not repeated for ever.
    let answer = other.request(report("nothing", "temperature", "1")).await?;
    assert_eq!(answer["content"], "OK");
    wait_logged(&["WARN", "a device that does not exist", "\"nothing\""]).await?;
    let nonsense = message("twin", "resource", "update", "device/default/thermo/twin/edge_updated", json!("{"));
    let answer = edge.request(nonsense).await?;
    assert_eq!(answer["content"]["ErrStatus"]["code"], 400, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reports_are_few_writes() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    cloud.create(DEVICES, &device("thermo", "n1", "")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").map(drop)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = cloud.requests();
    let began = std::time::Instant::now();
    let reports: Vec<Value> = (0..1000).map(|number| report("thermo", "temperature", &number.to_string())).collect();
    for report in &reports {
        edge.send(report).await?;
    }
    wait_confirmed(&edge, &reports).await?;
    let seconds = began.elapsed().as_secs() + 1;
    let requests = cloud.requests() - before;
    let status = cloud.get(&format!("{STATUSES}/thermo")).await?;
    assert_eq!(reported(&status, "temperature"), "999");
    // One to look, one write a second, and what is not about the device.
    ensure!(requests <= 3 * seconds + 6, "{requests} requests in {seconds} s");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_value_of_every_device_is_in_the_cluster_though_the_cloud_was_killed_meanwhile() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let devices: Vec<(String, String)> =
        (0..6).map(|number| (format!("d{number}"), format!("n{}", number % 2))).collect();
    for (name, node) in &devices {
        cloud.create(DEVICES, &device(name, node, "")).await?;
    }
    let at = edgesim::Cloud { websocket: cloud.addresses().websocket, https: cloud.addresses().https };
    let mut fleet = Fleet::join(at, &cloud.token().await?, ["n0".to_owned(), "n1".to_owned()]).await?;
    fleet.start(edgesim::Behaviour::default(), None);
    fleet.until_synced(2, SOON).await?;
    ensure!(fleet.devices() == devices.len(), "each is on its node");
    fleet.measure_every(Some(Duration::from_millis(20)));
    for round in 1..=2 {
        let have = |count: usize| {
            let measured = fleet.measured();
            measured.len() == devices.len() && measured.values().all(|values| values.len() >= count)
        };
        cloud.cluster.wait("values", SOON, || async { Ok(have(60 * round)) }).await?;
        if round == 1 {
            cloud.kill_hub();
            cloud.start_hub("").await?;
            fleet.lead_to(cloud.addresses().websocket);
            fleet.until_synced(2, SOON).await?;
        }
    }
    fleet.measure_every(None);
    cloud.cluster.wait("all to be confirmed", SOON, || async { Ok(fleet.untold() == 0) }).await?;
    for (name, values) in fleet.measured() {
        let name = name.strip_prefix("default/").unwrap_or_default();
        let status = cloud.get(&format!("{STATUSES}/{name}")).await?;
        assert_eq!(reported(&status, "temperature"), &json!((values.len() - 1).to_string()), "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_its_devices_is_answered() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    cloud.create(DEVICES, &device("thermo", "n1", "")).await?;
    cloud.create(DEVICES, &device("other", "n2", "")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").map(drop)).await?;
    let asked =
        json!({"event_type": "group_membership_event", "event_id": "e", "operation": "detail", "group_id": "n1"});
    let question = message("twin", "resource", "get", "membership/detail", json!(asked.to_string()));
    let answer = edge.request(question).await?;
    assert_eq!((&answer["content"], &answer["route"]["group"]), (&json!("OK"), &json!("twin")));
    edge.wait("the list", SOON, |seen| {
        let members = seen.pushes("membership/detail").last()?["content"]["devices"].clone();
        (members == json!([{"id": "default/thermo", "name": "thermo"}])).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_cannot_store_of_a_device_is_told_on_the_device() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (first, credentials) = cloud.edge("n1").await?;
    drop(first);
    let silent = Behaviour { acknowledge: false, ..Behaviour::default() };
    let websocket = cloud.addresses().websocket;
    let edge = GoEdge::connect_with(websocket, &credentials, "n1", silent, Default::default()).await?;
    let created = cloud.create(DEVICES, &device("thermo", "n1", "")).await?;
    let push =
        edge.wait("the device", SOON, |seen| seen.pushes("default/device/thermo").last().map(|m| (*m).clone())).await?;
    let mut error = message("meta", "resource", "error", "default/device/thermo", json!("the disk is full"));
    error["header"]["parent_msg_id"] = push["header"]["msg_id"].clone();
    edge.send(&error).await?;
    let events = "/api/v1/namespaces/default/events";
    let is_told = |event: &Value| {
        event["reason"] == "NotStored"
            && event["involvedObject"]["kind"] == "Device"
            && event["involvedObject"]["uid"] == created["metadata"]["uid"]
    };
    cloud
        .wait_for(events, "the event", |list| list["items"].as_array().is_some_and(|all| all.iter().any(is_told)))
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_now_is_tried_again_and_confirmed_only_then() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    cloud.create(DEVICES, &device("stubborn", "n1", "")).await?;
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/stubborn").map(drop)).await?;
    let path = format!("{DEFINITIONS}/devicestatuses.devices.kubeedge.io");
    let mut definition = cloud.get(&path).await?;
    definition["metadata"] = json!({"name": definition["metadata"]["name"]});
    cloud.delete(&path).await?;
    cloud.wait_for(&path, "the definition to go", Value::is_null).await?;
    let reports = ["1", "2"].map(|value| report("stubborn", "temperature", value));
    edge.send(&reports[0]).await?;
    wait_logged(&["WARN", "status of a device could not be written", "\"stubborn\""]).await?;
    edge.send(&reports[1]).await?;
    assert_eq!(confirmed(&edge.seen(), &reports), 0);
    cloud.create(DEFINITIONS, &definition).await?;
    wait_confirmed(&edge, &reports).await?;
    assert_eq!(reported(&cloud.get(&format!("{STATUSES}/stubborn")).await?, "temperature"), "2");
    // Of a device that is gone nothing is written, and nobody waits for it.
    cloud.delete(&format!("{DEVICES}/stubborn")).await?;
    edge.wait("its end", SOON, |seen| (!seen.rows.contains_key("default/device/stubborn")).then_some(())).await?;
    assert_eq!(edge.request(report("stubborn", "temperature", "3")).await?["content"], "OK");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_events_of_its_own_devices_and_of_no_other() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let (other, _) = cloud.edge("n2").await?;
    let uid = cloud.create(DEVICES, &device("thermo", "n1", "")).await?["metadata"]["uid"].clone();
    edge.wait("the device", SOON, |seen| seen.rows.get("default/device/thermo").map(drop)).await?;
    let event = |name: &str, about: &Value| {
        json!({"metadata": {"name": name, "namespace": "default"}, "involvedObject": about, "type": "Warning",
            "reason": "ReportRefused", "message": "m", "count": 1, "source": {"component": "devicetwin"}})
    };
    let insert = |name: &str, about: &Value| {
        message("edged", "meta", "insert", &format!("default/event/{name}"), event(name, about))
    };
    let about = json!({"kind": "Device", "apiVersion": "devices.kubeedge.io/v1beta1", "namespace": "default",
        "name": "thermo", "uid": uid});
    let with = |field: &str, value: &str| {
        let mut about = about.clone();
        about[field] = json!(value);
        about
    };
    other.send(&insert("of-another-node", &about)).await?;
    wait_logged(&["WARN", "a request was refused", "of-another-node", "the device is not bound to it"]).await?;
    for (name, about, why) in [
        ("of-another-uid", with("uid", "u"), "no such device with this uid"),
        ("of-nobody", with("name", "nobody"), "no such device with this uid"),
        ("of-a-path", with("name", "../thermo"), "no such device with this uid"),
        ("of-another-group", with("apiVersion", "v1"), "neither about it nor about a pod or a device"),
        ("of-a-model", with("kind", "DeviceModel"), "neither about it nor about a pod or a device"),
        ("of-another-namespace", with("namespace", "web"), "no such device with this uid"),
    ] {
        edge.send(&insert(name, &about)).await?;
        wait_logged(&["WARN", "a request was refused", name, why]).await?;
    }
    let mut elsewhere = insert("elsewhere", &about);
    elsewhere["route"]["resource"] = json!("kube-system/event/elsewhere");
    edge.send(&elsewhere).await?;
    wait_logged(&["WARN", "kube-system/event/elsewhere", "in the namespace of its device"]).await?;

    edge.send(&insert("own", &about)).await?;
    let patch = json!({"count": 2}).to_string();
    let again = json!({"event": event("own", &about), "patchData": patch});
    edge.send(&message("edged", "meta", "patch", "default/event/own", again)).await?;
    let path = "/api/v1/namespaces/default/events/own";
    let told = cloud.wait_for(path, "the event, counted", |event| event["count"] == 2).await?;
    assert_eq!((&told["involvedObject"], &told["reason"]), (&about, &json!("ReportRefused")));
    let all = cloud.get("/api/v1/namespaces/default/events").await?;
    let refused = all["items"].as_array().into_iter().flatten().filter(|event| event["reason"] == "ReportRefused");
    assert_eq!(refused.count(), 1, "{all}");
    Ok(())
}
