//! Tokens of service accounts, requested through MetaManager and kept as long as nothing newer can be had.
//!
//! The token in the volume is the only copy: its own claims tell when it was issued and when it ends, so that a restart of
//! edged asks for nothing that is still good.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use podlife::spec;
use rand::RngExt as _;
use serde::Deserialize;
use serde_json::json;
use wire::{Content, kind, operation};

use super::VolumeError;
use crate::meta::{MetaClient, MetaError};

/// Lifetime when the pod does not say (API default).
const DEFAULT_LIFETIME: i64 = 3600;
/// Longest age before a token is renewed.
const MAX_AGE: i64 = 24 * 3600;
/// Seconds by which a renewal may come earlier.
const MAX_JITTER: i64 = 10;

/// How far the clocks of node and cloud may differ.
const CLOCK_LEEWAY: i64 = 300;

/// Mode and owner of a token that not everybody in the pod may read.
pub(super) struct PrivateMode {
    pub mode: u32,
    pub owner: Option<u32>,
}

/// A token is private when the pod names a group for its volumes, or all containers run as the same user, who then owns it.
pub(super) fn private_mode(pod: &Pod) -> Option<PrivateMode> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let has_group = context.and_then(|context| context.fs_group).is_some();
    let owner = common_user(pod, context.and_then(|context| context.run_as_user));
    (has_group || owner.is_some()).then_some(PrivateMode { mode: 0o600, owner })
}

/// The user of all containers, if there is one.
fn common_user(pod: &Pod, shared: Option<i64>) -> Option<u32> {
    let mut users = spec::containers(pod)
        .iter()
        .chain(spec::init_containers(pod))
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(shared));
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

/// The part of a TokenRequest's answer that matters.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    spec: AnswerSpec,
    status: AnswerStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AnswerSpec {
    bound_object_ref: Option<BoundObject>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BoundObject {
    uid: String,
}

#[derive(Deserialize)]
struct AnswerStatus {
    token: String,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iat: i64,
    #[serde(default)]
    exp: i64,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

/// The API server makes tokens for itself live longer than was asked for, and says here when they should have been renewed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct KubernetesClaims {
    warnafter: Option<i64>,
}

/// The token for a volume: the one that is there while it is fresh, else a new one, else the old one all the same.
///
/// `None` only for a pod that has run before and for which no token can be had now, since the node is cut off: it is better
/// to run without than not at all. The next sync tries again.
pub(super) async fn token(
    meta: &MetaClient,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    volume: &Path,
) -> Result<Option<String>, VolumeError> {
    let current = fs::read_to_string(volume.join(&source.path)).ok().filter(|token| !token.is_empty());
    // The nodes of a fleet, restarted together, do not all ask in the same second.
    let jitter = rand::rng().random_range(0..=MAX_JITTER);
    if let Some(token) = &current
        && is_fresh(token, Timestamp::now().as_second() + jitter)
    {
        return Ok(current);
    }
    let account = account(pod);
    match request(meta, pod, source, account).await {
        Ok(Some(token)) => Ok(Some(token)),
        Err(error @ MetaError::Refused(_)) if current.is_none() => Err(failed(account, error)),
        result => {
            if let Some(token) = current {
                tracing::debug!(account, "service account token not renewed, the old one stays");
                return Ok(Some(token));
            }
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Running") {
                tracing::warn!(
                    account,
                    "no service account token while the node is offline; the pod starts without it"
                );
                return Ok(None);
            }
            match result {
                Err(error) => Err(failed(account, error)),
                Ok(_) => Err(VolumeError::Missing(format!("no token for service account {account:?} in the answer"))),
            }
        }
    }
}

fn failed(account: &str, source: MetaError) -> VolumeError {
    VolumeError::Meta { what: format!("a token of service account {account:?}"), source }
}

