//! DeviceTwin in a world of its own.

use std::collections::BTreeSet;

use beehive::compose;
use serde_json::{Value, json};
use wire::{Content, source};

mod history;
mod refusals;

use super::*;
use crate::device_world::{DEADLINE, World};

fn update(value: &str) -> String {
    json!({"event_id": "e1", "twin": {"t": {"actual": {"value": value}, "metadata": {"type": "int"}}}}).to_string()
}

const UPDATE: &str = "$hw/events/device/default/t1/twin/update";

#[tokio::test]
async fn a_device_comes_with_its_object_and_goes_with_it() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    let (topic, told) = world.hear().await;
    assert_eq!(topic, "$hw/events/node/go-edge/membership/updated");
    assert_eq!(told["added_devices"], json!([{"id": "default/t1", "name": "t1"}]));
    assert_eq!(told["removed_devices"], Value::Null);
    world.object(operation::DELETE, "t1", "u1", &[]).await;
    let (_, told) = world.hear().await;
    assert_eq!(told["removed_devices"], json!([{"id": "default/t1", "name": "t1"}]));
    world.say(UPDATE, &update("1")).await;
    let (topic, told) = world.hear().await;
    assert_eq!((topic.as_str(), &told["code"]), ("$hw/events/device/default/t1/twin/update/result", &json!(404)));
}

#[tokio::test]
async fn what_happened_to_objects_while_it_did_not_run_is_found_at_the_start() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    let object = json!({"metadata": {"name": "t2", "namespace": "default", "uid": "u2"}}).to_string().into_bytes();
    let job = move |c: &store::rusqlite::Connection| {
        c.execute("DELETE FROM meta", [])?;
        c.execute("INSERT INTO meta VALUES ('default/device/t2', 'device', 'u2', 1, ?1)", [object]).map(drop)
    };
    world.database().write(job).await.expect("stored");
    world.restart().await;
    let told = [world.hear().await.1, world.hear().await.1];
    let names: BTreeSet<String> = told.iter().map(|told| told["added_devices"][0]["name"].to_string()).collect();
    assert_eq!(names, BTreeSet::from(["\"t2\"".to_owned(), "null".to_owned()]), "{told:?}");
    world.say("$hw/events/node/any/membership/get", r#"{"event_id":"m1"}"#).await;
    let (topic, told) = world.hear().await;
    assert_eq!(topic, "$hw/events/node/go-edge/membership/get/result");
    assert_eq!((&told["event_id"], &told["devices"]), (&json!("m1"), &json!([{"id": "default/t2", "name": "t2"}])));
}

#[tokio::test]
async fn an_answered_update_survives_a_kill_and_is_told_to_the_cloud() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    world.say(UPDATE, &update("21")).await;
    let (topic, told) = world.hear().await;
    assert_eq!((topic.as_str(), &told["event_id"]), ("$hw/events/device/default/t1/twin/update/result", &json!("e1")));
    world.restart().await;
    world.link(true).await;
    let report = world.report().await;
    assert_eq!(report.route.resource, "device/default/t1/twin/edge_updated");
    let content: Value = report.content.parse().expect("JSON");
    assert_eq!(content["twin"]["t"]["actual"]["value"], "21");
    assert_eq!(content["twin"]["t"]["actual_version"], json!({"cloud": 0, "edge": 1}));
    world.confirm(&report).await;
    // What was confirmed is not told again; the state is, which comes later.
    world.say("$hw/events/device/t1/state/update", r#"{"event_id":"s","State":"online"}"#).await;
    let report = world.report().await;
    assert_eq!(report.route.resource, "device/default/t1/state/update");
    assert!(report.content.raw().starts_with(b"\"{"), "a text that holds JSON");
    let state: Value = report.content.parse().expect("JSON");
    assert_eq!((&state["device"]["name"], &state["device"]["state"]), (&json!("t1"), &json!("online")));
    assert!(state["device"]["lastOnlineTime"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 20));
}

