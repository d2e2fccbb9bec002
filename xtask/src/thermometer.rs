//! `cargo xtask thermometer`: a simulated thermometer with a heater, as a device would be that speaks MQTT.
//!
//! It says what it measures once a second, and hears on `twin/update/delta` what it shall become. That it is online it says when it
//! starts, and when the node takes it in as its device: before, nobody knows it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use mqtt::{Bus, ClientConfig, Publish, Qos};
use serde_json::{Value, json};

use crate::stop_signals::StopSignals;

/// How often it measures.
const EACH: Duration = Duration::from_secs(1);
/// The broker hears of it that often.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Where a node tells which devices have come and gone.
const MEMBERSHIP: &str = "$hw/events/node/+/membership/updated";
/// Of the way to the target, so much is made between two measurements.
const APPROACH: f64 = 0.2;
/// What it measures first, and what it aims at before anybody said so.
const START: f64 = 15.0;

/// Options of `thermometer`.
#[derive(Args)]
pub struct ThermometerOptions {
    /// The broker
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: SocketAddr,
    /// The device, `NAMESPACE/NAME`
    #[arg(long, default_value = testkit::deployment::device::DEVICE)]
    device: String,
}

/// Measures until it is told to stop.
pub async fn run(options: ThermometerOptions) -> Result<()> {
    let mut signals = StopSignals::catch()?;
    let topic = |what: &str| format!("$hw/events/device/{}/{what}", options.device);
    let delta = topic("twin/update/delta");
    let config = ClientConfig {
        host: options.broker.ip().to_string(),
        port: options.broker.port(),
        tls: None,
        client_id: options.device.replace('/', "."),
        keep_session: false,
        user: None,
        keep_alive: KEEP_ALIVE,
        connect_timeout: KEEP_ALIVE,
    };
    let (bus, mut heard) = Bus::client(config, &[delta.as_str(), MEMBERSHIP])?;
    let say = async |what: &str, payload: Value| {
        let payload = payload.to_string().into_bytes().into();
        bus.publish(Publish { topic: topic(what), payload, qos: Qos::AtLeastOnce, retain: false }).await
    };
    let online = async || say("state/update", json!({"event_id": "on", "state": "online"})).await;
    let (mut temperature, mut target) = (START, START);
    let mut each = tokio::time::interval(EACH);
    online().await?;
    loop {
        tokio::select! {
            _ = signals.next() => break,
            Some(received) = heard.recv() => {
                let received = received.take();
                let told: Value = serde_json::from_slice(&received.payload).unwrap_or_default();
                if received.topic != delta {
                    if is_added(&told, &options.device) {
                        online().await?;
                    }
                } else if let Some(wish) = told["delta"]["target"].as_str().and_then(|text| text.parse().ok()) {
                    target = wish;
                }
            }
            _ = each.tick() => {
                temperature += (target - temperature) * APPROACH;
                let value = |value: String| json!({"actual": {"value": value}, "metadata": {"type": "float"}});
                let twin = json!({"temperature": value(format!("{temperature:.1}")), "target": value(target.to_string())});
                say("twin/update", json!({"event_id": "measured", "twin": twin})).await?;
            }
        }
    }
    say("state/update", json!({"event_id": "off", "state": "offline"})).await?;
    bus.stop().await;
    Ok(())
}

/// Whether a message says that this device has come.
fn is_added(membership: &Value, device: &str) -> bool {
    membership["added_devices"].as_array().is_some_and(|added| added.iter().any(|added| added["id"] == device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_knows_when_it_has_come() {
        let told = json!({"added_devices": [{"id": "default/other"}, {"id": "default/t"}], "removed_devices": null});
        assert!(is_added(&told, "default/t") && !is_added(&told, "default/u"));
        assert!(!is_added(&json!({"added_devices": null, "removed_devices": [{"id": "default/t"}]}), "default/t"));
    }
}
