//! The broker inside edgecore, with users and TLS.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::edgecore::InternalBroker;
use mqtt::{Certificate, ServerTls};

use super::super::inside::Certificates as Kept;
use super::world::{Certificates, Log, PASSWORD, Running, client, hashed, port, run, settings, until};

const REPORT: &str = "$hw/events/device/default/sensor/twin/update";
const RESULT: &str = "$hw/events/device/default/sensor/twin/update/result";

/// A file of users, each of whom may speak and hear of the sensor only.
fn users(dir: &Path, names: &[&str]) -> Option<PathBuf> {
    let topic = "$hw/events/device/default/sensor/#";
    let mut text = "users:\n".to_owned();
    for name in names {
        let line = std::fs::read_to_string(hashed(name, PASSWORD, dir)?).expect("read");
        let (_, hash) = line.trim().split_once(':').expect("a user and its hash");
        text += &format!("- name: {name}\n  password: {hash}\n  read: ['{topic}']\n  write: ['{topic}']\n");
    }
    Some(written(dir, &text, 0o600))
}

/// Replaces the file of users.
fn written(dir: &Path, text: &str, mode: u32) -> PathBuf {
    let (new, path) = (dir.join("new.yaml"), dir.join("users.yaml"));
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).expect("set");
    std::fs::rename(&new, &path).expect("replaced");
    path
}

#[tokio::test]
async fn users_may_what_their_file_says_and_edgecore_everything() {
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let Some(users_file) = users(dir.path(), &["sensor"]) else { return };
    let address = port();
    let internal = InternalBroker { address, tls: None, users_file: Some(users_file) };
    let mut edge = Running::start(settings(Some(internal), None), dir.path());
    until("the broker listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let as_sensor = |program: &'static str, more: &[&'static str]| {
        let all: Vec<_> = ["-u", "sensor", "-P", PASSWORD].into_iter().chain(more.iter().copied()).collect();
        run(client(program, address, &all))
    };
    for wrong in
        [&["-m", "x"][..], &["-u", "sensor", "-P", "wrong", "-m", "x"], &["-u", "nobody", "-P", PASSWORD, "-m", "x"]]
    {
        let all: Vec<_> = ["-t", REPORT].iter().chain(wrong).copied().collect();
        assert!(!run(client("mosquitto_pub", address, &all)).await.0, "{wrong:?}");
    }
    assert!(as_sensor("mosquitto_sub", &["-i", "sensor", "-c", "-t", RESULT, "-E"]).await.0);
    // Acknowledged, as MQTT 3.1.1 wants, and nobody hears it.
    let other = "$hw/events/device/default/other/twin/update";
    assert!(as_sensor("mosquitto_pub", &["-t", other, "-m", "not mine"]).await.0);
    let (published, (arrived, text)) = tokio::join!(as_sensor("mosquitto_pub", &["-t", REPORT, "-m", "mine"]), async {
        let (arrived, text) = edge.next().await;
        let topic = arrived.topic.clone();
        arrived.complete();
        (topic, text)
    });
    assert!(published.0);
    assert_eq!((arrived.as_str(), text.as_str()), (REPORT, "mine"));
    edge.bus.publish(RESULT.to_owned(), b"taken".to_vec()).await;
    let heard = as_sensor("mosquitto_sub", &["-i", "sensor", "-c", "-t", RESULT, "-C", "1"]).await.1;
    assert_eq!(heard, "taken\n");
    edge.stop().await;
    assert!(log.lines(PASSWORD).is_empty() && log.lines("$7$").is_empty());
}

#[tokio::test]
async fn a_broker_whose_users_anybody_can_read_does_not_start() {
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let path = written(dir.path(), "users: []", 0o644);
    let address = port();
    let internal = InternalBroker { address, tls: None, users_file: Some(path) };
    let edge = Running::start(settings(Some(internal), None), dir.path());
    until("it is told", || !log.lines("the MQTT broker cannot be started").is_empty()).await;
    assert!(log.lines("cannot be started")[0].contains("chmod 600"));
    assert!(std::net::TcpStream::connect(address).is_err());
    edge.bus.publish("t".to_owned(), vec![]).await;
    edge.stop().await;
}

#[tokio::test]
async fn users_are_replaced_while_the_broker_runs() {
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let Some(users_file) = users(dir.path(), &["sensor"]) else { return };
    let address = port();
    let internal = InternalBroker { address, tls: None, users_file: Some(users_file) };
    let edge = Running::start(settings(Some(internal), None), dir.path());
    until("the broker listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let may = async |name: &str| {
        run(client("mosquitto_pub", address, &["-u", name, "-P", PASSWORD, "-t", "other", "-m", "x"])).await.0
    };
    assert!(may("sensor").await && !may("actor").await);
    // Those of before stay until there is a file that can be used; what is wrong is said once.
    for (text, mode, why) in [("users: [{name: actor", 0o600, "not valid YAML"), ("users: []", 0o644, "chmod 600")] {
        written(dir.path(), text, mode);
        until("it is told", || !log.lines(why).is_empty()).await;
        assert!(may("sensor").await && !may("actor").await);
    }
    users(dir.path(), &["actor"]);
    until("they are taken", || !log.lines("were replaced").is_empty()).await;
    assert!(may("actor").await && !may("sensor").await);
    edge.stop().await;
    assert_eq!(log.lines("cannot be used").len(), 2);
    assert!(log.lines(PASSWORD).is_empty() && log.lines("$7$").is_empty());
}

#[tokio::test]
async fn clients_show_a_certificate() {
    let files = Certificates::new();
    if hashed("u", "p", files.dir.path()).is_none() {
        println!("mosquitto is not installed");
        return;
    }
    let address = port();
    let internal = InternalBroker { address, tls: Some(files.files("server")), users_file: None };
    let dir = tempfile::tempdir().expect("folder");
    let mut edge = Running::start(settings(Some(internal), None), dir.path());
    until("the broker listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let [ca, certificate, key] =
        ["ca.crt", "client.crt", "client.key"].map(|name| files.path(name).display().to_string());
    let publish = ["--cafile", &ca, "-t", REPORT, "-m", "x"];
    assert!(!run(client("mosquitto_pub", address, &publish)).await.0, "without a certificate");
    assert!(!run(client("mosquitto_pub", address, &publish[2..])).await.0, "without TLS");
    let with: Vec<_> = publish.into_iter().chain(["--cert", &certificate, "--key", &key]).collect();
    let (published, text) = tokio::join!(run(client("mosquitto_pub", address, &with)), async {
        let (arrived, text) = edge.next().await;
        arrived.complete();
        text
    });
    assert!(published.0 && text == "x");
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn certificates_are_replaced_while_the_broker_runs() {
    let files = Certificates::new();
    let own = Certificate { certificate: files.path("server.crt"), key: files.path("server.key") };
    let kept = Kept::read(ServerTls { own, clients: None }).expect("read");
    let mut current = kept.current();
    let keeping = kept.keep();
    let replacing = async {
        // Half of a new pair is no use.
        files.server("new");
        std::fs::copy(files.path("new.crt"), files.path("server.crt")).expect("copied");
        let unchanged = tokio::time::timeout(Duration::from_secs(200), current.changed()).await;
        assert!(unchanged.is_err(), "they do not belong together");
        std::fs::copy(files.path("new.key"), files.path("server.key")).expect("copied");
        tokio::time::timeout(Duration::from_secs(200), current.changed()).await.expect("in time").expect("kept");
    };
    tokio::select! {
        () = keeping => {}
        () = replacing => {}
    }
}
