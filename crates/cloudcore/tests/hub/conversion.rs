//! Clients that know v1alpha2 only, with the webhook of a real cloudcore behind the embedded Kubernetes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cloud::{Cloud, SOON, logged, wait_logged};
use crate::device_reports::report;
use crate::devices::{DEVICES, MODELS, device, model};

const OLD_DEVICES: &str = "/apis/devices.kubeedge.io/v1alpha2/namespaces/default/devices";
const OLD_MODELS: &str = "/apis/devices.kubeedge.io/v1alpha2/namespaces/default/devicemodels";
const OLD_STATUSES: &str = "/apis/devices.kubeedge.io/v1alpha2/namespaces/default/devicestatuses";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const NAMES: [&str; 3] = ["devices", "devicemodels", "devicestatuses"];

fn old_device(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1alpha2", "kind": "Device", "metadata": {"name": name},
        "spec": {
            "deviceModelRef": {"name": "sensor"},
            "protocol": {"modbus": {"slaveID": 1}, "common": {"com": {"serialPort": "/dev/ttyS0", "baudRate": 9600}}},
            "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "", "operator": "In", "values": [node]}]}]},
            "propertyVisitors": [{"propertyName": "temperature", "reportCycle": 1000, "modbus": {"register": "CoilRegister", "offset": 2}}],
            "data": {"dataTopic": "of/our/own"},
        },
        "status": {"twins": [{"propertyName": "temperature", "desired": {"value": "21"}}]},
    })
}

fn definition(name: &str) -> String {
    format!("{DEFINITIONS}/{name}.devices.kubeedge.io")
}

