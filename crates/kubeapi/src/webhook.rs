//! Webhooks that convert custom resources (`apiextensions.k8s.io/v1`, ConversionReview).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use link::http_client::{Call, CallError};
use link::rustls::ClientConfig;
use link::rustls::pki_types::CertificateDer;
use link::rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::error::Cause;

/// How long one question may take: whoever asked the API waits for it.
const DEADLINE: Duration = Duration::from_secs(10);
/// A longer answer is refused.
const MAX_ANSWER: usize = 32 << 20;
const REVIEW: &str = "apiextensions.k8s.io/v1";
const FIELD: &str = "spec.conversion";

/// `spec.conversion` of a CustomResourceDefinition.
#[derive(Debug)]
pub enum Conversion {
    /// The version is changed, and nothing else.
    None,
    /// Somebody is asked.
    Webhook(Webhook),
}

/// Whom to ask.
#[derive(Debug)]
pub struct Webhook {
    url: String,
    /// Its host and port, for messages: the path may hold what is not for everybody.
    host: String,
    /// Or why there is none.
    tls: Result<Arc<ClientConfig>, String>,
}

impl Conversion {
    /// Reads it. What passed [`validate`] can be used.
    pub(crate) fn of(conversion: &Value) -> Self {
        if conversion["strategy"] != "Webhook" {
            return Self::None;
        }
        let config = &conversion["webhook"]["clientConfig"];
        let url = config["url"].as_str().unwrap_or_default().to_owned();
        let host = url.parse().ok().and_then(|uri: Uri| uri.authority().map(ToString::to_string)).unwrap_or_default();
        Self::Webhook(Webhook { url, host, tls: trust(config) })
    }
}

/// Names what is wrong with `spec.conversion` of a definition.
pub(crate) fn validate(conversion: &Value, causes: &mut Vec<Cause>) {
    let webhook = &conversion["webhook"];
    match conversion["strategy"].as_str() {
        None if conversion.is_null() => return,
        Some("None") if webhook.is_null() => return,
        Some("None") => {
            causes.push(Cause::forbidden(format!("{FIELD}.webhook"), "may not be set when strategy is not Webhook"));
            return;
        }
        Some("Webhook") => {}
        _ => {
            causes.push(Cause::not_supported(
                format!("{FIELD}.strategy"),
                &conversion["strategy"],
                &["None", "Webhook"],
            ));
            return;
        }
    }
    let versions = webhook["conversionReviewVersions"].as_array();
    if !versions.is_some_and(|versions| versions.iter().any(|version| version == "v1")) {
        let why = "must include v1, which this server sends";
        causes.push(Cause::invalid(
            format!("{FIELD}.webhook.conversionReviewVersions"),
            &webhook["conversionReviewVersions"],
            why,
        ));
    }
    let config = &webhook["clientConfig"];
    let at = |field: &str| format!("{FIELD}.webhook.clientConfig{field}");
    if config["url"].is_null() {
        let why = "this server has no network of Services: name the webhook by url";
        causes.push(Cause::required(at(".url"), why));
    } else if !config["url"].as_str().is_some_and(is_usable) {
        let why = "must be of the form https://host:port/path, without user, query and fragment";
        causes.push(Cause::invalid(at(".url"), &config["url"], why));
    }
    if let Err(why) = trust(config) {
        causes.push(Cause::invalid(at(".caBundle"), &json!("…"), &why));
    }
}

fn is_usable(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    uri.scheme_str() == Some("https") && uri.host().is_some() && !has_user && !url.contains(['?', '#'])
}

fn trust(config: &Value) -> Result<Arc<ClientConfig>, String> {
    let wrong = || "must hold the certificates of the webhook's CA: PEM, in base64".to_owned();
    let pem = STANDARD.decode(config["caBundle"].as_str().unwrap_or_default()).map_err(|_| wrong())?;
    let cas: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| wrong())?;
    if cas.is_empty() {
        return Err(wrong());
    }
    link::tls::client_of(cas).map_err(|error| error.to_string())
}

impl Webhook {
    /// The objects in another version, in the same order.
    ///
    /// # Errors
    /// Says why there is none: nobody answers, or the webhook refuses.
    pub(crate) async fn convert(&self, wanted: &str, objects: &[&Value]) -> Result<Vec<Value>, String> {
        let host = &self.host;
        let tls = self.tls.clone()?;
        let uid = crate::meta::new_uid();
        let request = json!({"uid": uid, "desiredAPIVersion": wanted, "objects": objects});
        let review = json!({"kind": "ConversionReview", "apiVersion": REVIEW, "request": request});
        let call = Call {
            method: "POST",
            url: &self.url,
            headers: &[("content-type", "application/json"), ("accept", "application/json")],
            body: review.to_string().into_bytes(),
            tls,
            deadline: DEADLINE,
            max_answer: MAX_ANSWER,
        };
        let (status, body) = call.send().await.map_err(|error| self.unreachable(&error))?;
        if status != 200 {
            return Err(format!("{host} answered with status {status}"));
        }
        let mut answer: Value = serde_json::from_slice(&body).map_err(|_| format!("{host} answered with no JSON"))?;
        let response = &mut answer["response"];
        if response["uid"] != uid {
            return Err(format!("{host} answered another request"));
        }
        if response["result"]["status"] != "Success" {
            let why = response["result"]["message"].as_str().unwrap_or("no reason is given");
            return Err(why.to_owned());
        }
        match response["convertedObjects"].take() {
            Value::Array(converted) if converted.len() == objects.len() => Ok(converted),
            _ => Err(format!("{host} did not answer with as many objects as it was asked for")),
        }
    }

    fn unreachable(&self, error: &CallError) -> String {
        let host = &self.host;
        let why = match error {
            CallError::Tls(failure) => format!("its certificate is not taken: {}", cause(failure)),
            CallError::Timeout(..) => format!("no answer within {} s", DEADLINE.as_secs()),
            error => format!("{error}: {}", cause(error)),
        };
        format!("{host}: {why}: does the program that serves it run there?")
    }
}

fn cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| "no reason is given".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let config = |url: &str, bundle: &str| json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": STANDARD.encode(bundle)}}});
        let ca = link::ca::CertificateAuthority::generate().expect("a CA");
        let good = link::files::to_pem("CERTIFICATE", ca.certificate());
        for (conversion, fields) in [
            (Value::Null, vec![]),
            (json!({"strategy": "None"}), vec![]),
            (json!({"strategy": "Magic"}), vec!["strategy"]),
            (json!({"strategy": "None", "webhook": {}}), vec!["webhook"]),
            (
                json!({"strategy": "Webhook"}),
                vec!["webhook.conversionReviewVersions", "webhook.clientConfig.url", "webhook.clientConfig.caBundle"],
            ),
            (config("https://127.0.0.1:1/x", &good), vec![]),
            (config("https://host/x?y=z", &good), vec!["webhook.clientConfig.url"]),
            (config("http://host/x", &good), vec!["webhook.clientConfig.url"]),
            (config("https://me@host/x", &good), vec!["webhook.clientConfig.url"]),
            (config("https://host/x", pem), vec!["webhook.clientConfig.caBundle"]),
            (config("https://host/x", ""), vec!["webhook.clientConfig.caBundle"]),
        ] {
            let mut causes = Vec::new();
            validate(&conversion, &mut causes);
            let found: Vec<&str> =
                causes.iter().filter_map(|cause| cause.field.strip_prefix("spec.conversion.")).collect();
            assert_eq!(found, fields, "{conversion}");
        }
    }
}