fn account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Asks for a token bound to the pod. A stored answer that is bound to another pod is no answer.
async fn request(
    meta: &MetaClient,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    account: &str,
) -> Result<Option<String>, MetaError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let resource = format!("{namespace}/{}/{account}", kind::SERVICE_ACCOUNT_TOKEN);
    let audiences = source.audience.as_deref().filter(|audience| !audience.is_empty()).map(|audience| [audience]);
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod.metadata.name, "uid": pod.metadata.uid});
    let request = json!({
        "metadata": {"creationTimestamp": null},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": source.expiration_seconds.unwrap_or(DEFAULT_LIFETIME),
            "boundObjectRef": bound,
        },
        "status": {"token": "", "expirationTimestamp": null},
    });
    let content = Content::json(&request).map_err(|source| MetaError::Encode { resource: resource.clone(), source })?;
    let Some(answer) = meta.write(operation::QUERY, &resource, content).await? else { return Ok(None) };
    let answer: TokenAnswer = answer.parse().map_err(|source| MetaError::Shape { resource, source })?;
    let ours = answer.spec.bound_object_ref.is_none_or(|bound| Some(&bound.uid) == pod.metadata.uid.as_ref());
    Ok(Some(answer.status.token).filter(|token| ours && !token.is_empty()))
}

/// Younger than four fifths of its lifetime and than a day. One that was issued in the future tells that the node's clock is
/// slow: its age is not known, and it may be at its end where it is used.
fn is_fresh(token: &str, now: i64) -> bool {
    let Some(claims) = claims(token).filter(|claims| now.saturating_add(CLOCK_LEEWAY) >= claims.iat) else {
        return false;
    };
    let ends = claims.kubernetes.warnafter.unwrap_or(claims.exp).min(claims.exp);
    let lifetime = ends.saturating_sub(claims.iat);
    let renew_at = claims.iat.saturating_add((lifetime / 5).saturating_mul(4).min(MAX_AGE));
    lifetime > 0 && now < renew_at
}

/// What a token says of itself. Nothing is verified: it is our own.
fn claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_of(iat: i64, exp: i64) -> String {
        format!("h.{}.s", URL_SAFE_NO_PAD.encode(json!({"iat": iat, "exp": exp}).to_string()))
    }

    #[test]
    fn freshness() {
        let token = token_of(1000, 4600);
        assert!(is_fresh(&token, 1000 + 2879));
        assert!(!is_fresh(&token, 1000 + 2881));
        assert!(!is_fresh(&token_of(0, 365 * 86400), 2 * 86400));
        assert!(!is_fresh("garbage", 0));
        assert!(is_fresh(&token, 900), "clocks differ a little");
        assert!(!is_fresh(&token, 1000 - 86400), "the clock was set back by a day");
        assert!(!is_fresh(&token_of(i64::MIN, i64::MAX), 0), "nonsense");
        let extended = json!({"iat": 1000, "exp": 1000 + 365 * 86400, "kubernetes.io": {"warnafter": 4607}});
        let extended = format!("h.{}.s", URL_SAFE_NO_PAD.encode(extended.to_string()));
        assert!(is_fresh(&extended, 1000 + 2800) && !is_fresh(&extended, 1000 + 2900));
    }

    #[test]
    fn who_may_read_it() {
        let mode = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            private_mode(&pod).map(|mode| mode.owner)
        };
        assert_eq!(mode(json!({"containers": [{"name": "a"}]})), None);
        assert_eq!(mode(json!({"securityContext": {"fsGroup": 5}, "containers": [{"name": "a"}]})), Some(None));
        assert_eq!(mode(json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}]})), Some(Some(5)));
        let both = json!({"securityContext": {"fsGroup": 5, "runAsUser": 6}, "containers": [{"name": "a"}]});
        assert_eq!(mode(both), Some(Some(6)));
        let mixed = json!({"securityContext": {"runAsUser": 5},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]});
        assert_eq!(mode(mixed), None);
    }
}
