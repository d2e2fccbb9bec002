//! The certificate endpoint: who gets a certificate, who does not and why, and that it is written down.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use link::ca::{CertificateAuthority, node_request};
use link::identity::Identity;
use link::rustls::pki_types::CertificateDer;
use link::tls::{self, Certificate};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use ring::hmac;
use testkit::go_edge::{GoEdge, http, registration, renew, request};
use testkit::golden::{Exchange, exchanges};

use crate::cloud::{Cloud, SOON, node_object, pod};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_its_certificate_and_kubernetes_knows() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = cloud.register("n1").await?;
    let identity = Identity::read(&credentials.own.certificate)?;
    assert_eq!(
        (identity.common_name.as_str(), identity.organisations),
        ("system:node:n1", vec!["system:nodes".to_owned()])
    );
    let left = identity.not_after.duration_since(SystemTime::now())?;
    assert!((364..=365).contains(&(left.as_secs() / 86_400)), "{left:?}");
    assert_eq!(credentials.ca.to_vec(), cloud.secret("casecret", "cadata").await?);

    let list = cloud
        .wait_for(CSRS, "the record", |list| list["items"].as_array().is_some_and(|items| items.len() == 1))
        .await?;
    let record = &list["items"][0];
    let condition = &record["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&"Approved".into(), &"True".into()));
    assert!(
        condition["message"].as_str().is_some_and(|text| text.contains("n1") && text.contains("token")),
        "{condition}"
    );
    let pem = STANDARD.decode(record["status"]["certificate"].as_str().context("certificate")?)?;
    assert_eq!(String::from_utf8(pem)?, link::files::to_pem("CERTIFICATE", &credentials.own.certificate));

    // Renewal by the certificate itself; only the newest few are kept.
    let mut newest = credentials;
    for _ in 0..6 {
        newest = renew(cloud.addresses().https, &newest, "n1").await?;
    }
    let list = cloud.get(CSRS).await?;
    let items = list["items"].as_array().context("items")?;
    assert!(items.len() <= 5, "{} records", items.len());
    assert!(
        items.iter().all(|item| item["status"]["conditions"][0]["message"].to_string().contains("current certificate"))
    );
    cloud.connect(&newest, "n1").await?;
    Ok(())
}

