//! What devices say that is wrong: each is answered, told to users once and counted, and disturbs nobody.

use super::*;

/// What an update with this entry of property `t` says.
fn twin(entry: &str) -> String {
    format!(r#"{{"event_id":"e1","twin":{{"t":{entry}}}}}"#)
}

#[tokio::test]
async fn each_bad_request_is_answered_and_told_to_users() {
    let mut world = World::start();
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.hear().await;
    let of = |device: &str, what: &str| format!("$hw/events/device/{device}/{what}");
    let own = |what: &str| of("default/t1", what);
    let long = format!(r#"{{"event_id":"{}"}}"#, "x".repeat(10 << 20));
    let actual =
        |value: &str, kind: &str| twin(&format!(r#"{{"actual":{{"value":{value}}},"metadata":{{"type":"{kind}"}}}}"#));
    let name = |name: &str| format!(r#"{{"event_id":"e1","twin":{{"{name}":{{"actual":{{"value":"1"}}}}}}}}"#);
    let no_json = Some("the payload is no request as JSON");
    let no_device = (404, None);
    let (update, state) = ("twin/update", "state/update");
    // Topic, payload, code and, if users hear of it, what.
    for (topic, payload, (code, event)) in [
        (own(update), "no JSON".to_owned(), (400, no_json)),
        (own(update), long.clone(), (400, Some("the payload has more than 1048576 bytes"))),
        (own(update), "21".to_owned(), (400, no_json)),
        (own(update), "{}".to_owned(), (400, Some("the payload has no \"twin\""))),
        (own(update), r#"{"event_id":"e1","twin":[]}"#.to_owned(), (400, no_json)),
        (own(update), actual("21", "int"), (400, no_json)),
        (own(update), actual("\"warm\"", "int"), (400, Some("property \"t\": the value is no int"))),
        (own(update), actual("\"9223372036854775808\"", "int"), (400, Some("property \"t\": the value is no int"))),
        (own(update), actual("\"1e999\"", "float"), (400, Some("property \"t\": the value is no float"))),
        (own(update), actual("\"NaN\"", "float"), (400, Some("property \"t\": the value is no float"))),
        (own(update), actual("\"yes\"", "boolean"), (400, Some("property \"t\": the value is no boolean"))),
        (own(update), actual("\"1\"", "secret"), (400, Some("property \"t\": there is no such type"))),
        (own(update), actual("\"wärm\"", "string"), (400, Some("property \"t\": a value has at most 512"))),
        (own(update), name("temperätur"), (400, Some("property \"temperätur\": a name has"))),
        (own(update), name(""), (400, Some("property \"\": a name has"))),
        (own("twin/cloud_updated"), "x".to_owned(), (400, no_json)),
        (own("twin/get"), "x".to_owned(), (400, None)),
        (own(state), "x".to_owned(), (400, no_json)),
        (own(state), long.clone(), (400, Some("the payload has more than 1048576 bytes"))),
        (own(state), r#"{"state":"secret"}"#.to_owned(), (400, Some("there is no such state, only online"))),
        (own(state), r#"{"state":1}"#.to_owned(), (400, no_json)),
        // Of another node, of nobody, of a name that nobody can have.
        (of("default/elsewhere", update), actual("\"1\"", "int"), no_device),
        (of("elsewhere", state), r#"{"state":"ok"}"#.to_owned(), no_device),
        (of("default/tä", update), actual("\"1\"", "int"), no_device),
        (of("a/b/c", update), actual("\"1\"", "int"), no_device),
        (of("T1", "twin/get"), "{}".to_owned(), no_device),
        (of("", state), long.clone(), no_device),
    ] {
        let shown = &payload[..payload.len().min(80)];
        world.say(&topic, &payload).await;
        let (told_on, told) = world.hear().await;
        assert!(told_on.ends_with(if topic.ends_with("cloud_updated") { "update/result" } else { "/result" }));
        assert_eq!(told["code"], code, "{topic} {shown}: {told}");
        assert!(told["reason"].as_str().is_some_and(|reason| (10..1000).contains(&reason.len())), "{shown}: {told}");
        let Some(text) = event else { continue };
        let (_, event) = world.event().await;
        let event = if event["event"].is_object() { &event["event"] } else { &event };
        let message = event["message"].as_str().unwrap_or_default();
        assert!(message.contains(text) && !message.contains("secret"), "{topic} {shown}: {message}");
        let reason = if topic.ends_with("cloud_updated") { "DesiredValueRefused" } else { "ReportRefused" };
        assert_eq!((&event["reason"], &event["type"]), (&json!(reason), &json!("Warning")));
        assert_eq!(
            (&event["metadata"]["namespace"], &event["source"]["component"]),
            (&json!("default"), &json!("devicetwin"))
        );
        let about = json!({"kind": "Device", "apiVersion": "devices.kubeedge.io/v1beta1", "namespace": "default",
            "name": "t1", "uid": "u1"});
        assert_eq!(event["involvedObject"], about);
    }
    // Taken as it is: a property that the Device does not name (as KubeEdge v1.23), with slashes; times are the node's.
    let future = r#"{"event_id":"e1","timestamp":99999999999999,"twin":
        {"a/b":{"actual":{"value":"1","metadata":{"timestamp":99999999999999}}}}}"#;
    world.say(&own(update), future).await;
    let (_, told) = world.hear().await;
    assert_eq!(told["twin"]["a/b"]["actual"]["value"], "1", "{told}");
    let at = told["twin"]["a/b"]["actual"]["metadata"]["timestamp"].as_i64().expect("a time");
    assert!((compose::now() - at).abs() < 60_000, "{at}");
}

#[tokio::test]
async fn a_flood_from_one_device_costs_few_events_and_holds_nobody_up() {
    let mut world = World::start();
    for (name, uid) in [("t1", "u1"), ("t2", "u2")] {
        world.object(operation::INSERT, name, uid, &[]).await;
        world.hear().await;
    }
    for number in 0..1000 {
        let payload =
            format!(r#"{{"twin":{{"t{}":{{"actual":{{"value":"warm"}},"metadata":{{"type":"int"}}}}}}}}"#, number);
        world.say(UPDATE, &payload).await;
        assert_eq!(world.hear().await.1["code"], 400);
    }
    // The same again and again is one event.
    for _ in 0..3 {
        world.say("$hw/events/device/t2/twin/update", "x").await;
        assert_eq!(world.hear().await.1["code"], 400);
    }
    let mut of_the_flood = 0;
    let (verb, event) = loop {
        let (verb, event) = world.event().await;
        if event["involvedObject"]["uid"] != "u1" {
            break (verb, event);
        }
        of_the_flood += 1;
    };
    assert_eq!(of_the_flood, 25, "the rest is held back");
    assert_eq!((verb.as_str(), &event["involvedObject"]["name"]), (operation::INSERT, &json!("t2")));
    for count in [2, 3] {
        let (verb, patch) = world.event().await;
        assert_eq!((verb.as_str(), &patch["event"]["count"]), (operation::PATCH, &json!(count)));
    }
}

#[tokio::test]
async fn of_a_device_that_is_not_in_the_cluster_there_are_no_events() {
    let mut world = World::start();
    let content = Content::json(&json!({"added_devices": [{"id": "default/t1", "name": "t1"}]})).expect("JSON");
    world
        .from(compose::message(source::DEVICE_CONTROLLER, group::TWIN, operation::UPDATE, "membership", content))
        .await;
    world.hear().await;
    world.say(UPDATE, "x").await;
    assert_eq!(world.hear().await.1["code"], 400);
    // The object comes: of this refusal there is one.
    world.object(operation::INSERT, "t1", "u1", &[]).await;
    world.settle().await;
    world.say("$hw/events/device/t1/state/update", "x").await;
    world.hear().await;
    let (verb, event) = world.event().await;
    assert_eq!((verb.as_str(), &event["count"]), (operation::INSERT, &json!(1)));
    assert!(event["message"].as_str().is_some_and(|text| text.starts_with("state/update: ")));
}

#[tokio::test]
async fn a_desired_value_out_of_the_bounds_of_the_model_is_told_on_the_device() {
    let mut world = World::start();
    let property = |name: &str, kind: &str, minimum: &str, maximum: &str| json!({"name": name, "type": kind, "minimum": minimum, "maximum": maximum});
    let properties = json!([
        property("t", "FLOAT", "5", "30"),
        property("n", "INT", "", "7"),
        property("s", "STRING", "5", "30"),
        property("any", "DOUBLE", "", ""),
    ]);
    let object = json!({"metadata": {"name": "m", "namespace": "default"}, "spec": {"properties": properties}});
    world.store(operation::INSERT, kind::DEVICE_MODEL, &object).await;
    let device = |wishes: &[(&str, &str)]| {
        let properties: Vec<Value> =
            wishes.iter().map(|(name, value)| json!({"name": name, "desired": {"value": value}})).collect();
        json!({"metadata": {"name": "t1", "namespace": "default", "uid": "u1"},
            "spec": {"deviceModelRef": {"name": "m"}, "properties": properties}})
    };
    let good = [("t", "30"), ("n", "-9"), ("s", "99"), ("any", "1e9"), ("other", "99")];
    world.store(operation::INSERT, kind::DEVICE, &device(&good)).await;
    let expected = |told: &Value| -> Vec<(String, String)> {
        let all = told["twin"].as_object().expect("properties").iter();
        all.map(|(name, twin)| (name.clone(), twin["expected"]["value"].as_str().expect("a text").to_owned())).collect()
    };
    let mut stands: Vec<_> = good.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    stands.sort();
    for (name, value, text) in [
        ("t", "30.5", "property \"t\": the value is out of bounds: the DeviceModel allows 5 to 30; tried again"),
        ("n", "8", "property \"n\": the value is out of bounds: the DeviceModel allows anything to 7; tried again"),
    ] {
        let mut wishes = good;
        wishes.iter_mut().filter(|wish| wish.0 == name).for_each(|wish| wish.1 = value);
        world.store(operation::UPDATE, kind::DEVICE, &device(&wishes)).await;
        let (_, event) = world.event().await;
        assert_eq!(event["reason"], "DesiredValueRefused");
        assert!(event["message"].as_str().is_some_and(|message| message.starts_with(text)), "{event}");
        world.say("$hw/events/device/t1/twin/get", "{}").await;
        let told = loop {
            let (topic, told) = world.hear().await;
            if topic.ends_with("twin/get/result") {
                break told;
            }
        };
        assert_eq!(expected(&told), stands, "the device is to stay what it was");
        world.store(operation::UPDATE, kind::DEVICE, &device(&good)).await;
    }
}

#[tokio::test]
async fn a_desired_value_is_tried_again_when_the_model_changes() {
    let mut world = World::start();
    let model = |kind: &str, maximum: &str| {
        let properties = json!([{"name": "t", "type": kind, "maximum": maximum}]);
        json!({"metadata": {"name": "m", "namespace": "default"}, "spec": {"properties": properties}})
    };
    let device = |name: &str, model: &str| {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"deviceModelRef": {"name": model}, "properties": [{"name": "t", "desired": {"value": "40.5"}}]}})
    };
    world.store(operation::INSERT, kind::DEVICE_MODEL, &model("FLOAT", "30")).await;
    world.store(operation::INSERT, kind::DEVICE, &device("t1", "m")).await;
    world.store(operation::INSERT, kind::DEVICE, &device("t2", "other")).await;
    world.settle().await;
    assert!(world.event().await.1["message"].as_str().is_some_and(|text| text.contains("allows anything to 30")));
    // Still not: it is told again.
    world.store(operation::UPDATE, kind::DEVICE_MODEL, &model("INT", "50")).await;
    world.settle().await;
    assert!(world.event().await.1["message"].as_str().is_some_and(|text| text.contains("the value is no int")));
    world.restart().await;
    world.store(operation::UPDATE, kind::DEVICE_MODEL, &model("FLOAT", "50")).await;
    let (topic, told) = world.hear().await;
    assert_eq!(topic, "$hw/events/device/default/t1/twin/update/document");
    assert_eq!(told["twin"]["t"]["current"]["expected"]["value"], "40.5");
    assert_eq!(world.hear().await.1["delta"], json!({"t": "40.5"}));
    // What is taken stays, whatever the model becomes.
    world.store(operation::UPDATE, kind::DEVICE_MODEL, &model("FLOAT", "20")).await;
    world.store(operation::DELETE, kind::DEVICE_MODEL, &model("FLOAT", "20")).await;
    world.say("$hw/events/device/t1/twin/get", "{}").await;
    let (topic, told) = world.hear().await;
    assert!(topic.ends_with("/twin/get/result"), "{topic}");
    assert_eq!(told["twin"]["t"]["expected"]["value"], "40.5");
}