#[tokio::test]
async fn a_device_that_the_cloud_refuses_makes_way_for_others() {
    let mut world = World::start();
    let all: Vec<String> = (0..=reports::MAX_IN_FLIGHT).map(|number| format!("d{number}")).collect();
    let members: Vec<Value> = all.iter().map(|name| json!({"id": format!("default/{name}"), "name": name})).collect();
    let content = Content::json(&json!({"added_devices": members})).expect("JSON");
    world
        .from(compose::message(source::DEVICE_CONTROLLER, group::TWIN, operation::UPDATE, "membership", content))
        .await;
    world.hear().await;
    for name in &all {
        world.say(&format!("$hw/events/device/{name}/state/update"), r#"{"state":"ok"}"#).await;
    }
    world.link(true).await;
    let mut told = BTreeSet::new();
    for _ in 0..reports::MAX_IN_FLIGHT {
        let report = world.report().await;
        if told.is_empty() {
            let mut refusal = compose::response(&report, Content::text("no"));
            (refusal.route.group, refusal.route.operation) = (group::TWIN.to_owned(), operation::ERROR.to_owned());
            world.from(refusal).await;
        }
        told.insert(report.route.resource);
    }
    assert!(told.insert(world.report().await.route.resource), "the last one, too");
}

#[tokio::test]
async fn a_wish_of_the_cloud_reaches_the_device_once() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[("t", "20")]).await;
    world.hear().await;
    let (topic, told) = world.hear().await;
    assert_eq!(topic, "$hw/events/device/default/t1/twin/update/document");
    assert_eq!(told["twin"]["t"]["current"]["expected"]["value"], "20");
    let (topic, told) = world.hear().await;
    assert_eq!(topic, "$hw/events/device/default/t1/twin/update/delta");
    assert_eq!(told["delta"], json!({"t": "20"}));
    // Nothing new in it; the next is.
    world.object(operation::UPDATE, "t1", "u1", &[("t", "20")]).await;
    world.object(operation::UPDATE, "t1", "u1", &[("t", "25")]).await;
    assert_eq!(world.hear().await.1["twin"]["t"]["last"]["expected"]["value"], "20");
    assert_eq!(world.hear().await.1["delta"], json!({"t": "25"}));
    world.link(true).await;
    let content: Value = world.report().await.content.parse().expect("JSON");
    assert_eq!(content["twin"]["t"]["expected"]["value"], "25");
    assert_eq!(content["twin"]["t"]["expected_version"], json!({"cloud": 2, "edge": 0}));
}

#[tokio::test]
async fn another_device_of_the_same_name_begins_anew() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    world.say(UPDATE, &update("1")).await;
    world.hear().await;
    world.hear().await;
    world.object(operation::UPDATE, "t1", "u2", &[]).await;
    assert!(world.hear().await.1["removed_devices"].is_array());
    assert!(world.hear().await.1["added_devices"].is_array());
    world.restart().await;
    world.say("$hw/events/device/t1/twin/get", r#"{"event_id":"g"}"#).await;
    assert_eq!(world.hear().await.1["twin"], json!({}));
}

