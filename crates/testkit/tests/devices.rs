//! A device and the cluster, with real programs: what was answered is not lost, whoever is killed.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::collections::BTreeMap;
use std::time::Duration;

use mqtt::{Bus, ClientConfig, Publish, Qos, Received};
use serde_json::{Value, json};
use testkit::deployment::device;
use testkit::site::{LONG, Site};
use tokio::sync::mpsc;

/// A device asks again when it has had no answer for so long.
const PATIENCE: Duration = Duration::from_secs(1);
const UPDATE: &str = "$hw/events/device/default/thermometer/twin/update";

/// A thermometer that speaks MQTT.
struct Thermometer {
    bus: Bus,
    heard: mpsc::Receiver<Received>,
}

impl Thermometer {
    async fn new(site: &Site) -> Self {
        let broker = site.deployment.as_ref().expect("running").broker(1).expect("joined");
        let config = ClientConfig {
            host: broker.ip().to_string(),
            port: broker.port(),
            tls: None,
            client_id: "thermometer".to_owned(),
            keep_session: false,
            user: None,
            keep_alive: PATIENCE * 5,
            connect_timeout: PATIENCE * 5,
        };
        let (bus, heard) =
            Bus::client(config, &[&format!("{UPDATE}/result"), &format!("{UPDATE}/delta")]).expect("client");
        Self { bus, heard }
    }

    /// Reports until it is answered: the answer means that it counts.
    async fn report(&mut self, value: u32) {
        let twin = json!({"temperature": {"actual": {"value": value.to_string()}, "metadata": {"type": "float"}}});
        let payload = json!({"event_id": value.to_string(), "twin": twin}).to_string();
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let publish = Publish {
                topic: UPDATE.to_owned(),
                payload: payload.clone().into(),
                qos: Qos::AtLeastOnce,
                retain: false,
            };
            self.bus.publish(publish).await.expect("published");
            let answered =
                self.hear(|told| told["event_id"] == value.to_string().as_str() && told.get("code").is_none());
            if tokio::time::timeout(PATIENCE, answered).await.is_ok() {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{value} is not answered");
        }
    }

    async fn hear(&mut self, is_it: impl Fn(&Value) -> bool) {
        while let Some(publish) = self.heard.recv().await.map(Received::take) {
            if is_it(&serde_json::from_slice(&publish.payload).unwrap_or_default()) {
                return;
            }
        }
    }
}

#[test]
fn what_a_device_was_answered_reaches_the_cluster_whoever_is_killed() {
    let mut site = Site::start(61);
    site.runtime.block_on(device::create(&site.cluster)).expect("created");
    let mut thermometer = site.runtime.block_on(Thermometer::new(&site));
    for (round, victim) in ["nobody", "edgecore", "cloudcore"].into_iter().enumerate() {
        let last = 100 * (u32::try_from(round).expect("few") + 1);
        site.runtime.block_on(async {
            for value in last - 20..=last {
                thermometer.report(value).await;
            }
        });
        match victim {
            "edgecore" => {
                site.kill_edge();
                site.deployment().start_edgecore(1).expect("started");
            }
            "cloudcore" => {
                site.kill_cloud();
                site.restart_cloud();
            }
            _ => {}
        }
        let (cluster, expected) = (&site.cluster, Some(last.to_string()));
        let known = cluster.wait("the last value in the cluster", LONG, || async {
            Ok(device::reported(cluster, "temperature").await? == expected)
        });
        site.runtime.block_on(known).expect(victim);
    }

    let patch = r#"[{"op":"replace","path":"/spec/properties/1/desired/value","value":"25"}]"#;
    site.ask(&["patch", "device", "thermometer", "--type=json", "-p", patch]);
    let told = thermometer.hear(|told| told["delta"]["target"] == "25");
    site.runtime.block_on(async { tokio::time::timeout(LONG, told).await }).expect("the wish is heard");
    let listed = site.ask(&["get", "devices"]);
    assert!(listed.contains("thermometer") && listed.contains("edge-1"), "{listed}");
}

/// Devices that report as fast as they are answered.
const BUSY: usize = 40;
const OBJECTS: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";

/// Many devices behind one connection.
struct Load {
    bus: Bus,
    heard: mpsc::Receiver<Received>,
    /// By device, the last value that was answered.
    answered: BTreeMap<String, u32>,
}

