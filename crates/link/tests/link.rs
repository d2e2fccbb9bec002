//! Certificates, TLS, WebSocket and HTTPS between real sockets on loopback.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use link::ca::{CaError, CertificateAuthority, node_request};
use link::http_client::{Call, CallError};
use link::http_server::{HttpServer, MAX_STREAMS};
use link::identity::{Identity, IdentityError, verify_client};
use link::rustls::pki_types::CertificateDer;
use link::tls::{Certificate, ClientAuth, client, client_without_verification, server};
use link::tls_failure::TlsFailure;
use link::ws::{Incoming, LinkError, MAX_MESSAGE_BYTES, Refusal, Target, accept, connect};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(10);

struct Node {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Node {
    fn join(ca: &CertificateAuthority, name: &str, validity: Duration) -> Self {
        let request = node_request(name).expect("request");
        let certificate = ca.sign_node(&request.request, name, &[2], validity).expect("certificate");
        Self { certificate, key: request.key }
    }

    /// Its certificate ended years ago.
    fn expired(ca: &CertificateAuthority, name: &str) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{name}"));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &issuer(ca)).expect("certificate").der().clone();
        Self { certificate, key: key.serialize_der() }
    }

    fn certificate(&self) -> Certificate {
        Certificate { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

/// The CA's signing half, for certificates that it would not make itself.
fn issuer(ca: &CertificateAuthority) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let key = rcgen::KeyPair::try_from(link::key::to_pkcs8(ca.key()).expect("key").as_slice()).expect("key");
    rcgen::Issuer::from_ca_cert_der(ca.certificate(), key).expect("issuer")
}

/// What the edge is told when it shows this certificate.
async fn refused(ca: &CertificateAuthority, node: &Node) -> LinkError {
    let (url, _tasks) = echo_hub(ca).await;
    let tls = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    connect(&target(&url, "edge-1", tls)).await.map(|_| ()).expect_err("refused")
}

#[tokio::test]
async fn a_node_is_told_what_is_wrong_with_its_certificate() {
    let ca = CertificateAuthority::generate().expect("CA");
    let expired = Node::expired(&ca, "edge-1");
    for _ in 0..20 {
        let error = refused(&ca, &expired).await;
        assert!(matches!(error, LinkError::Tls(TlsFailure::Expired(..))), "{error}");
        assert!(error.to_string().contains("keadm gettoken"), "{error}");
    }
    let stranger = Node::join(&CertificateAuthority::generate().expect("CA"), "edge-1", LONG);
    let error = refused(&ca, &stranger).await;
    assert!(matches!(error, LinkError::Tls(TlsFailure::Refused(..))), "{error}");
}

#[test]
fn a_ca_is_its_certificate_and_the_key_of_that() {
    let (one, two) = (CertificateAuthority::generate().expect("CA"), CertificateAuthority::generate().expect("CA"));
    let load =
        |certificate: &[u8], key: &[u8]| CertificateAuthority::from_der(certificate.to_vec(), key).map(|ca| ca.hash());
    assert_eq!(load(one.certificate(), one.key()).expect("stored"), one.hash());
    let pkcs8 = link::key::to_pkcs8(one.key()).expect("key");
    assert_eq!(load(one.certificate(), &pkcs8).expect("other form"), one.hash());
    assert!(matches!(load(one.certificate(), two.key()), Err(CaError::Mismatch)));
    assert!(matches!(load(b"garbage", two.key()), Err(CaError::Certificate)));
    assert!(matches!(load(one.certificate(), b"garbage"), Err(CaError::Key(_))));
}

#[tokio::test]
async fn a_server_certificate_may_have_an_empty_name_and_a_key_of_any_form() {
    // Upstream's default `dnsNames: [""]` puts an empty dNSName into the certificate.
    use link::rustls::pki_types::pem::PemObject;
    use rcgen::{CertificateParams, KeyPair, SanType};
    let ca = CertificateAuthority::generate().expect("CA");
    let mut params = CertificateParams::default();
    for name in ["", "localhost"] {
        params.subject_alt_names.push(SanType::DnsName(name.try_into().expect("name")));
    }
    params.subject_alt_names.insert(1, SanType::IpAddress([127, 0, 0, 1].into()));
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, &issuer(&ca)).expect("certificate").der().clone();
    let pem = link::files::to_pem("CERTIFICATE", &certificate);
    assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"), certificate);
    let own = Certificate { certificate, key: key.serialize_der() };
    let (url, _tasks) = echo_hub_with(&ca, &own).await;
    let node = Node::join(&ca, "edge-1", LONG);
    let tls = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    connect(&target(&url, "edge-1", tls.clone())).await.map(|_| ()).expect("by address");
    let by_name = url.replace("127.0.0.1", "localhost");
    connect(&target(&by_name, "edge-1", tls)).await.map(|_| ()).expect("by name");
}

fn hub(ca: &CertificateAuthority) -> Certificate {
    let issued = ca.issue_server("KubeEdge", "KubeEdge", &["127.0.0.1".into(), String::new()]).expect("certificate");
    Certificate { certificate: issued.certificate, key: issued.key }
}

#[test]
fn a_node_gets_the_certificate_that_it_asked_for_and_no_other() {
    let ca = CertificateAuthority::generate().expect("CA");
    let node = Node::join(&ca, "edge-1", LONG);
    let identity = verify_client(ca.certificate(), &node.certificate, SystemTime::now()).expect("verified");
    assert_eq!(identity.node(), Some("edge-1"));
    assert_eq!(identity.organisations, ["system:nodes"]);

    let request = node_request("edge-2").expect("request").request;
    let error = ca.sign_node(&request, "edge-1", &[2], LONG).expect_err("another's name");
    assert!(matches!(error, CaError::OtherNode { .. }), "{error}");
    assert!(matches!(ca.sign_node(b"garbage", "edge-1", &[2], LONG), Err(CaError::Request(_))));
    let mut forged = node_request("edge-1").expect("request").request;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(ca.sign_node(&forged, "edge-1", &[2], LONG), Err(CaError::Request(_))));
    let request = node_request("edge-1").expect("request").request;
    assert!(matches!(ca.sign_node(&request, "edge-1", &[], LONG), Err(CaError::NoUsage)));
    assert!(matches!(ca.sign_node(&request, "edge-1", &[99], LONG), Err(CaError::Usage(99))));
}

