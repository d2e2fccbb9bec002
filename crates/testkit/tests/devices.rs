//! A device and the cluster, with real programs: what was answered is not lost, whoever is killed.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

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
