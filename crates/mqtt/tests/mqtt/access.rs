use std::sync::Arc;

use mqtt::{Access, Listen, Password, Rule, User};
use rumqttc::{ConnectReturnCode, ConnectionError, QoS, SubscribeReasonCode};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{Peer, broker, broker_with, config, connect, options, soon};

#[tokio::test]
async fn users_do_what_their_rules_allow() {
    let rule = |access, filter: &str| Rule { access, filter: filter.to_owned() };
    let mut config = config();
    config.users = vec![
        User {
            name: "sensor".to_owned(),
            password: Password::Plain("s1".to_owned()),
            rules: vec![rule(Access::Write, "up/sensor/#"), rule(Access::Read, "down/sensor")],
        },
        User {
            name: "reader".to_owned(),
            password: Password::Plain("r1".to_owned()),
            rules: vec![rule(Access::ReadWrite, "#")],
        },
    ];
    let (_broker, address) = broker(config).await;
    for (user, password) in [(None, ""), (Some("sensor"), "S1"), (Some("nobody"), "s1")] {
        let mut options = options(address, "refused");
        if let Some(user) = user {
            options.set_credentials(user, password);
        }
        let refused = Peer::with(options).await.err();
        let expected = ConnectReturnCode::BadUserNamePassword;
        assert!(matches!(refused, Some(ConnectionError::ConnectionRefused(code)) if code == expected), "{user:?}");
    }
    let peer = |id: &str, user: &str, password: &str| {
        let mut options = options(address, id);
        options.set_credentials(user, password).set_clean_session(false);
        Peer::with(options)
    };
    let mut reader = peer("reader", "reader", "r1").await.unwrap();
    reader.subscribe("#", QoS::AtLeastOnce).await;
    let mut sensor = peer("sensor", "sensor", "s1").await.unwrap();
    assert_eq!(sensor.subscribe("down/#", QoS::AtMostOnce).await.return_codes, [SubscribeReasonCode::Failure]);
    let granted = [SubscribeReasonCode::Success(QoS::AtMostOnce)];
    assert_eq!(sensor.subscribe("down/sensor", QoS::AtMostOnce).await.return_codes, granted);
    sensor.publish_surely("up/other", false, "no").await;
    sensor.publish_surely("up/sensor/x", false, "yes").await;
    reader.expect(&["up/sensor/x yes"]).await;
    // Nobody takes the session of somebody else.
    assert!(peer("reader", "sensor", "s1").await.is_err());
}

#[tokio::test]
async fn users_are_replaced_while_it_runs() {
    let user = |name: &str, password: &str, filter: &str| User {
        name: name.to_owned(),
        password: Password::Plain(password.to_owned()),
        rules: vec![Rule { access: Access::ReadWrite, filter: filter.to_owned() }],
    };
    let mut config = config();
    config.users = ["stays", "changes", "goes"].map(|name| user(name, name, "#")).into();
    let (broker, mut received) = broker_with(config, &["will/#"]).await;
    let address = broker.addresses()[0];
    let options = |name: &str, password: &str| {
        let mut options = options(address, name);
        options.set_credentials(name, password).set_clean_session(false);
        let will = rumqttc::LastWill::new(format!("will/{name}"), "gone", QoS::AtLeastOnce, false);
        options.set_last_will(will);
        options
    };
    let mut stays = Peer::with(options("stays", "stays")).await.unwrap();
    let mut others = Vec::new();
    for name in ["changes", "goes"] {
        let mut peer = Peer::with(options(name, name)).await.unwrap();
        peer.subscribe("#", QoS::AtLeastOnce).await;
        others.push(peer);
    }
    let twice = vec![user("stays", "stays", "#"), user("stays", "stays", "#")];
    assert!(broker.set_users(twice).is_err());
    let now = vec![user("stays", "stays", "#"), user("changes", "changes", "will/changes"), user("new", "new", "#")];
    broker.set_users(now).unwrap();
    for peer in &mut others {
        peer.closed().await;
    }
    // Of the one who is gone nobody speaks any more.
    let will = soon(received.recv()).await.unwrap().take();
    assert_eq!((will.topic.as_str(), &will.payload[..]), ("will/changes", &b"gone"[..]));
    assert!(Peer::with(options("goes", "goes")).await.is_err());
    let _new = Peer::with(options("new", "new")).await.unwrap();
    // What it may not read any more it has not subscribed to any more.
    let mut changed = Peer::with(options("changes", "changes")).await.unwrap();
    assert!(changed.session_present);
    changed.subscribe("will/changes", QoS::AtLeastOnce).await;
    stays.publish_surely("down", false, "x").await;
    let heard = async { soon(received.recv()).await.unwrap().take().payload };
    let ((), heard) = tokio::join!(stays.publish_surely("will/changes", false, "x"), heard);
    assert_eq!(heard, "x");
    changed.expect(&["will/changes x"]).await;
}

#[tokio::test]
async fn clients_may_speak_tls() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let server = server.unwrap().with_no_client_auth().with_single_cert(vec![certificate.clone()], private).unwrap();
    let (_tls, tls) = watch::channel(Arc::new(server));
    let mut config = config();
    let address = config.listen[0].address;
    config.listen.push(Listen { address, tls: Some(tls) });
    let (broker, _) = broker(config).await;
    let address = broker.addresses()[1];

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    stream.write_all(&connect(4, "tls", 2, 0, &[])).await.unwrap();
    let mut answer = [0; 4];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
}
