//! Who asks, and what he may do: client certificates, ServiceAccount tokens, RBAC.

mod rbac;
mod tokens;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use kubeapi::api::{Action, Authority};
use kubeapi::http::Identity;
use kubeapi::{Api, ApiError, User};
use link::http_server::Peer;
use link::identity;
use serde_json::Value;

use tokens::Claims;
pub use tokens::{TokenKey, TokenKeyError};

/// Everybody who is somebody belongs to this group.
const AUTHENTICATED: &str = "system:authenticated";

/// The names of ServiceAccounts as users begin with this.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

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

    fn authenticate(&self, api: &Api, token: &str, audiences: &[&str]) -> Option<(User, Vec<String>)> {
        let claims = self.tokens.verify(token)?;
        let audiences = claims.for_any_of(audiences)?;
        still_exists(api, &claims).then_some((claims.user, audiences))
    }

    fn authorize(&self, api: &Api, user: &User, action: &Action<'_>) -> bool {
        rbac::allows(api, user, action)
    }
}

impl Identity for Auth {
    /// The certificate, which TLS has verified against the API's own CA, or else the bearer token. An authorised user may
    /// act as another (`Impersonate-User`, `Impersonate-Group`).
    fn identify(&self, api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User, ApiError> {
        let mut user = self.bearer(api, peer, headers).ok_or_else(ApiError::unauthorized)?;
        if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            user = self.impersonate(api, &user, headers)?;
        }
        if !user.groups.iter().any(|group| group == AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Ok(user)
    }
}

impl Auth {
    /// Whom the certificate or token is of.
    fn bearer(&self, api: &Api, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        if let Some(certificate) = &peer.certificate {
            let identity = identity::Identity::read(certificate).ok()?;
            return Some(User { name: identity.common_name, groups: identity.organisations, uid: String::new() });
        }
        let header = headers.get("authorization")?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Some(self.authenticate(api, token.trim(), &[])?.0)
    }

    /// What cannot be honoured is refused: to ignore it would be to act with the rights of the wrong user.
    fn impersonate(&self, api: &Api, user: &User, headers: &HeaderMap) -> Result<User, ApiError> {
        let text = |value: &HeaderValue| {
            let text = value.to_str().map(str::to_owned);
            text.map_err(|_| ApiError::bad_request("a header of impersonation is not readable"))
        };
        let known = ["impersonate-user", "impersonate-group"];
        if let Some(other) =
            headers.keys().find(|name| name.as_str().starts_with("impersonate-") && !known.contains(&name.as_str()))
        {
            return Err(ApiError::not_implemented(&format!("the header {other}")));
        }
        let name = headers.get("impersonate-user").ok_or_else(|| {
            ApiError::bad_request(
                "groups can be impersonated together with a user only: the header Impersonate-User is missing",
            )
        })?;
        let name = text(name)?;
        let mut groups = headers.get_all("impersonate-group").iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let may = |resource: &str, namespace: &str, name: &str| {
            let action = Action { verb: "impersonate", resource, namespace, name, ..Action::default() };
            if self.authorize(api, user, &action) {
                return Ok(());
            }
            let why = format!("User \"{}\" cannot impersonate resource \"{resource}\"", user.name);
            Err(ApiError::forbidden(resource, "", name, &why))
        };
        for group in &groups {
            may("groups", "", group)?;
        }
        match name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':')) {
            Some((namespace, account)) => {
                may("serviceaccounts", namespace, account)?;
                if groups.is_empty() {
                    groups = tokens::groups_of(namespace);
                }
            }
            None => may("users", "", &name)?,
        }
        Ok(User { name, groups, uid: String::new() })
    }
}

/// A token is worth nothing once its ServiceAccount is gone, or another has taken its name; the same goes for the pod or
/// secret that it is bound to.
fn still_exists(api: &Api, claims: &Claims) -> bool {
    let is_there = |plural: &str, namespace: &str, name: &str, uid: &str| {
        let found = api.reference("", plural, namespace, name).and_then(|what| api.get(&what));
        found.is_ok_and(|found| found["metadata"]["uid"] == uid)
    };
    is_there("serviceaccounts", &claims.namespace, &claims.account, &claims.user.uid)
        && claims.bound.as_ref().is_none_or(|bound| {
            let namespace = if bound.plural == "nodes" { "" } else { claims.namespace.as_str() };
            is_there(bound.plural, namespace, &bound.name, &bound.uid)
        })
}
