//! A broker inside edgecore and mosquitto beside it (mode 1).

use std::net::SocketAddr;
use std::time::Duration;

use api::edgecore::InternalBroker;

use super::world::{Mosquitto, Running, beside, client, port, run, settings, until};

const UPDATE: &str = "$hw/events/device/default/d/twin/update";
const GET: &str = "$hw/events/device/default/d/twin/get";
const RESULT: &str = "$hw/events/device/default/d/twin/get/result";

#[tokio::test]
async fn both_brokers_hear_what_is_said_to_either() {
    let Some(mut mosquitto) = Mosquitto::new("allow_anonymous true\n") else { return };
    mosquitto.start().await;
    let address = port();
    let internal = InternalBroker { address, tls: None, users_file: None };
    let dir = tempfile::tempdir().expect("folder");
    let mut edge = Running::start(settings(Some(internal), Some(beside(mosquitto.address))), dir.path());
    until("the broker inside listens", || std::net::TcpStream::connect(address).is_ok()).await;
    // Devices at both, which have subscribed when this has been said.
    for at in [address, mosquitto.address] {
        assert!(run(client("mosquitto_sub", at, &["-i", "device", "-c", "-t", RESULT, "-E"])).await.0);
    }
    for (number, at) in [address, mosquitto.address].into_iter().enumerate() {
        // Edgecore may still be on its way to mosquitto, which acknowledges what nobody hears.
        let asked = loop {
            if let Some(asked) = ask(&mut edge, at, &format!("request {number}")).await {
                break asked;
            }
        };
        assert_eq!(asked, (GET.to_owned(), format!("request {number}")));
        edge.bus.publish(RESULT.to_owned(), format!("answer {number}").into_bytes()).await;
    }
    for at in [address, mosquitto.address] {
        let heard = run(client("mosquitto_sub", at, &["-i", "device", "-c", "-t", RESULT, "-C", "2"])).await.1;
        assert_eq!(heard, "answer 0\nanswer 1\n");
    }
    // Without the one the other goes on.
    mosquitto.stop().await;
    assert_eq!(ask(&mut edge, address, "alone").await, Some((GET.to_owned(), "alone".to_owned())));
    edge.stop().await;
}

/// Somebody publishes this, and DeviceTwin takes it, if it comes soon.
async fn ask(edge: &mut Running, at: SocketAddr, text: &str) -> Option<(String, String)> {
    let taking = tokio::time::timeout(Duration::from_secs(10), async {
        let (arrived, text) = edge.next().await;
        let topic = arrived.topic.clone();
        arrived.complete();
        (topic, text)
    });
    let (published, taken) = tokio::join!(run(client("mosquitto_pub", at, &["-t", GET, "-m", text])), taking);
    assert!(published.0);
    taken.ok()
}

#[tokio::test]
async fn what_a_broker_had_kept_is_told_from_what_a_device_says_now() {
    let Some(mut mosquitto) = Mosquitto::new("allow_anonymous true\n") else { return };
    mosquitto.start().await;
    let say = |at: SocketAddr, text: &'static str| run(client("mosquitto_pub", at, &["-r", "-t", UPDATE, "-m", text]));
    assert!(say(mosquitto.address, "kept").await.0);
    let address = port();
    let internal = InternalBroker { address, tls: None, users_file: None };
    let dir = tempfile::tempdir().expect("folder");
    let mut edge = Running::start(settings(Some(internal), Some(beside(mosquitto.address))), dir.path());
    until("the broker inside listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let mut heard = async |expected: &str| {
        let (arrived, text) = edge.next().await;
        let was_retained = arrived.was_retained;
        arrived.complete();
        assert_eq!(text, expected);
        was_retained
    };
    assert!(heard("kept").await);
    for (at, text) in [(mosquitto.address, "beside"), (address, "inside")] {
        let (said, was_retained) = tokio::join!(say(at, text), heard(text));
        assert!(said.0 && !was_retained, "{text}");
    }
    edge.stop().await;
}