#[test]
fn a_certificate_is_believed_only_from_this_ca_and_in_its_time() {
    let ca = CertificateAuthority::generate().expect("CA");
    let other = CertificateAuthority::generate().expect("CA");
    let node = Node::join(&ca, "edge-1", LONG);
    let now = SystemTime::now();
    assert!(matches!(verify_client(other.certificate(), &node.certificate, now), Err(IdentityError::NotIssued(..))));
    let late = verify_client(ca.certificate(), &node.certificate, now + 2 * LONG).expect_err("expired");
    assert!(matches!(late, IdentityError::Expired(_)) && late.to_string().contains("keadm gettoken"), "{late}");
    let early = now - Duration::from_secs(7200);
    assert!(matches!(verify_client(ca.certificate(), &node.certificate, early), Err(IdentityError::NotYet(_))));
    let server = hub(&ca);
    assert!(matches!(verify_client(ca.certificate(), &server.certificate, now), Err(IdentityError::NotIssued(..))));
}

#[test]
fn a_stored_ca_goes_on_as_it_was() {
    let ca = CertificateAuthority::generate().expect("CA");
    let again = CertificateAuthority::from_der(ca.certificate().to_vec(), ca.key()).expect("stored CA");
    assert_eq!(again.hash(), ca.hash());
    let node = Node::join(&again, "edge-1", LONG);
    verify_client(ca.certificate(), &node.certificate, SystemTime::now()).expect("of the same CA");
    let identity = Identity::read(ca.certificate()).expect("identity");
    assert_eq!(identity.common_name, "KubeEdge");
}

/// A hub that answers every message with itself, until the peer closes.
async fn echo_hub(ca: &CertificateAuthority) -> (String, tokio::task::JoinSet<()>) {
    echo_hub_with(ca, &hub(ca)).await
}