/// Waits until all definitions name a webhook, or another one than this.
async fn wait_installed(cloud: &Cloud, but: &str) -> Result<String> {
    let mut url = String::new();
    for name in NAMES {
        let config = "/spec/conversion/webhook/clientConfig/url";
        let is_there = |found: &Value| found.pointer(config).is_some_and(|url| *url != but);
        let found = cloud.wait_for(&definition(name), "the webhook", is_there).await?;
        url = found.pointer(config).and_then(Value::as_str).context("url")?.to_owned();
    }
    Ok(url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_clients_share_devices() -> Result<()> {
    let cloud = Cloud::start().await?;
    wait_installed(&cloud, "").await?;
    let (edge, _) = cloud.edge("n1").await?;
    let mut watch = cloud.cluster.watch(OLD_DEVICES).await?;

    let created = cloud.create(OLD_DEVICES, &old_device("tag", "n1")).await?;
    for field in ["spec", "status"] {
        assert_eq!(created[field], old_device("tag", "n1")[field]);
    }
    assert_eq!(created["apiVersion"], "devices.kubeedge.io/v1alpha2");
    let new = cloud.get(&format!("{DEVICES}/tag")).await?;
    assert_eq!(new["spec"]["nodeName"], "n1");
    assert_eq!(new["spec"]["protocol"]["configData"]["baudRate"], 9600);
    assert_eq!(new["spec"]["properties"][0]["desired"]["value"], "21");
    assert_eq!(new["spec"]["data"], Value::Null, "v1beta1 has no such field");
    edge.wait("the old client's device", SOON, |seen| seen.rows.get("default/device/tag").cloned()).await?;
    let added = watch.next().await?;
    assert_eq!((&added["type"], &added["object"]["spec"]), (&json!("ADDED"), &old_device("tag", "n1")["spec"]));

    // A new client says something that the old version cannot, and something that it can.
    let patch =
        json!({"spec": {"methods": [{"name": "reset"}], "nodeName": "n2", "stateReport": {"reportToCloud": true}}});
    cloud.patch(&format!("{DEVICES}/tag"), &patch).await?;
    let modified = watch.next().await?;
    assert_eq!(modified["type"], "MODIFIED");
    let seen = &modified["object"]["spec"];
    assert_eq!(seen["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"], json!(["n2"]));
    assert_eq!((&seen["methods"], &seen["data"]["dataTopic"]), (&Value::Null, &json!("of/our/own")));

    // An old client patches, and replaces what it has read.
    let patch = json!({"spec": {"protocol": {"modbus": {"slaveID": 7}}}});
    let patched = cloud.patch(&format!("{OLD_DEVICES}/tag"), &patch).await?;
    assert_eq!(patched["spec"]["protocol"]["common"]["com"]["baudRate"], 9600);
    let new = cloud.get(&format!("{DEVICES}/tag")).await?;
    assert_eq!(new["spec"]["protocol"]["configData"]["slaveID"], 7);
    assert_eq!(new["spec"]["methods"], json!([{"name": "reset"}]));
    assert_eq!(
        (&new["spec"]["stateReport"], &new["spec"]["nodeName"]),
        (&json!({"reportToCloud": true}), &json!("n2"))
    );
    assert_eq!(watch.next().await?["object"]["spec"]["protocol"]["modbus"]["slaveID"], 7);

    cloud.create(DEVICES, &device("thermo", "n1", "m")).await?;
    assert_eq!(watch.next().await?["object"]["spec"]["propertyVisitors"][0]["propertyName"], "temperature");
    let list = cloud.get(OLD_DEVICES).await?;
    let versions: Vec<&Value> =
        list["items"].as_array().context("items")?.iter().map(|item| &item["apiVersion"]).collect();
    assert_eq!(versions, ["devices.kubeedge.io/v1alpha2"; 2]);
    assert_eq!(list["items"][1]["spec"]["protocol"], json!({"modbus": {"slaveID": 1}}));

    edge.wait("thermo", SOON, |seen| seen.rows.get("default/device/thermo").cloned()).await?;
    let answer = edge.request(report("thermo", "temperature", "19")).await?;
    ensure!(answer["content"] == "OK", "{answer}");
    let status = cloud.get(&format!("{OLD_STATUSES}/thermo")).await?;
    assert_eq!(status["twins"][0]["reported"]["value"], "19");

    cloud.create(MODELS, &model("m")).await?;
    let old = cloud.get(&format!("{OLD_MODELS}/m")).await?;
    ensure!(old["spec"]["properties"][0]["type"].is_object(), "{old}");

    cloud.delete(&format!("{OLD_DEVICES}/tag")).await?;
    let deleted = watch.next().await?;
    assert_eq!(
        (&deleted["type"], &deleted["object"]["spec"]["data"]["dataTopic"]),
        (&json!("DELETED"), &json!("of/our/own"))
    );
    cloud.wait_for(&format!("{DEVICES}/tag"), "it to go", Value::is_null).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_converted_is_refused_with_the_cure() -> Result<()> {
    let cloud = Cloud::start().await?;
    wait_installed(&cloud, "").await?;
    let mut odd = old_device("odd", "n1");
    odd["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] = json!(["n1", "n2"]);
    let (code, answer) = cloud.cluster.post(OLD_DEVICES, &odd).await?;
    let message = answer["message"].as_str().context("message")?;
    assert_eq!(code, 500, "{answer}");
    for text in ["Device default/odd", "spec.nodeSelector", "exactly one node", "operator In, one value"] {
        ensure!(message.contains(text), "{message}");
    }
    assert_eq!(cloud.get(DEVICES).await?["items"], json!([]), "nothing was stored");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_cloudcore_the_new_version_goes_on() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let first = wait_installed(&cloud, "").await?;
    cloud.create(OLD_DEVICES, &old_device("tag", "n1")).await?;
    let mut watch = cloud.cluster.watch(OLD_DEVICES).await?;
    assert_eq!(watch.next().await?["type"], "ADDED");
    cloud.stop_hub().await?;
    let refused = |(code, answer): (u16, Value)| -> Result<()> {
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(
            code == 500 && message.contains("conversion webhook") && message.contains("cannot be reached"),
            "{answer}"
        );
        ensure!(
            message.contains("devices.kubeedge.io/v1beta1 needs no conversion")
                && !message.contains("/devices/convert/"),
            "{message}"
        );
        Ok(())
    };
    refused(cloud.cluster.post(OLD_DEVICES, &old_device("other", "n1")).await?)?;
    refused(cloud.cluster.patch(&format!("{OLD_DEVICES}/tag"), &json!({"spec": {"data": null}})).await?)?;
    for path in [OLD_DEVICES.to_owned(), format!("{OLD_DEVICES}/tag")] {
        let error = cloud.get(&path).await.err().context("no webhook")?.to_string();
        ensure!(error.contains("500") && error.contains("conversion webhook"), "{error}");
    }
    let patched = cloud.patch(&format!("{DEVICES}/tag"), &json!({"spec": {"nodeName": "n9"}})).await?;
    assert_eq!(patched["spec"]["nodeName"], "n9");
    assert_eq!(cloud.get(DEVICES).await?["items"].as_array().map(Vec::len), Some(1));
    let event = watch.next().await?;
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(500)), "{event}");

    // The next one, at another address, is believed.
    cloud.start_hub("").await?;
    let second = wait_installed(&cloud, &first).await?;
    ensure!(second != first, "port 0 gives another");
    let old = cloud.get(&format!("{OLD_DEVICES}/tag")).await?;
    assert_eq!(old["spec"]["data"]["dataTopic"], "of/our/own", "kept while nobody could convert");
    assert_eq!(old["spec"]["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"], json!(["n9"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_and_others_do_not_fight_over_the_definitions() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    let foreign = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://example.org/of-somebody-else", "caBundle": another_ca()?}}}}});
    cloud.patch(&definition("devicestatuses"), &foreign).await?;
    cloud.start_hub("").await?;
    for name in &NAMES[..2] {
        let path = definition(name);
        cloud.wait_for(&path, "the webhook", |found| found["spec"]["conversion"]["strategy"] == "Webhook").await?;
    }
    wait_logged(&["WARN", "somebody else's webhook", "devicestatuses"]).await?;
    let before = cloud.get(&definition("devices")).await?;
    let _replica = cloud.start_replica("").await?;
    wait_logged(&["INFO", "another cloudcore converts v1alpha2"]).await?;
    assert_eq!(cloud.get(&definition("devices")).await?["spec"], before["spec"], "the first stays named");
    let found = cloud.get(&definition("devicestatuses")).await?;
    assert_eq!(found["spec"]["conversion"], foreign["spec"]["conversion"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_keeps_the_definitions_to_himself() -> Result<()> {
    let mut cloud = Cloud::start_without_hub().await?;
    let own = json!({"metadata": {"annotations": {"ferroedge.io/conversion": "none"}}});
    let before = cloud.patch(&definition("devices"), &own).await?;
    // It is seen to after the first in each round.
    cloud.start_hub("").await?;
    for name in &NAMES[1..] {
        let path = definition(name);
        cloud.wait_for(&path, "the webhook", |found| found["spec"]["conversion"]["strategy"] == "Webhook").await?;
    }
    wait_logged(&["INFO", "spec.conversion is left as it is", "devices.devices.kubeedge.io"]).await?;
    assert_eq!(cloud.get(&definition("devices")).await?["spec"], before["spec"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_leads_nowhere_is_not_published() -> Result<()> {
    // Loopback too, and nobody listens there.
    let mut cloud = Cloud::start_without_hub().await?;
    let before = cloud.get(&definition("devices")).await?;
    cloud.advertised = "127.0.0.9";
    cloud.start_hub("").await?;
    wait_logged(&[
        "WARN",
        "does not reach itself",
        "https://127.0.0.9:",
        "advertiseAddress",
        "ferroedge.io/conversion",
    ])
    .await?;
    ensure!(!logged().contains("/devices/convert/"), "only readers of the definitions know the path");
    assert_eq!(cloud.get(&definition("devices")).await?["spec"], before["spec"]);
    Ok(())
}

fn another_ca() -> Result<String> {
    use base64::Engine;
    let ca = link::ca::CertificateAuthority::generate()?;
    Ok(base64::engine::general_purpose::STANDARD.encode(link::files::to_pem("CERTIFICATE", ca.certificate())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_who_know_the_path_are_listened_to() -> Result<()> {
    let cloud = Cloud::start().await?;
    let url = wait_installed(&cloud, "").await?;
    let ca = cloud.secret("casecret", "cadata").await?;
    let tls = link::tls::client(&ca.into(), None)?;
    let ask = async |url: &str, body: Vec<u8>| -> Result<u16> {
        let call = link::http_client::Call {
            method: "POST",
            url,
            headers: &[],
            body,
            tls: tls.clone(),
            deadline: SOON,
            max_answer: 4096,
        };
        Ok(call.send().await?.0)
    };
    let guessed = format!("{}0", &url[..url.len() - 1]);
    ensure!(guessed != url || ask(&url, Vec::new()).await? == 400, "the guess was right");
    if guessed != url {
        assert_eq!(ask(&guessed, b"{}".to_vec()).await?, 404);
    }
    assert_eq!(ask(&url, b"{}".to_vec()).await?, 400);
    let long = ask(&url, vec![b' '; (32 << 20) + 1]).await;
    ensure!(long.as_ref().map_or(true, |status| *status == 413), "{long:?}");
    let review = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "request": {"uid": "u", "desiredAPIVersion": "devices.kubeedge.io/v1beta1", "objects": []}});
    assert_eq!(ask(&url, review.to_string().into_bytes()).await?, 200);
    Ok(())
}

/// Connections that the port serves at once.
const PLACES: usize = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_keep_the_api_server_out() -> Result<()> {
    let cloud = Cloud::start().await?;
    let url = wait_installed(&cloud, "").await?;
    let address = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).context("address")?.to_owned();
    let ca = cloud.secret("casecret", "cadata").await?;
    let tls = link::tls::client(&ca.into(), None)?;
    let connector = tokio_rustls::TlsConnector::from(tls.clone());
    let connect = async || -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let tcp = tokio::net::TcpStream::connect(&address).await?;
        let name = link::rustls::pki_types::ServerName::try_from("127.0.0.1")?;
        let mut stream = connector.connect(name, tcp).await?;
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        Ok(stream)
    };
    // Each has said something, and stays.
    let mut idle = Vec::new();
    for _ in 0..PLACES {
        idle.push(connect().await?);
    }
    let mut text = String::new();
    idle[0].read_to_string(&mut text).await.context("it is closed after the answer")?;
    ensure!(text.starts_with("HTTP/1.1 404") && text.contains("connection: close"), "{text}");
    let review = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "request": {"uid": "u", "desiredAPIVersion": "devices.kubeedge.io/v1beta1", "objects": []}});
    let body = review.to_string().into_bytes();
    let call = link::http_client::Call {
        method: "POST",
        url: &url,
        headers: &[],
        body,
        tls,
        deadline: SOON,
        max_answer: 4096,
    };
    assert_eq!(call.send().await?.0, 200);
    drop(idle);
    Ok(())
}
