//! What mappers report.

use prost::Message as _;

use super::*;

#[tokio::test]
async fn a_report_is_answered_when_it_is_stored_or_refused() {
    let mut world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("d", "stub", "1")).await;
    world.tells("d", "t", "21").await.expect("stored");
    assert_eq!(world.stored("default/d", "t").as_deref(), Some("21"));
    let refused = world.tells("d", "t", "warm").await.expect_err("no int");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("\"t\""), "{}", refused.message());
    assert_eq!(world.tells("nobody", "t", "1").await.expect_err("not there").code(), Code::NotFound);
    assert_eq!(world.tells("a/b", "t", "1").await.expect_err("no name").code(), Code::InvalidArgument);
    world.kill().await;
    assert_eq!(world.stored("default/d", "t").as_deref(), Some("21"), "by whoever looks");
}

#[tokio::test]
async fn a_desired_value_that_cannot_be_keeps_no_report_away() {
    let world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("d", "stub", "1")).await;
    for (observed, value) in [("2", "2"), ("hot", "21"), ("1 2", "22")] {
        world.tells_with("d", "t", observed, value).await.expect("what is reported is an int");
        assert_eq!(world.stored("default/d", "t").as_deref(), Some(value));
        assert_eq!(world.stored_side("default/d", "t", "expected").as_deref(), Some("2"), "{observed}");
    }
    let refused = world.tells_with("d", "t", "3", "warm").await.expect_err("no int");
    assert!(refused.message().contains("warm"), "{}", refused.message());
    assert_eq!(world.stored_side("default/d", "t", "expected").as_deref(), Some("2"), "all or nothing");
}

#[tokio::test]
async fn reports_of_a_property_with_a_history_are_kept() {
    let mut world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    let mut device = device("d", "stub", "1");
    device["metadata"]["annotations"] = json!({"devices.kubeedge.io/history": "t=4"});
    world.put(kind::DEVICE, &device).await;
    // Also a value that stays what it is, but none that is refused.
    for value in ["1", "2", "2"] {
        world.tells("d", "t", value).await.expect("stored");
    }
    world.tells("d", "t", "warm").await.expect_err("no int");
    assert_eq!(world.history("d", "t"), ["1", "2", "2"]);
    world.restart().await;
    for value in ["3", "4"] {
        world.tells_with("d", "t", "1", value).await.expect("stored");
    }
    assert_eq!(world.history("d", "t"), ["2", "2", "3", "4"]);
}

#[tokio::test]
async fn states_and_registrations_that_make_no_sense_are_refused() {
    let world = World::start();
    world.put(kind::DEVICE_MODEL, &model("m", "C")).await;
    world.put(kind::DEVICE, &device("d", "stub", "1")).await;
    let mut client = world.client().await;
    for (device, state, code) in [
        ("d", "online", Code::Ok),
        ("d", "OK", Code::Ok),
        ("d", "strange", Code::InvalidArgument),
        ("d", "", Code::InvalidArgument),
        ("", "online", Code::InvalidArgument),
        ("nobody", "online", Code::NotFound),
    ] {
        let (device_name, state) = (device.to_owned(), state.to_owned());
        let request = proto::ReportDeviceStatesRequest { device_name, state, device_namespace: String::new() };
        let answer =
            client.report_device_states(request.clone()).await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(answer, code, "{request:?}");
    }
    let info = |protocol: &str, address: &str| proto::MapperInfo {
        protocol: protocol.to_owned(),
        address: address.as_bytes().to_vec(),
        ..Default::default()
    };
    let long = format!("/{}", "a".repeat(200));
    for mapper in [None, Some(info("", "/a")), Some(info("p", "")), Some(info("p", "a")), Some(info("p", &long))] {
        let request = proto::MapperRegisterRequest { with_data: true, mapper };
        let refused = client.mapper_register(request.clone()).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
    }
    // A mapper without devices makes room for another.
    for number in 0..=MAX_MAPPERS {
        world.put(kind::DEVICE, &device(&format!("d{number}"), &format!("p{number}"), "1")).await;
    }
    let mut register = async |protocol: &str| {
        let request = proto::MapperRegisterRequest { with_data: true, mapper: Some(info(protocol, "/nowhere")) };
        client.mapper_register(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    for number in 0..MAX_MAPPERS {
        assert_eq!(register(&format!("p{number}")).await, Code::Ok);
    }
    let last = format!("p{MAX_MAPPERS}");
    assert_eq!(register(&last).await, Code::ResourceExhausted);
    world.delete(kind::DEVICE, "d7").await;
    assert_eq!(register(&last).await, Code::Ok);
    assert_eq!(register("p7").await, Code::ResourceExhausted);
}

/// What a mapper said to KubeEdge v1.23.1, and what it is told here.
#[tokio::test]
async fn recorded_reports_get_the_recorded_answers() {
    let world = World::start();
    for line in include_str!("../../../../dmi/tests/recorded.jsonl").lines().take(2) {
        let record: Value = serde_json::from_str(line).expect("JSON");
        let kind = if record["model"].is_null() { kind::DEVICE_MODEL } else { kind::DEVICE };
        world.put(kind, &record["object"]).await;
    }
    let mut client = world.client().await;
    for line in include_str!("../recorded-reports.jsonl").lines() {
        let record: Value = serde_json::from_str(line).expect("JSON");
        let text = record["request"].as_str().expect("recorded");
        let request: Vec<u8> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect();
        let request = request.as_slice();
        let answer = match record["method"].as_str().expect("recorded") {
            "ReportDeviceStates" => {
                let request = proto::ReportDeviceStatesRequest::decode(request).expect("decoded");
                client.report_device_states(request).await.map(drop)
            }
            _ => {
                let request = proto::ReportDeviceStatusRequest::decode(request).expect("decoded");
                client.report_device_status(request).await.map(drop)
            }
        };
        // KubeEdge answers before it has looked: what is wrong with a report is not told.
        let differs = record["differs"].as_bool() == Some(true);
        assert_eq!(answer.is_ok(), record["ok"].as_bool().expect("recorded") != differs, "{line}: {answer:?}");
    }
    assert_eq!(world.stored("default/machine-1", "temperature").as_deref(), Some("20.5"));
    assert_eq!(world.stored("default/machine-1", "unlisted").as_deref(), Some("2"));
}
