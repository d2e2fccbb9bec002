//! What KubeEdge v1.23.1's edgecore said to a mapper, and what that answered (`recorded.jsonl`, base64).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mapper::simulated::Virtual;
use prost::Message;
use serde_json::Value as Json;

use crate::support::Running;

#[tokio::test]
async fn every_recorded_request_is_answered_as_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let mapper = Running::start(folder.path(), Virtual);
    let mut client = mapper.client().await;
    let mut replayed = 0;
    for line in include_str!("recorded.jsonl").lines() {
        let record: Json = serde_json::from_str(line).unwrap();
        let bytes = STANDARD.decode(record["request"].as_str().unwrap()).unwrap();
        // Each method has its types.
        macro_rules! call {
            ($method:ident) => {
                client
                    .$method(Message::decode(&*bytes).map(tonic::Request::new).unwrap())
                    .await
                    .map(|a| a.into_inner().encode_to_vec())
            };
        }
        let answer = match record["method"].as_str().unwrap() {
            "CreateDeviceModel" => call!(create_device_model),
            "UpdateDeviceModel" => call!(update_device_model),
            "RemoveDeviceModel" => call!(remove_device_model),
            "RegisterDevice" => call!(register_device),
            "UpdateDevice" => call!(update_device),
            "RemoveDevice" => call!(remove_device),
            other => panic!("{other} was not recorded"),
        };
        // One was refused only to see what edgecore does then.
        if let Some(recorded) = record["response"].as_str() {
            let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", record["method"]));
            assert_eq!(STANDARD.encode(answer), recorded, "{}", record["method"]);
            replayed += 1;
        }
    }
    assert_eq!(replayed, 26);
    mapper.stop().await;
}