/// Every recorded request to the certificate endpoint. Where ours answers otherwise than upstream's, the table says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_requests_are_answered_as_recorded() -> Result<()> {
    let cloud = Cloud::start().await?;
    cloud.edge("go-edge").await?;
    let world = World::of(&cloud).await?;
    let (mut compared, mut wrong) = (0, Vec::new());
    for exchange in exchanges()?.iter().filter(|exchange| exchange.port == 10002) {
        let Some(expected) = expected(exchange) else { continue };
        let found = match world.send(exchange).await {
            Ok(answer) => {
                if exchange.path == "/edge.crt" && answer.status == 200 {
                    let identity = Identity::read(&answer.body)?;
                    assert_eq!(identity.node(), Some("go-edge"), "{}", exchange.note);
                } else if exchange.path != "/ca.crt" && answer.status != 200 {
                    let kind = answer.header("content-type").unwrap_or_default();
                    assert!(kind.starts_with("text/plain") && !answer.body.is_empty(), "{}: {kind}", exchange.note);
                } else if !exchange.path.ends_with(".crt") {
                    assert_eq!(answer.body, exchange.answer, "{}", exchange.note);
                }
                answer.status
            }
            Err(error) => panic!("{}: {error:#}", exchange.note),
        };
        compared += 1;
        if found != expected {
            wrong.push(format!("{}: wanted {expected}, got {found}", exchange.note));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(compared > 35, "only {compared} compared");
    Ok(())
}

/// The status that ours must have: upstream's, but for its known faults. `None`: not a part of this version.
fn expected(exchange: &Exchange) -> Option<u16> {
    match exchange.note.as_str() {
        // A certificate is for the node that asks and nobody else.
        "good token, CSR with another CN"
        | "good token, CSR with O acme and CN without prefix"
        | "renewal, CSR with another CN" => Some(500),
        "good token, no NodeName header" => Some(401),
        // One certificate for all nodes renews for none.
        "legacy client certificate O KubeEdge CN kubeedge.io" => Some(401),
        // Upstream's server crashes over it.
        "client certificate without O" => Some(401),
        // The mission wants POST as well as GET.
        "good token, wrong method" => Some(200),
        // A stricter reader of tokens: one algorithm, and an end.
        "good token, HS512" => Some(401),
        _ if exchange.path.starts_with("/task/") || exchange.path == "/nodeupgrade" => None,
        _ => exchange.status,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_cause_and_cure() -> Result<()> {
    let cloud = Cloud::start().await?;
    let world = World::of(&cloud).await?;
    let https = cloud.addresses().https;
    let csr = node_request("n1")?.request;
    let ask = async |authorization: &str, node: &str| {
        registration::ask(https, &world.ca, None, node, Some(authorization), &csr)
            .await
            .map(|answer| (answer.status, answer.text()))
    };
    for (authorization, node, cause, cure) in [
        (
            format!("Bearer {}", world.jwt("key of another", r#"{"exp":99999999999}"#)),
            "n1",
            "signature is wrong",
            "keadm gettoken",
        ),
        (format!("Bearer {}", world.own_jwt(r#"{"exp":1}"#)), "n1", "expired", "keadm gettoken"),
        ("Bearer x".to_owned(), "n1", "malformed", "keadm gettoken"),
        (String::new(), "n1", "neither a client certificate nor a token", "Authorization"),
        (format!("Bearer {}", world.own_jwt(r#"{"exp":99999999999}"#)), "n2", "system:node:n1", "system:node:n2"),
        (format!("Bearer {}", world.own_jwt(r#"{"exp":99999999999}"#)), "N_2", "NodeName", "lower-case"),
    ] {
        let (status, text) = ask(&authorization, node).await?;
        assert!(status >= 400 && text.contains(cause) && text.contains(cure), "{cause}: {status} {text}");
        assert!(authorization.len() < 10 || !text.contains(&authorization[7..]), "the token is repeated");
    }
    let expired = certificate(&world.ca, &world.ca_key, "system:node:n1", "system:nodes", -1)?;
    let answer = registration::ask(https, &world.ca, Some(&expired), "n1", None, &csr).await?;
    assert!(
        answer.status == 401 && answer.text().contains("expired") && answer.text().contains("keadm gettoken"),
        "{}",
        answer.text()
    );
    // The way back: a new token, without the old certificate.
    cloud.register("n1").await?;
    let too_long = vec![0; (1 << 20) + 1];
    let token = format!("Bearer {}", world.own_jwt(r#"{"exp":99999999999}"#));
    let answer = registration::ask(https, &world.ca, None, "n1", Some(&token), &too_long).await;
    // The server may close before everything is written.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status >= 400));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_name_gives_a_new_server_certificate_of_the_same_ca() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let credentials = cloud.register("n1").await?;
    let before = cloud.secret("cloudcoresecret", "cloudcoredata").await?;
    cloud.stop_hub().await?;
    cloud.start_hub("    dnsNames: [hub.example.org]\n").await?;
    let after = cloud.secret("cloudcoresecret", "cloudcoredata").await?;
    assert_ne!(before, after);
    assert!(after.windows(15).any(|part| part == b"hub.example.org"));
    assert_eq!(cloud.secret("casecret", "cadata").await?, credentials.ca.to_vec());
    cloud.connect(&credentials, "n1").await?;
    // Without a change it stays.
    cloud.stop_hub().await?;
    cloud.start_hub("    dnsNames: [hub.example.org]\n").await?;
    assert_eq!(cloud.secret("cloudcoresecret", "cloudcoredata").await?, after);
    // An older token stays good until its end.
    cloud.register("n2").await?;
    Ok(())
}

/// Upstream's replicas each make a CA, and one of them ends with one that nobody trusts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_start_together_share_their_ca() -> Result<()> {
    let cloud = Cloud::start_without_hub().await?;
    let (one, two) = tokio::try_join!(cloud.start_replica(""), cloud.start_replica(""))?;
    cloud.cluster.wait("a join token", SOON, || cloud.cluster.has_token()).await?;
    let token = cloud.token().await?;
    let credentials = registration::register(one.addresses.https, &token, "n1").await?;
    registration::fetch_ca(two.addresses.https, &token).await?;
    // A certificate of one is good at the other, and what is pushed there arrives.
    let edge = GoEdge::connect(two.addresses.websocket, &credentials, "n1").await?;
    let answer = edge.request(request("insert", "null/node/n1", node_object("n1"))).await?;
    assert!(answer["content"]["Err"].is_null(), "{answer}");
    cloud.create("/api/v1/namespaces/default/pods", &pod("web", "n1")).await?;
    edge.wait("its pod", SOON, |seen| seen.rows.get("default/pod/web").cloned()).await?;
    Ok(())
}

/// CA and key, and what is signed with them.
struct World {
    ca: CertificateDer<'static>,
    ca_key: Vec<u8>,
    https: std::net::SocketAddr,
}

impl World {
    async fn of(cloud: &Cloud) -> Result<Self> {
        let ca = cloud.secret("casecret", "cadata").await?.into();
        Ok(Self { ca, ca_key: cloud.secret("casecret", "cakeydata").await?, https: cloud.addresses().https })
    }

    fn own_jwt(&self, claims: &str) -> String {
        signed(&self.ca_key, claims)
    }

    fn jwt(&self, key: &str, claims: &str) -> String {
        signed(key.as_bytes(), claims)
    }

    /// What stands for the recording's redacted token.
    fn authorization(&self, note: &str, recorded: &str) -> String {
        let scheme = recorded.split(' ').next().unwrap_or_default();
        let good = self.own_jwt(&format!("{{\"exp\":{}}}", now() + 3600));
        let token = match note {
            "good token, claims without exp" => self.own_jwt("{}"),
            "good token, HS512" => {
                good.replace("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9")
            }
            "wrong token (signed with another key)" => self.jwt("another", "{\"exp\":99999999999}"),
            "expired token" => self.own_jwt("{\"exp\":1000}"),
            "token not yet valid (nbf in the future)" => self.own_jwt("{\"exp\":99999999999,\"nbf\":99999999998}"),
            "whole four-part bootstrap token" => format!("{}.{good}", "0".repeat(64)),
            "garbled token" => "garbled".to_owned(),
            "garbled token of three parts" => "a.b.c".to_owned(),
            "alg none token" => format!(
                "{}.{}.",
                URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"),
                URL_SAFE_NO_PAD.encode("{\"exp\":99999999999}")
            ),
            "alg RS256 in the header, HMAC signature absent" => {
                format!(
                    "{}.{}.",
                    URL_SAFE_NO_PAD.encode("{\"alg\":\"RS256\"}"),
                    URL_SAFE_NO_PAD.encode("{\"exp\":99999999999}")
                )
            }
            "good token, no scheme" => return good,
            "good token, three words" => return format!("Bearer {good} more"),
            "empty Authorization header" => return String::new(),
            _ => good,
        };
        format!("{scheme} {token}")
    }

    /// What stands for the recording's client certificate.
    fn own(&self, exchange: &Exchange) -> Result<Option<Certificate>> {
        let Some(described) = &exchange.client_certificate else { return Ok(None) };
        let (foreign, foreign_key) = foreign_ca()?;
        let node = if described.contains("CN = system:node:go-edge;") {
            "system:node:go-edge"
        } else {
            "system:node:somebody"
        };
        let (ca, key) = (self.ca.as_ref(), self.ca_key.as_slice());
        let own = match exchange.note.as_str() {
            note if note.starts_with("client certificate of a foreign CA") => {
                certificate(&foreign, &foreign_key, node, "system:nodes", 1)?
            }
            "expired client certificate" => certificate(ca, key, node, "system:nodes", -1)?,
            note if note.starts_with("legacy") => certificate(ca, key, "kubeedge.io", "KubeEdge", 1)?,
            "client certificate without O" => certificate(ca, key, node, "", 1)?,
            _ => certificate(ca, key, node, "system:nodes", 1)?,
        };
        Ok(Some(own))
    }

    async fn send(&self, exchange: &Exchange) -> Result<http::Answer> {
        let own = self.own(exchange)?;
        let headers: Vec<(&str, String)> = exchange
            .headers
            .iter()
            .filter(|(name, _)| name != "Host")
            .map(|(name, value)| match name.as_str() {
                "Authorization" => (name.as_str(), self.authorization(&exchange.note, value)),
                _ => (name.as_str(), value.clone()),
            })
            .collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let tls = tls::client(&self.ca, own.as_ref())?;
        http::exchange(self.https, tls, &exchange.method, &exchange.path, &headers, &exchange.body).await
    }
}

fn signed(key: &[u8], claims: &str) -> String {
    let text =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A CA that looks like ours and is not.
pub fn foreign_ca() -> Result<(Vec<u8>, Vec<u8>)> {
    let ca = CertificateAuthority::generate()?;
    Ok((ca.certificate().to_vec(), ca.key().to_vec()))
}

/// A client certificate that ends in so many days; with a negative number it has ended. An empty organisation is left out.
pub fn certificate(ca: &[u8], ca_key: &[u8], name: &str, organisation: &str, days: i64) -> Result<Certificate> {
    let pair = KeyPair::try_from(link::key::to_pkcs8(ca_key)?.as_slice())?;
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(ca), pair)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !organisation.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = time::OffsetDateTime::from(SystemTime::now());
    params.not_before = now - time::Duration::days(10);
    params.not_after = now + time::Duration::days(days);
    let certificate = params.signed_by(&key, &issuer)?.der().clone();
    Ok(Certificate { certificate, key: link::key::to_sec1(&key.serialize_der())? })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
