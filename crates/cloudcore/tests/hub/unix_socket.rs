//! A program beside cloudcore asks a node, as upstream's CSI driver does.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::go_edge::message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::cloud::{Cloud, SOON};

/// Sends a request in two parts and reads the answer to its end.
async fn exchange(cloud: &Cloud, request: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(cloud.socket()).await?;
    let (first, second) = request.as_bytes().split_at(request.len() / 2);
    stream.write_all(first).await?;
    stream.flush().await?;
    stream.write_all(second).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await??;
    Ok(serde_json::from_slice(&answer)?)
}

fn volume(node: &str) -> Value {
    json!({
        "header": {"msg_id": "csi-1", "timestamp": 1, "sync": true},
        "route": {"source": "cloudhub", "group": "resource", "operation": "createvolume", "resource": format!("node/{node}/default/volume/v1")},
        "content": "{\"name\":\"v1\"}",
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_answer_comes_back() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let request = volume("n1").to_string();
    let asking = exchange(&cloud, &request);
    let answering = async {
        let asked = edge
            .wait("the request", SOON, |seen| {
                seen.received.iter().find(|message| message["header"]["msg_id"] == "csi-1").cloned()
            })
            .await?;
        assert_eq!((&asked["content"], &asked["header"]["sync"]), (&json!("{\"name\":\"v1\"}"), &json!(true)));
        let mut answer = message("edged", "meta", "response", "default/volume/v1", json!("made"));
        answer["header"]["parent_msg_id"] = "csi-1".into();
        edge.send(&answer).await
    };
    let (answer, sent) = tokio::join!(asking, answering);
    sent?;
    let answer = answer?;
    assert_eq!((&answer["content"], &answer["route"]["operation"]), (&json!("made"), &json!("response")), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_asked_is_said() -> Result<()> {
    let cloud = Cloud::start().await?;
    let long = format!("{{\"header\":\"{}\"", "x".repeat(20_000));
    for (request, expected) in [
        (volume("nobody").to_string(), "node nobody is not connected"),
        (volume("n1").to_string().replace("node/n1", "pod/n1"), "not of the form node/NODE"),
        (long, "longer than 10480 bytes"),
    ] {
        let answer = exchange(&cloud, &request).await.with_context(|| expected.to_owned())?;
        assert_eq!(answer["route"]["operation"], "error", "{answer}");
        assert!(answer["content"].as_str().is_some_and(|text| text.contains(expected)), "{answer}");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(cloud.socket())?.permissions().mode() & 0o777, 0o600);
    Ok(())
}