async fn echo_hub_with(ca: &CertificateAuthority, own: &Certificate) -> (String, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("wss://{}/project/edge-1/events", listener.local_addr().expect("address"));
    let tls = server(own, ClientAuth::Required(ca.certificate().clone()), &[b"http/1.1"]).expect("TLS");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.expect("connection");
            let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls.clone()).accept(tcp).await else { continue };
            let decide = |request: &Request<()>| match request.headers().get("node_id").map(HeaderValue::as_bytes) {
                Some(b"edge-1") => Ok(HeaderMap::from_iter([(
                    http::HeaderName::from_static("x-ferroedge-features"),
                    HeaderValue::from_static("none"),
                )])),
                _ => Err(Refusal { status: StatusCode::FORBIDDEN, reason: "who are you?".into() }),
            };
            let Ok((mut reader, mut writer)) = accept(stream, SOON, SOON, decide).await else { continue };
            while let Ok(incoming) = reader.next().await {
                match incoming {
                    Incoming::Message(message) => writer.send(message.to_vec()).await.expect("sent"),
                    Incoming::Binary(frame) => writer.send_binary(frame.to_vec()).await.expect("sent"),
                    Incoming::Alive => {}
                    Incoming::Closed(_) => break,
                }
            }
        }
    });
    (url, tasks)
}

fn target(url: &str, node: &str, tls: Arc<link::rustls::ClientConfig>) -> Target {
    Target {
        url: url.to_owned(),
        headers: vec![("node_id", node.to_owned())],
        tls,
        connect_deadline: SOON,
        write_deadline: SOON,
    }
}

#[tokio::test]
async fn messages_of_all_sizes_pass_a_mutual_tls_websocket() {
    let ca = CertificateAuthority::generate().expect("CA");
    let (url, _tasks) = echo_hub(&ca).await;
    let node = Node::join(&ca, "edge-1", LONG);
    let tls = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    let (mut reader, mut writer, headers) = connect(&target(&url, "edge-1", tls)).await.expect("connected");
    assert_eq!(headers["x-ferroedge-features"], "none");
    for size in [0, 1, 4096, 8192, 8193, 3_000_000] {
        writer.send(vec![b'x'; size]).await.expect("sent");
        assert_eq!(reader.next().await.expect("answer"), Incoming::Message(Bytes::from(vec![b'x'; size])));
        writer.send_binary(vec![0xff; size]).await.expect("sent");
        assert_eq!(reader.next().await.expect("answer"), Incoming::Binary(Bytes::from(vec![0xff; size])));
    }
    // A letter of several bytes may stand on the border of two fragments.
    let text = "ü€".repeat(5000).into_bytes();
    writer.send(text.clone()).await.expect("sent");
    assert_eq!(reader.next().await.expect("answer"), Incoming::Message(Bytes::from(text)));
    writer.ping().await.expect("ping");
    assert_eq!(reader.next().await.expect("pong"), Incoming::Alive);
}

#[tokio::test]
async fn an_oversized_message_ends_the_connection_and_nothing_else() {
    let ca = CertificateAuthority::generate().expect("CA");
    let (url, _tasks) = echo_hub(&ca).await;
    let node = Node::join(&ca, "edge-1", LONG);
    let tls = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    let (mut reader, mut writer, _) = connect(&target(&url, "edge-1", tls.clone())).await.expect("connected");
    let sent = writer.send(vec![b'x'; MAX_MESSAGE_BYTES + 1]).await;
    assert!(sent.is_err() || matches!(reader.next().await, Err(_) | Ok(Incoming::Closed(_))));
    let (mut reader, mut writer, _) = connect(&target(&url, "edge-1", tls)).await.expect("the hub still serves");
    writer.send(b"hello".to_vec()).await.expect("sent");
    assert_eq!(reader.next().await.expect("answer"), Incoming::Message(Bytes::from_static(b"hello")));
}

