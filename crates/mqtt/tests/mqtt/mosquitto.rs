//! The clients that users have.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{broker, config, soon};

#[tokio::test]
async fn mosquitto_clients_work() {
    if std::process::Command::new("mosquitto_pub").arg("--help").stdout(Stdio::null()).spawn().is_err() {
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
