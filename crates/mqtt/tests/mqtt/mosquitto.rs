//! The clients and the broker that users have.

use std::process::Stdio;

use mqtt::{Client, Publish, Qos};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::external::{connected, to};
use crate::support::{broker, config, soon};

#[tokio::test]
async fn mosquitto_clients_work() {
    if std::process::Command::new("mosquitto_pub").arg("--help").stdout(Stdio::null()).status().is_err() {
        println!("mosquitto-clients is not installed");
        return;
    }
    let (_broker, address) = broker(config()).await;
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let base = |program: &str| {
                let mut command = Command::new(program);
                command.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "-V", version, "-q", qos]);
                command.kill_on_drop(true);
                command
            };
            let topic = format!("{version}/{qos}");
            let published = base("mosquitto_pub").args(["-r", "-t", &topic, "-m", "hello"]).status();
            assert!(soon(published).await.unwrap().success());
            let heard = base("mosquitto_sub").args(["-t", &format!("{version}/+"), "-C", "1", "-v"]).output();
            let heard = soon(heard).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&heard.stdout).trim(), format!("{topic} hello"));
            let cleared = base("mosquitto_pub").args(["-r", "-n", "-t", &topic]).status();
            assert!(soon(cleared).await.unwrap().success());
        }
    }
}

#[tokio::test]
async fn the_client_talks_to_mosquitto() {
    let address = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.args(["-p", &address.port().to_string()]).stderr(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let Ok(mosquitto) = command.spawn() else {
        println!("mosquitto is not installed");
        return;
    };
    let (client, mut received) = Client::start(to(address), &["t"]).unwrap();
    connected(&client).await;
    // What the client publishes comes back: it has subscribed to it.
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        for number in 0..50 {
            let payload = format!("{qos:?} {number}").into();
            client.publish(Publish { topic: "t".to_owned(), payload, qos, retain: false }).unwrap();
        }
        // More than mosquitto has on its way without an answer.
        for number in 0..50 {
            let one = soon(received.recv()).await.unwrap();
            assert_eq!(one.take().payload, format!("{qos:?} {number}"));
        }
    }
    client.stop().await;
    drop(mosquitto);
}
