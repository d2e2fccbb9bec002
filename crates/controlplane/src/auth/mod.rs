//! Who asks, and what he may do: client certificates, ServiceAccount tokens, RBAC.

mod rbac;
mod tokens;

use std::sync::Arc;

use http::HeaderMap;
use kubeapi::api::{Action, Authority};
use kubeapi::http::Identity;
use kubeapi::{Api, ApiError, User};
use link::http_server::Peer;
use link::identity;
use serde_json::Value;

pub use tokens::{TokenKey, TokenKeyError};

/// Everybody who is somebody belongs to this group.
const AUTHENTICATED: &str = "system:authenticated";

/// Decides on users and their rights.
#[derive(Clone)]
pub struct Auth {
    tokens: Arc<TokenKey>,
}

impl Auth {
    /// With this key for ServiceAccount tokens.
    pub fn new(tokens: TokenKey) -> Self {
        Self { tokens: Arc::new(tokens) }
    }
}

impl Authority for Auth {
    fn issue_token(&self, service_account: &Value, request: Value) -> Result<Value, ApiError> {
        self.tokens.issue(service_account, request)
    }

    fn authenticate(&self, token: &str) -> Option<User> {
        self.tokens.verify(token)
    }

    fn authorize(&self, api: &Api, user: &User, action: &Action<'_>) -> bool {
        rbac::allows(api, user, action)
    }
}

impl Identity for Auth {
    /// The certificate, which TLS has verified against the API's own CA, or else the bearer token. An authorised user may
    /// act as another (`Impersonate-User`, `Impersonate-Group`).
    fn identify(&self, api: &Api, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        let mut user = match &peer.certificate {
            Some(certificate) => {
                let identity = identity::Identity::read(certificate).ok()?;
                User { name: identity.common_name, groups: identity.organisations, uid: String::new() }
            }
            None => {
                let header = headers.get("authorization")?.to_str().ok()?;
                let (scheme, token) = header.split_once(' ')?;
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return None;
                }
                let user = self.tokens.verify(token.trim())?;
                still_exists(api, &user).then_some(user)?
            }
        };
        if let Some(other) = headers.get("impersonate-user") {
            user = self.impersonate(api, &user, other.to_str().ok()?, headers)?;
        }
        if !user.groups.iter().any(|group| group == AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Some(user)
    }
}

impl Auth {
    fn impersonate(&self, api: &Api, user: &User, name: &str, headers: &HeaderMap) -> Option<User> {
        let may = |resource: &str, name: &str| {
            let action = Action { verb: "impersonate", resource, name, ..Action::default() };
            self.authorize(api, user, &action)
        };
        let groups: Vec<String> = headers
            .get_all("impersonate-group")
            .iter()
            .map(|g| g.to_str().map(str::to_owned))
            .collect::<Result<_, _>>()
            .ok()?;
        let allowed = may("users", name) && groups.iter().all(|group| may("groups", group));
        allowed.then(|| User { name: name.to_owned(), groups, uid: String::new() })
    }
}

/// A token is worth nothing once its ServiceAccount is gone, or another has taken its name.
fn still_exists(api: &Api, user: &User) -> bool {
    let Some((namespace, name)) =
        user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    else {
        return false;
    };
    let account = api.reference("", "serviceaccounts", namespace, name).and_then(|what| api.get(&what));
    account.is_ok_and(|account| account["metadata"]["uid"] == user.uid.as_str())
}