#[tokio::test]
async fn whoever_may_not_connect_is_told_why() {
    let ca = CertificateAuthority::generate().expect("CA");
    let (url, _tasks) = echo_hub(&ca).await;
    let node = Node::join(&ca, "edge-1", LONG);
    let own = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    match connect(&target(&url, "edge-2", own.clone())).await {
        Err(LinkError::Refused { status: 403, reason, .. }) => assert_eq!(reason, "who are you?"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    let none = client(ca.certificate(), None).expect("TLS");
    assert!(connect(&target(&url, "edge-1", none)).await.is_err(), "without certificate");
    let other = CertificateAuthority::generate().expect("CA");
    let foreign = client(other.certificate(), None).expect("TLS");
    let error = connect(&target(&url, "edge-1", foreign)).await.map(|_| ()).expect_err("another CA");
    assert!(matches!(error, LinkError::Tls(TlsFailure::OtherCa(..))), "{error}");
    let named = url.replace("127.0.0.1", "localhost");
    let error =
        connect(&target(&named, "edge-1", own.clone())).await.map(|_| ()).expect_err("a name that it is not made for");
    assert!(matches!(error, LinkError::Tls(TlsFailure::OtherName(..))), "{error}");
    let error = connect(&target("wss://127.0.0.1:1/", "edge-1", own)).await.map(|_| ()).expect_err("nobody there");
    assert!(matches!(error, LinkError::Connect(..)), "{error}");
}

#[tokio::test]
async fn who_connects_and_says_nothing_loses_his_place() {
    let ca = CertificateAuthority::generate().expect("CA");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let tls = server(&hub(&ca), ClientAuth::Requested, &[b"http/1.1"]).expect("TLS");
    let (_keep, tls) = tokio::sync::watch::channel(tls);
    let mut tasks = tokio::task::JoinSet::new();
    let http = HttpServer { listener, tls: Some(tls), max_connections: 1, max_streams: MAX_STREAMS };
    tasks.spawn(http.serve(
        |_, _| async { Response::new(Full::new(Bytes::from("served")).map_err(|never| match never {}).boxed()) },
        CancellationToken::new(),
    ));
    let tls = client(ca.certificate(), None).expect("TLS");
    let connector = tokio_rustls::TlsConnector::from(tls.clone());
    let tcp = tokio::net::TcpStream::connect(address).await.expect("connected");
    let name = link::rustls::pki_types::ServerName::try_from("127.0.0.1").expect("name");
    let _silent = connector.connect(name, tcp).await.expect("TLS");
    let url = format!("https://{address}/");
    let deadline = SOON * 2;
    let call = Call { method: "GET", url: &url, headers: &[], body: Vec::new(), tls, deadline, max_answer: 100 };
    let (_, body) = call.send().await.expect("answer");
    assert_eq!(body.as_ref(), b"served");
}

#[tokio::test]
async fn https_carries_a_body_on_get_and_shows_the_handler_the_certificate() {
    let ca = CertificateAuthority::generate().expect("CA");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("https://{}/edge.crt", listener.local_addr().expect("address"));
    let tls = server(&hub(&ca), ClientAuth::Requested, &[b"http/1.1"]).expect("TLS");
    let (_keep, tls) = tokio::sync::watch::channel(tls);
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let http = HttpServer { listener, tls: Some(tls), max_connections: 10, max_streams: MAX_STREAMS };
    tasks.spawn(http.serve(
        |request, peer| async move {
            let shown =
                peer.certificate.and_then(|c| Identity::read(&c).ok()).map(|i| i.common_name).unwrap_or_default();
            let body = request.into_body().collect().await.expect("body").to_bytes();
            let text = format!("{shown}:{}", String::from_utf8_lossy(&body));
            Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed())
        },
        stop.clone(),
    ));
    // A certificate of any CA is shown to the handler, which decides.
    let stranger = CertificateAuthority::generate().expect("CA");
    let node = Node::join(&stranger, "edge-9", LONG);
    let call = |tls, max_answer| Call {
        method: "GET",
        url: &url,
        headers: &[("nodename", "edge-9")],
        body: b"csr".to_vec(),
        tls,
        deadline: SOON,
        max_answer,
    };
    let with = client(ca.certificate(), Some(&node.certificate())).expect("TLS");
    let (status, body) = call(with, 100).send().await.expect("answer");
    assert_eq!((status, body.as_ref()), (200, &b"system:node:edge-9:csr"[..]));
    let (_, body) = call(client_without_verification().expect("TLS"), 100).send().await.expect("answer");
    assert_eq!(body.as_ref(), b":csr");
    let short = call(client_without_verification().expect("TLS"), 2).send().await;
    assert!(matches!(short, Err(CallError::Answer(..))));
    let wrong = call(client(stranger.certificate(), None).expect("TLS"), 100).send().await;
    assert!(matches!(wrong, Err(CallError::Tls(TlsFailure::OtherCa(..)))));
    stop.cancel();
    tasks.join_next().await.expect("server").expect("ended");
}
