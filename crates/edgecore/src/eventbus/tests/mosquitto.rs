//! Mosquitto beside edgecore (mode 2), with TLS and users.

use super::super::WAITING;
use super::world::{Certificates, Log, Mosquitto, PASSWORD, Running, beside, client, hashed, run, settings, until};
use api::edgecore::{ExternalBroker, TlsFiles};

const REPORT: &str = "$hw/events/device/default/d/twin/update";
const RESULT: &str = "$hw/events/device/default/d/twin/update/result";

/// Mosquitto with TLS and the user `edge`, and what its clients need for that.
struct Site {
    certificates: Certificates,
    mosquitto: Mosquitto,
}

impl Site {
    fn new() -> Option<Self> {
        let certificates = Certificates::new();
        let users = hashed("edge", PASSWORD, certificates.dir.path());
        let lines = format!(
            "certfile {}\nkeyfile {}\nallow_anonymous false\npassword_file {}\n",
            certificates.path("server.crt").display(),
            certificates.path("server.key").display(),
            users.unwrap_or_default().display()
        );
        Some(Self { mosquitto: Mosquitto::new(&lines)?, certificates })
    }

    fn beside(&self) -> ExternalBroker {
        ExternalBroker {
            tls: Some(TlsFiles { ca: Some(self.certificates.path("ca.crt")), own: None }),
            username: "edge".to_owned(),
            password: PASSWORD.to_owned(),
            ..beside(self.mosquitto.address)
        }
    }

    /// A device does this, as a user that mosquitto knows.
    async fn device(&self, program: &str, more: &[&str]) -> String {
        let ca = self.certificates.path("ca.crt");
        let mut all = vec!["--cafile", ca.to_str().expect("a path"), "-u", "edge", "-P", PASSWORD];
        all.extend(more);
        let (well, said) = run(client(program, self.mosquitto.address, &all)).await;
        assert!(well, "{program} {more:?}");
        said
    }
}

#[tokio::test]
async fn nothing_is_lost_over_outages_of_a_broker_with_tls_and_users() {
    let Some(mut site) = Site::new() else { return };
    // A device whose messages wait for it.
    site.mosquitto.start().await;
    site.device("mosquitto_sub", &["-i", "device", "-c", "-t", RESULT, "-E"]).await;
    site.mosquitto.stop().await;

    // Edgecore is there first, and says so; what it has to say waits.
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let mut edge = Running::start(settings(None, Some(site.beside())), dir.path());
    until("the trouble is told", || !log.lines("the MQTT broker cannot be used").is_empty()).await;
    let told = log.lines("cannot be used").remove(0);
    assert!(
        told.contains(&format!("localhost:{}", site.mosquitto.address.port())) && told.contains("does it run"),
        "{told}"
    );
    let mut expected = String::new();
    for number in 0..50 {
        edge.bus.publish(RESULT.to_owned(), number.to_string().into_bytes()).await;
        expected += &format!("{number}\n");
    }
    site.mosquitto.start().await;
    let heard = site.device("mosquitto_sub", &["-i", "device", "-c", "-t", RESULT, "-C", "50"]).await;
    assert_eq!(heard, expected);

    // The other way. A device has its acknowledgement of mosquitto long before edgecore has written its message down.
    site.device("mosquitto_pub", &["-t", REPORT, "-m", "first"]).await;
    let (held, text) = edge.next().await;
    assert_eq!((held.topic.as_str(), text.as_str()), (REPORT, "first"));
    site.device("mosquitto_pub", &["-t", REPORT, "-m", "second"]).await;
    let (_also_held, text) = edge.next().await;
    assert_eq!(text, "second");
    site.mosquitto.stop().await;
    until("the outage is told", || log.lines("cannot be used").len() > 1).await;
    // Edgecore has not acknowledged it: too late for that connection.
    held.complete();
    site.mosquitto.start().await;
    site.device("mosquitto_pub", &["-t", REPORT, "-m", "third"]).await;
    for expected in ["first", "second", "third"] {
        let (arrived, text) = edge.next().await;
        assert_eq!(text, expected, "in their order");
        arrived.complete();
    }
    edge.stop().await;

    // What is said while edgecore is away it hears when it is back.
    site.device("mosquitto_pub", &["-t", REPORT, "-m", "meanwhile"]).await;
    let mut edge = Running::start(settings(None, Some(site.beside())), dir.path());
    loop {
        let (arrived, text) = edge.next().await;
        arrived.complete();
        if text == "meanwhile" {
            break;
        }
        assert!(
            ["first", "second", "third"].contains(&text.as_str()),
            "{text}: what was acknowledged last may come again"
        );
    }
    edge.stop().await;
    assert!(log.lines(PASSWORD).is_empty());
}

