//! Brokers that cannot be used, and what is said of each.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::{Broker, BrokerConfig, Certificate, ClientTls, Listen, Password, ServerTls, User};

/// CAs and certificates, as files.
struct Files {
    dir: TempDir,
    ca: Issuer<'static, KeyPair>,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Self::ca(&dir.path().join("ca.crt"));
        Self { dir, ca }
    }

    fn ca(path: &Path) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
        Issuer::new(params, key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose, until: i32) -> Certificate {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let own = Certificate {
            certificate: self.path(&format!("{name}-{until}.crt")),
            key: self.path(&format!("{name}-{until}.key")),
        };
        std::fs::write(&own.certificate, certificate.pem()).unwrap();
        std::fs::write(&own.key, key.serialize_pem()).unwrap();
        own
    }

    fn server(&self, name: &str, until: i32) -> Certificate {
        self.issue(name, ExtendedKeyUsagePurpose::ServerAuth, until)
    }
}

async fn broker(tls: Option<ServerTls>, users: Vec<User>) -> (Broker, SocketAddr) {
    let mut config = BrokerConfig::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let tls = tls.map(|tls| watch::channel(tls.load().unwrap()).1);
    config.listen = vec![Listen { address: config.listen[0].address, tls }];
    config.users = users;
    let (broker, _) = Broker::start(config, &[]).await.unwrap();
    let address = broker.addresses()[0];
    (broker, address)
}

fn to(address: SocketAddr, tls: Option<ClientTls>) -> ClientConfig {
    ClientConfig {
        host: "localhost".to_owned(),
        port: address.port(),
        tls,
        client_id: "edgecore".to_owned(),
        keep_session: false,
        user: None,
        keep_alive: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(10),
    }
}

async fn told(config: &ClientConfig) -> String {
    dial(config).await.err().expect("it must not work").to_string()
}

#[tokio::test]
async fn a_broker_is_known_by_its_ca_its_name_and_the_time() {
    let files = Files::new();
    let tls = |own| Some(ServerTls { own, clients: None });
    let (_good, good) = broker(tls(files.server("localhost", 2999)), vec![]).await;
    let (_expired, expired) = broker(tls(files.server("localhost", 2020)), vec![]).await;
    let (_other, other) = broker(tls(files.server("other.example", 2999)), vec![]).await;
    let (_plain, plain) = broker(None, vec![]).await;
    let ca = |name: &str| Some(ClientTls { ca: files.path(name), own: None });
    assert!(dial(&to(good, ca("ca.crt"))).await.is_ok());

    Files::ca(&files.path("other.crt"));
    let wrong = to(good, ca("other.crt"));
    let reason = told(&wrong).await;
    assert!(reason.starts_with("its certificate is not of a CA in ") && reason.contains("other.crt"), "{reason}");
    // The file is read again at each try.
    std::fs::copy(files.path("ca.crt"), files.path("other.crt")).unwrap();
    assert!(dial(&wrong).await.is_ok());

    let reason = told(&to(expired, ca("ca.crt"))).await;
    assert!(reason.starts_with("its certificate has expired"), "{reason}");
    let reason = told(&to(other, ca("ca.crt"))).await;
    assert!(
        reason.starts_with("its certificate is not for \"localhost\"") && reason.contains("other.example"),
        "{reason}"
    );
    let reason = told(&to(good, ca("missing.crt"))).await;
    assert!(reason.contains("missing.crt cannot be read"), "{reason}");
    let reason = told(&to(plain, ca("ca.crt"))).await;
    assert!(reason.contains("TLS"), "{reason}");
    let reason = told(&to(good, None)).await;
    assert!(reason.contains("ssl://"), "{reason}");
}

#[tokio::test]
async fn a_broker_may_want_a_certificate_of_its_ca() {
    let files = Files::new();
    let tls = ServerTls { own: files.server("localhost", 2999), clients: Some(files.path("ca.crt")) };
    let (_broker, address) = broker(Some(tls), vec![]).await;
    let with = |own| to(address, Some(ClientTls { ca: files.path("ca.crt"), own }));
    let client = |files: &Files, until| files.issue("edgecore", ExtendedKeyUsagePurpose::ClientAuth, until);
    assert!(dial(&with(Some(client(&files, 2999)))).await.is_ok());
    for refused in [None, Some(client(&files, 2020)), Some(client(&Files::new(), 2999))] {
        let reason = told(&with(refused)).await;
        assert!(reason.starts_with("it does not take our certificate"), "{reason}");
    }
    let mut halves = client(&files, 2999);
    halves.key = files.server("localhost", 2998).key;
    let reason = told(&with(Some(halves))).await;
    assert!(reason.contains("edgecore-2999.crt cannot be used"), "{reason}");
}

#[tokio::test]
async fn a_broker_may_refuse_a_user() {
    let user = User { name: "u".to_owned(), password: Password::Plain("right".to_owned()), rules: vec![] };
    let (_broker, address) = broker(None, vec![user]).await;
    let mut config = to(address, None);
    let reason = told(&config).await;
    assert!(reason.starts_with("it refuses a client without name and password"), "{reason}");
    config.user = Some(("u".to_owned(), "geheim".to_owned()));
    let reason = told(&config).await;
    assert!(reason.starts_with("it refuses user \"u\"") && !reason.contains("geheim"), "{reason}");
    config.user = Some(("u".to_owned(), "right".to_owned()));
    assert!(dial(&config).await.is_ok());
}

#[tokio::test]
async fn what_answers_may_be_no_broker() {
    use tokio::io::AsyncWriteExt;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut config = to(address, None);
    config.host = "127.0.0.1".to_owned();
    let answer = async {
        let (mut web, _) = listener.accept().await.unwrap();
        web.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        web
    };
    let (reason, _web) = tokio::join!(told(&config), answer);
    assert!(reason.starts_with("what answers does not speak MQTT"), "{reason}");
    // One that says nothing.
    config.connect_timeout = Duration::from_millis(50);
    let reason = told(&config).await;
    assert!(reason.starts_with("it did not answer in time"), "{reason}");
    drop(listener);
    let reason = told(&config).await;
    assert!(reason.starts_with("it cannot be reached"), "{reason}");
}
