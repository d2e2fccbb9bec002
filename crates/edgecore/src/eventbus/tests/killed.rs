//! Mosquitto beside edgecore is killed while devices speak.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mqtt::{Client, ClientConfig, Publish, Qos};
use serde_json::{Value, json};
use wire::{kind, operation};

use super::world::{Log, Mosquitto, Running, beside, settings, until};
use crate::device_world::World;

const DEVICES: usize = 4;
const UPDATES: usize = 50;
/// An update that is not answered in this time is said again, as devices do.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says all its updates, the next when the one before is answered.
async fn device(name: &str, broker: SocketAddr, answered: &Cell<usize>) {
    let topic = format!("$hw/events/device/default/{name}/twin/update");
    let config = ClientConfig {
        // Edgecore has it as `localhost`, in the log too.
        host: broker.ip().to_string(),
        port: broker.port(),
        tls: None,
        client_id: name.to_owned(),
        keep_session: false,
        user: None,
        keep_alive: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(5),
    };
    let (client, mut received) = Client::start(config, &[&format!("{topic}/result")]).expect("a filter");
    for value in (1..=UPDATES).map(|number| number.to_string()) {
        let update = json!({"event_id": value, "twin": {"t": {"actual": {"value": value}}}}).to_string();
        loop {
            let payload = update.clone().into();
            let publish = Publish { topic: topic.clone(), payload, qos: Qos::AtLeastOnce, retain: false };
            client.publish(publish).expect("a topic");
            let is_answered = async {
                loop {
                    let told = received.recv().await.expect("it runs").take();
                    let told: Value = serde_json::from_slice(&told.payload).expect("JSON");
                    assert!(told["code"].is_null(), "{told}");
                    if told["event_id"] == value.as_str() {
                        return;
                    }
                }
            };
            if tokio::time::timeout(PATIENCE, is_answered).await.is_ok() {
                break;
            }
        }
        answered.set(answered.get() + 1);
    }
    client.stop().await;
}

#[tokio::test]
async fn no_answered_update_is_lost_when_the_broker_is_killed() {
    let Some(mut mosquitto) = Mosquitto::new("allow_anonymous true\n") else { return };
    mosquitto.start().await;
    let (log, _guard) = Log::start();
    let mut world = World::start();
    let names: Vec<String> = (0..DEVICES).map(|number| format!("d{number}")).collect();
    for name in &names {
        let annotations = json!({"devices.kubeedge.io/history": "*=1000"});
        let about = json!({"name": name, "namespace": "default", "uid": name, "annotations": annotations});
        world.store(operation::INSERT, kind::DEVICE, &json!({"metadata": about})).await;
    }
    let broker = mosquitto.address;
    let mut edge = Running::start(settings(None, Some(beside(broker))), world.dir());
    let of_edgecore = |what: &str| {
        let lines = log.lines(what);
        lines.iter().filter(|line| line.contains("localhost:")).count()
    };

    let twin = world.running();
    let (say, heard, arrived, bus) = (twin.say.clone(), &mut twin.heard, &mut edge.arrived, &edge.bus);
    let hearing = async {
        while let Some(arrived) = arrived.recv().await {
            say.send(arrived).await.expect("DeviceTwin runs");
        }
    };
    let speaking = async {
        while let Some(published) = heard.recv().await {
            bus.publish(published.topic, published.payload.into()).await;
        }
    };
    let answered = Cell::new(0);
    let devices = join_all(names.iter().map(|name| device(name, broker, &answered)));
    let killing = async {
        for (outage, at) in [(1, 40), (2, 100)] {
            until("devices are answered", || answered.get() >= at).await;
            mosquitto.kill().await;
            until("edgecore says so", || of_edgecore("the MQTT broker cannot be used") >= outage).await;
            mosquitto.start().await;
            until("edgecore goes on", || of_edgecore("the MQTT broker is back") >= outage).await;
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(100), async { tokio::join!(devices, killing) });
    tokio::select! {
        done = all => drop(done.expect("in time")),
        _ = async { tokio::join!(hearing, speaking) } => panic!("edgecore has ended"),
    }
    edge.stop().await;
    world.kill().await;
    for name in &names {
        // One that was said again is there twice.
        let mut values = world.history(name, "t");
        values.dedup();
        let expected: Vec<String> = (1..=UPDATES).map(|number| number.to_string()).collect();
        assert_eq!(values, expected, "{name}");
    }
}
