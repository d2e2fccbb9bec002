//! A client of the API over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::http_client::Call;
use link::tls::{Certificate, client};
use serde_json::{Value, json};

use super::World;

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 16 << 20;

/// A client of one identity.
pub struct Client {
    url: String,
    pub tls: Arc<rustls::ClientConfig>,
    headers: Vec<(String, String)>,
}

impl Client {
    /// The administrator, by the certificate in the kubeconfig.
    pub fn admin(world: &World) -> Self {
        let plane = world.plane.as_ref().expect("running");
        let text = std::fs::read_to_string(plane.kubeconfig_path()).expect("kubeconfig");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).expect("field");
            let pem = String::from_utf8(STANDARD.decode(line.trim()).expect("base64")).expect("PEM");
            let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            STANDARD.decode(body).expect("DER")
        };
        let own = Certificate { certificate: field("client-certificate-data:").into(), key: field("client-key-data:") };
        let tls = client(&field("certificate-authority-data:").into(), Some(&own)).expect("TLS");
        Self { url: format!("https://{}", plane.addr()), tls, headers: Vec::new() }
    }

    /// Nobody, by no certificate.
    pub fn nobody(world: &World) -> Self {
        let ca = world.plane.as_ref().expect("running").data_dir().join("kubernetes-ca.crt");
        let pem = std::fs::read_to_string(ca).expect("CA");
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let tls = client(&STANDARD.decode(body).expect("DER").into(), None).expect("TLS");
        Self { tls, ..Self::admin(world) }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub async fn send(&self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let url = format!("{}{path}", self.url);
        let mut headers = vec![("content-type", kind)];
        headers.extend(self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let tls = self.tls.clone();
        let call = Call { method, url: &url, headers: &headers, body, tls, deadline: DEADLINE, max_answer: MAX_ANSWER };
        let (status, body) = call.send().await.expect("an answer");
        (status, body.to_vec())
    }

    pub async fn json(&self, method: &str, path: &str, kind: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, body) = self.send(method, path, kind, body).await;
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.json("GET", path, "application/json", &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("POST", path, "application/json", &body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("PUT", path, "application/json", &body).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        self.json("PATCH", path, kind, &body).await
    }

    pub async fn delete(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("DELETE", path, "application/json", &body).await
    }

    /// The events of a watch that ends by itself after a second.
    pub async fn watch(&self, path: &str) -> Vec<Value> {
        let (status, body) = self.send("GET", &format!("{path}&watch=true&timeoutSeconds=1"), "", Vec::new()).await;
        assert_eq!(status, 200);
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("an event")).collect()
    }
}