#[tokio::test]
async fn nothing_that_is_said_at_once_is_dropped_while_the_broker_is_there() {
    let Some(mut mosquitto) = Mosquitto::new("allow_anonymous true\nmax_queued_messages 0\n") else { return };
    mosquitto.start().await;
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let edge = Running::start(settings(None, Some(beside(mosquitto.address))), dir.path());
    until("it is there", || !log.lines("connected to the MQTT broker").is_empty()).await;
    let device = ["-i", "device", "-c", "-t", RESULT];
    let device = |more: &[&str]| client("mosquitto_sub", mosquitto.address, &[&device[..], more].concat());
    assert!(run(device(&["-E"])).await.0);
    let mut expected = String::new();
    for number in 0..4 * WAITING {
        edge.bus.publish(RESULT.to_owned(), number.to_string().into_bytes()).await;
        expected += &format!("{number}\n");
    }
    let heard = run(device(&["-C", &(4 * WAITING).to_string()])).await.1;
    assert_eq!(heard, expected);
    edge.stop().await;
    assert!(log.lines("dropped").iter().all(|line| line.contains("dropped=0")));
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_tried_until_it_is_right() {
    let Some(mut site) = Site::new() else { return };
    let passwords = site.certificates.dir.path().to_path_buf();
    hashed("edge", "another", &passwords);
    site.mosquitto.start().await;
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let edge = Running::start(settings(None, Some(site.beside())), dir.path());
    until("the refusal is told", || !log.lines("cannot be used").is_empty()).await;
    let told = log.lines("cannot be used").remove(0);
    let broker = format!("localhost:{}", site.mosquitto.address.port());
    assert!(told.contains(&broker) && told.contains("it refuses user") && told.contains("password"), "{told}");
    site.mosquitto.stop().await;
    hashed("edge", PASSWORD, &passwords);
    site.mosquitto.start().await;
    until("it is let in", || !log.lines("the MQTT broker is back").is_empty()).await;
    edge.stop().await;
    assert!(log.lines(PASSWORD).is_empty());
}

#[tokio::test]
async fn a_wrong_ca_is_told_and_read_again() {
    let Some(mut site) = Site::new() else { return };
    site.mosquitto.start().await;
    let good = site.certificates.path("ca.crt");
    let (kept, other) = (site.certificates.path("kept.crt"), Certificates::new());
    std::fs::copy(&good, &kept).expect("copied");
    std::fs::copy(other.path("ca.crt"), &good).expect("copied");
    let (log, _guard) = Log::start();
    let dir = tempfile::tempdir().expect("folder");
    let edge = Running::start(settings(None, Some(site.beside())), dir.path());
    until("the CA is told", || !log.lines("cannot be used").is_empty()).await;
    let told = log.lines("cannot be used").remove(0);
    assert!(told.contains("its certificate is not of a CA in") && told.contains("ca.crt"), "{told}");
    std::fs::copy(&kept, &good).expect("copied");
    until("it is believed", || !log.lines("the MQTT broker is back").is_empty()).await;
    edge.stop().await;
}
