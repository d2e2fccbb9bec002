//! Registration as KubeEdge v1.23.1 does it, from exchanges recorded with its programs.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use link::ca::CertificateAuthority;
use link::identity::{Identity, IdentityError, verify_client};
use link::rustls::pki_types::CertificateDer;
use serde_json::Value;

const RECORDED: &str = include_str!("../../testkit/golden/https-registration.jsonl");
/// Within the validity of every recorded certificate: 23 November 2026, noon.
const THEN: Duration = Duration::from_secs(1_795_435_200);

struct Exchange(Value);

impl Exchange {
    fn named(note: &str) -> Self {
        let all = RECORDED.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        Self(
            all.into_iter()
                .find(|exchange| {
                    exchange["note"] == note && (exchange["path"] == "/edge.crt" || note == "CA certificate")
                })
                .expect("recorded"),
        )
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        let text = self.0[key].as_str().expect("text");
        base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
    }

    fn request(&self) -> Vec<u8> {
        self.bytes("request_body_base64")
    }

    fn answer(&self) -> CertificateDer<'static> {
        self.bytes("response_body_base64").into()
    }
}

#[test]
fn a_go_edge_gets_its_certificate_from_us() {
    let ca = CertificateAuthority::generate().expect("CA");
    let day = Duration::from_secs(24 * 3600);
    let recorded = Exchange::named("fresh node, no certificate, token in the configuration file");
    let certificate = ca.sign_node(&recorded.request(), "go-edge", &[2], 365 * day).expect("signed");
    let ours = verify_client(ca.certificate(), &certificate, std::time::SystemTime::now()).expect("believed");
    let theirs = Identity::read(&recorded.answer()).expect("certificate");
    assert_eq!((ours.common_name, ours.organisations), (theirs.common_name, theirs.organisations));

    let usages = Exchange::named("good token, ExtKeyUsages [1,2]");
    ca.sign_node(&usages.request(), "go-edge", &[1, 2], day).expect("both usages");
    // Upstream signs whatever name the request has.
    for note in ["good token, CSR with another CN", "good token, CSR with O acme and CN without prefix"] {
        assert!(ca.sign_node(&Exchange::named(note).request(), "go-edge", &[2], day).is_err(), "{note}");
    }
    for note in ["good token, no body", "good token, PEM instead of DER", "good token, garbage body"] {
        assert!(ca.sign_node(&Exchange::named(note).request(), "go-edge", &[2], day).is_err(), "{note}");
    }
    let trailing = Exchange::named("good token, trailing byte after the CSR").request();
    assert!(ca.sign_node(&trailing, "go-edge", &[2], day).is_err(), "a byte too many");
}

#[test]
fn certificates_of_a_go_cloud_are_understood() {
    let ca = Exchange::named("CA certificate").answer();
    for note in ["good token", "renewal with the client certificate"] {
        let exchange = Exchange::named(note);
        let identity = verify_client(&ca, &exchange.answer(), UNIX_EPOCH + THEN).expect("believed");
        assert_eq!(identity.node(), Some("go-edge"), "{note}");
        let late = verify_client(&ca, &exchange.answer(), UNIX_EPOCH + THEN * 2);
        assert!(matches!(late, Err(IdentityError::Expired(_))), "{note}");
    }
}
