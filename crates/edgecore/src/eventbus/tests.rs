//! EventBus between a DeviceTwin that the tests play and the brokers and clients that users have.

mod both;
mod killed;
mod mosquitto;
mod own;
mod world;

use std::time::Duration;

use api::edgecore::{EventBus as Settings, InternalBroker};
use beehive::Context;
use tokio_util::sync::CancellationToken;
use wire::{group, module};

use super::*;

#[tokio::test]
async fn without_a_broker_nobody_waits() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let internal = Some(InternalBroker { address, tls: None, users_file: None });
    let settings = Settings { internal, external: None, qos: 0, retain: false, queue: 100 };
    let dir = tempfile::tempdir().expect("folder");
    let (to_twin, _arrived) = mpsc::channel(1);
    let (mut event_bus, bus) = EventBus::new(settings, &dir.path().join("edge.db"), to_twin);
    let stopping = CancellationToken::new();
    let (context, _inboxes) = Context::new(&[(module::EVENT_BUS, group::BUS)], stopping.clone());
    let saying = async {
        for _ in 0..3 * WAITING {
            bus.publish("t".to_owned(), Vec::new()).await;
        }
        stopping.cancel();
    };
    let both = async { tokio::join!(event_bus.serve(&context), saying) };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("in time").0.expect("ended well");
}
