//! ServiceAccount tokens: JWTs signed with ES256.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use kubeapi::error::Cause;
use kubeapi::{ApiError, User};
use link::key::{NotP256, to_pkcs8};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

/// Who issues the tokens, and for whom when the request does not say.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// This API, as an audience.
const OWN_AUDIENCES: [&str; 2] = [ISSUER, "https://kubernetes.default.svc"];
/// A token lasts at least this long.
const SHORTEST: i64 = 600;
/// A token lasts an hour when the request does not say.
const USUAL: i64 = 3600;
/// A token lasts at most this long.
const LONGEST: i64 = 365 * 24 * 3600;
/// A longer token is refused unread.
const MAX_TOKEN: usize = 8192;

/// The key that signs tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

/// What a valid token says.
pub(super) struct Claims {
    /// The ServiceAccount as a user.
    pub(super) user: User,
    /// The ServiceAccount's namespace.
    pub(super) namespace: String,
    /// The ServiceAccount's name.
    pub(super) account: String,
    /// The object that the token goes with.
    pub(super) bound: Option<Bound>,
    audiences: Vec<String>,
}

/// An object that a token goes with.
pub(super) struct Bound {
    /// `pods`, `secrets` or `nodes`.
    pub(super) plural: &'static str,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What a token can be bound to: its claim and the resource. A pod's token names the pod's node as well.
const BOUND: [(&str, &str); 3] = [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")];

/// The groups of a ServiceAccount.
pub(super) fn groups_of(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

impl Claims {
    /// Those of these audiences that the token is for; without any, this API's own. `None` when it is for none of them.
    pub(super) fn for_any_of(&self, audiences: &[&str]) -> Option<Vec<String>> {
        let wanted = if audiences.is_empty() { &OWN_AUDIENCES[..] } else { audiences };
        let common: Vec<String> = self.audiences.iter().filter(|a| wanted.contains(&a.as_str())).cloned().collect();
        (!common.is_empty()).then_some(common)
    }
}

/// The stored key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// It is no P-256 key.
    #[error("the key for ServiceAccount tokens cannot be read")]
    Key(#[source] NotP256),
    /// The library refuses it.
    #[error("the key for ServiceAccount tokens was rejected: {0}")]
    Rejected(ring::error::KeyRejected),
}

impl TokenKey {
    /// A stored key, SEC 1 or PKCS#8.
    ///
    /// # Errors
    /// It is no P-256 key.
    pub fn from_der(der: &[u8]) -> Result<Self, TokenKeyError> {
        let random = SystemRandom::new();
        let pkcs8 = to_pkcs8(der).map_err(TokenKeyError::Key)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random)
            .map_err(TokenKeyError::Rejected)?;
        Ok(Self { pair, random })
    }

    /// Answers a TokenRequest for a ServiceAccount.
    pub(super) fn issue(&self, account: &Value, mut request: Value) -> Result<Value, ApiError> {
        let meta = &account["metadata"];
        let (name, namespace) = (text(&meta["name"]), text(&meta["namespace"]));
        let wished = request["spec"]["expirationSeconds"].as_i64().unwrap_or(USUAL);
        if wished < SHORTEST {
            let why = "may not specify a duration less than 10 minutes";
            let cause = Cause::invalid("spec.expirationSeconds", &json!(wished), why);
            return Err(ApiError::invalid("TokenRequest", "authentication.k8s.io", name, &[cause]));
        }
        let seconds = wished.min(LONGEST);
        let now = since_epoch().as_secs() as i64;
        if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
            request["spec"]["audiences"] = json!([ISSUER]);
        }
        request["spec"]["expirationSeconds"] = json!(seconds);
        let mut kubernetes = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": meta["uid"]}});
        let bound = &request["spec"]["boundObjectRef"];
        if let Some(kind) = bound["kind"].as_str().filter(|kind| !kind.is_empty()) {
            kubernetes[kind.to_lowercase()] = json!({"name": bound["name"], "uid": bound["uid"]});
        }
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "aud": request["spec"]["audiences"],
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "kubernetes.io": kubernetes,
        });
        let token = self.sign(&claims)?;
        let expires = Timestamp::from_second(now + seconds).unwrap_or(Timestamp::MAX);
        request["status"] =
            json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
        request["kind"] = json!("TokenRequest");
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["metadata"] = json!({"name": name, "namespace": namespace, "uid": meta["uid"], "creationTimestamp": kubeapi::meta::now()});
        Ok(request)
    }

    /// What a token says; whether its ServiceAccount still exists is another question.
    pub(super) fn verify(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        let head: Value = serde_json::from_slice(&decode(head)?).ok()?;
        let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
        let now = since_epoch().as_secs() as i64;
        let in_time = claims["exp"].as_i64()? > now && claims["nbf"].as_i64().unwrap_or_default() <= now + 60;
        if head["alg"] != "ES256" || claims["iss"] != ISSUER || !in_time {
            return None;
        }
        let details = &claims["kubernetes.io"];
        let (namespace, account) = (text(&details["namespace"]), &details["serviceaccount"]);
        let bound = BOUND.iter().find(|(kind, _)| details[kind].is_object()).map(|(kind, plural)| Bound {
            plural,
            name: text(&details[kind]["name"]).to_owned(),
            uid: text(&details[kind]["uid"]).to_owned(),
        });
        Some(Claims {
            user: User {
                name: text(&claims["sub"]).to_owned(),
                groups: groups_of(namespace),
                uid: text(&account["uid"]).to_owned(),
            },
            namespace: namespace.to_owned(),
            account: text(&account["name"]).to_owned(),
            audiences: claims["aud"].as_array()?.iter().map(|audience| text(audience).to_owned()).collect(),
            bound,
        })
    }

    fn sign(&self, claims: &Value) -> Result<String, ApiError> {
        let head = URL_SAFE_NO_PAD.encode(br#"{"alg":"ES256","typ":"JWT"}"#);
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self
            .pair
            .sign(&self.random, signed.as_bytes())
            .map_err(|_| ApiError::internal("the system has no randomness"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        let ca = link::ca::CertificateAuthority::generate().expect("key");
        TokenKey::from_der(ca.key()).expect("key")
    }

    #[test]
    fn a_token_names_its_service_account_and_nobody_else_can_make_one() {
        let account = json!({"metadata": {"name": "builder", "namespace": "web", "uid": "u1"}});
        let (ours, theirs) = (key(), key());
        let answer = ours.issue(&account, json!({"spec": {}})).expect("token");
        let token = answer["status"]["token"].as_str().expect("token");
        let claims = ours.verify(token).expect("claims");
        assert_eq!(claims.for_any_of(&[]).expect("for this API"), [ISSUER]);
        let user = claims.user;
        assert_eq!(user.name, "system:serviceaccount:web:builder");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:web"]);
        assert_eq!(user.uid, "u1");
        assert!(theirs.verify(token).is_none());
        assert!(ours.verify(&token.replace('.', "x")).is_none() && ours.verify("a.b.c").is_none());
        assert!(ours.issue(&account, json!({"spec": {"expirationSeconds": 5}})).is_err());
        let other = ours.issue(&account, json!({"spec": {"audiences": ["vault"]}})).expect("token");
        let claims = ours.verify(other["status"]["token"].as_str().expect("token")).expect("claims");
        assert!(claims.for_any_of(&[]).is_none(), "made for somebody else");
        assert_eq!(claims.for_any_of(&["db", "vault"]).expect("for the vault"), ["vault"]);
    }
}