impl Load {
    fn new(site: &Site) -> Self {
        let broker = site.deployment.as_ref().expect("running").broker(1).expect("joined");
        let config = ClientConfig {
            host: broker.ip().to_string(),
            port: broker.port(),
            tls: None,
            client_id: "load".to_owned(),
            keep_session: false,
            user: None,
            keep_alive: PATIENCE * 5,
            connect_timeout: PATIENCE * 5,
        };
        let (bus, heard) = Bus::client(config, &["$hw/events/device/default/+/twin/update/result"]).expect("client");
        let answered = (0..BUSY).map(|number| (format!("busy-{number}"), 0)).collect();
        Self { bus, heard, answered }
    }

    async fn say(&self, device: &str, value: u32) {
        let twin = json!({"count": {"actual": {"value": value.to_string()}, "metadata": {"type": "int"}}});
        let publish = Publish {
            topic: format!("$hw/events/device/default/{device}/twin/update"),
            payload: json!({"event_id": value.to_string(), "twin": twin}).to_string().into(),
            qos: Qos::AtLeastOnce,
            retain: false,
        };
        self.bus.publish(publish).await.expect("published");
    }

    /// Each device reports, and again as soon as it is answered, until `more` answers have come.
    async fn run(&mut self, more: usize) {
        let mut count = 0;
        let deadline = tokio::time::Instant::now() + LONG;
        while count < more {
            assert!(tokio::time::Instant::now() < deadline, "{count} of {more} answers in time");
            // At the begin, and after a silence: who has no answer asks again.
            for (device, value) in &self.answered {
                self.say(device, value + 1).await;
            }
            while let Ok(Some(received)) = tokio::time::timeout(PATIENCE, self.heard.recv()).await {
                let publish = received.take();
                let device = publish.topic.split('/').nth(4).expect("a device").to_owned();
                let told: Value = serde_json::from_slice(&publish.payload).expect("JSON");
                if told.get("code").is_some() {
                    // The device is on its way to the node.
                    continue;
                }
                let value = told["event_id"].as_str().and_then(|id| id.parse().ok()).expect("a value");
                let last = self.answered.get_mut(&device).expect("one of ours");
                if value != *last + 1 {
                    continue;
                }
                *last = value;
                count += 1;
                if count >= more {
                    return;
                }
                self.say(&device, value + 1).await;
            }
        }
    }
}

#[test]
fn no_answered_report_is_lost_when_somebody_is_killed_under_load() {
    let mut site = Site::start(63);
    let model = json!({
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"name": "busy"},
        "spec": {"properties": [{"name": "count", "type": "INT", "accessMode": "ReadOnly"}]},
    });
    site.post(&format!("{OBJECTS}/devicemodels"), &model);
    for number in 0..BUSY {
        let device = json!({
            "apiVersion": "devices.kubeedge.io/v1beta1",
            "kind": "Device",
            "metadata": {"name": format!("busy-{number}")},
            "spec": {"nodeName": "edge-1", "deviceModelRef": {"name": "busy"}, "properties": [{"name": "count"}]},
        });
        site.post(&format!("{OBJECTS}/devices"), &device);
    }
    let mut load = site.runtime.block_on(async { Load::new(&site) });
    for victim in ["edgecore", "cloudcore", "edgecore"] {
        // In the middle of it: what was said after the last answer counted here may have been taken as well.
        site.runtime.block_on(load.run(40 * BUSY));
        match victim {
            "edgecore" => {
                site.kill_edge();
                site.deployment().start_edgecore(1).expect("started");
            }
            _ => {
                site.kill_cloud();
                site.restart_cloud();
            }
        }
        let (cluster, answered) = (&site.cluster, &load.answered);
        let known = cluster.wait("what was answered", LONG, || async {
            let list = cluster.get(&format!("{OBJECTS}/devicestatuses")).await?;
            let reported: BTreeMap<&str, u32> = list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|status| {
                    let value = status["status"]["twins"][0]["reported"]["value"].as_str()?.parse().ok()?;
                    Some((status["metadata"]["name"].as_str()?, value))
                })
                .collect();
            Ok(answered.iter().all(|(device, value)| reported.get(device.as_str()).is_some_and(|found| found >= value)))
        });
        site.runtime.block_on(known).expect(victim);
    }
}