#[tokio::test]
async fn bad_requests_are_answered_and_disturb_nobody() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    let of = |what: &str| format!("$hw/events/device/default/t1/{what}");
    for (topic, payload, result, code) in [
        (of("twin/update"), "no JSON", of("twin/update/result"), 400),
        (of("twin/update"), "{}", of("twin/update/result"), 400),
        (
            of("twin/update"),
            r#"{"twin":{"t":{"actual":{"value":"warm"},"metadata":{"type":"int"}}}}"#,
            of("twin/update/result"),
            400,
        ),
        (of("twin/get"), "[", of("twin/get/result"), 400),
        (of("state/update"), r#"{"state":"weird"}"#, of("state/update/result"), 400),
        (of("state/update"), "{}", of("state/update/result"), 400),
        (
            "$hw/events/device/nobody/state/update".to_owned(),
            r#"{"state":"ok"}"#,
            "$hw/events/device/default/nobody/state/update/result".to_owned(),
            404,
        ),
        (
            "$hw/events/node/go-edge/membership/get".to_owned(),
            "bad",
            "$hw/events/node/go-edge/membership/get/result".to_owned(),
            400,
        ),
    ] {
        world.say(&topic, payload).await;
        let (told_on, told) = world.hear().await;
        assert_eq!((told_on, &told["code"]), (result, &json!(code)), "{topic} {payload}");
        assert!(told["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{told}");
    }
    world.say("$hw/events/device/a/b/c/twin/other", "x").await;
    world.say(UPDATE, &update("1")).await;
    assert_eq!(world.hear().await.1["twin"]["t"]["actual"]["value"], "1");
}

#[tokio::test]
async fn a_go_clouds_membership_counts_until_the_object_comes() {
    let mut world = World::start();
    let member = |verb: &str| {
        let content = json!({verb: [{"id": "default/t1", "name": "t1"}]});
        let content = Content::json(&content).expect("JSON");
        compose::message(source::DEVICE_CONTROLLER, group::TWIN, operation::UPDATE, "membership", content)
    };
    world.from(member("added_devices")).await;
    assert!(world.hear().await.1["added_devices"].is_array());
    world.say(UPDATE, &update("1")).await;
    world.hear().await;
    world.hear().await;
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    // It is there already, and goes with its object.
    world.from(member("removed_devices")).await;
    world.say("$hw/events/device/t1/twin/get", "{}").await;
    assert_eq!(world.hear().await.1["twin"]["t"]["actual"]["value"], "1");
    world.object(operation::DELETE, "t1", "u1", &[]).await;
    assert!(world.hear().await.1["removed_devices"].is_array());
}

#[tokio::test]
async fn a_device_may_have_membership_in_its_name() {
    let mut world = World::start();
    world.object(operation::INSERT, "membership-reader", "u1", &[]).await;
    assert_eq!(world.hear().await.1["added_devices"][0]["name"], "membership-reader");
}

#[tokio::test]
async fn a_wish_that_cannot_be_taken_is_tried_again_with_the_next_change() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[("t", "not a number")]).await;
    world.hear().await;
    world.object(operation::UPDATE, "t1", "u1", &[("t", "7")]).await;
    assert_eq!(world.hear().await.1["twin"]["t"]["current"]["expected"]["value"], "7");
}

#[tokio::test]
async fn after_a_failure_of_the_database_nothing_is_told_that_was_not_stored_and_the_rest_goes_on() {
    let mut world = World::start();
    world.link(true).await;
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    let sql = |sql: &'static str| {
        let database = world.database();
        async move { database.write(move |c| c.execute_batch(sql)).await.expect("done") }
    };
    sql("CREATE TRIGGER full BEFORE INSERT ON property BEGIN SELECT RAISE(ABORT, 'no room'); END").await;
    let gone = sql("DROP TRIGGER full; ALTER TABLE property RENAME TO away");
    let back = sql("ALTER TABLE away RENAME TO property");
    world.say(UPDATE, &update("1")).await;
    let (_, told) = world.hear().await;
    assert_eq!((&told["code"], &told["event_id"]), (&json!(500), &json!("e1")));
    // Neither written nor read: the module is started again until it can be.
    gone.await;
    world.say(UPDATE, &update("2")).await;
    let failures = world.running().failures.clone();
    tokio::time::timeout(DEADLINE, failures.notified()).await.expect("it fails");
    back.await;
    let answered = async {
        loop {
            world.say(UPDATE, &update("3")).await;
            if world.hear().await.1["twin"]["t"]["actual"]["value"] == "3" {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.expect("goes on");
    let content: Value = world.report().await.content.parse().expect("JSON");
    assert_eq!(content["twin"]["t"]["actual"]["value"], "3", "it knows that the link stands");
}
