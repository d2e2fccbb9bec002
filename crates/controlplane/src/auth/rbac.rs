//! Role-based access control, evaluated on the roles and bindings in the API.

use kubeapi::api::{Action, ListOptions};
use kubeapi::{Api, User};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Members may do everything, whatever roles there are.
const MASTERS: &str = "system:masters";

/// Whether the user may do this.
pub(super) fn allows(api: &Api, user: &User, action: &Action<'_>) -> bool {
    if user.groups.iter().any(|group| group == MASTERS) || is_for_everybody(action) {
        return true;
    }
    let cluster = list(api, "clusterrolebindings", "");
    let local = if action.namespace.is_empty() { Vec::new() } else { list(api, "rolebindings", action.namespace) };
    let bindings =
        cluster.iter().map(|binding| (binding, "")).chain(local.iter().map(|binding| (binding, action.namespace)));
    bindings
        .filter(|(binding, _)| subjects(binding).any(|subject| is(user, subject, action.namespace)))
        .filter_map(|(binding, namespace)| role(api, binding, namespace))
        .any(|role| role["rules"].as_array().into_iter().flatten().any(|rule| covers(rule, action)))
}

/// Discovery, and questions about oneself.
fn is_for_everybody(action: &Action<'_>) -> bool {
    if !action.path.is_empty() {
        let open = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
        return action.verb == "get"
            && open.iter().any(|path| {
                action.path == *path || action.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
            });
    }
    action.verb == "create" && matches!(action.resource, "selfsubjectreviews" | "selfsubjectaccessreviews")
}

fn list(api: &Api, plural: &str, namespace: &str) -> Vec<Value> {
    let found = api.reference(GROUP, plural, namespace, "").and_then(|what| api.list(&what, &ListOptions::default()));
    found.map(|list| list.items).unwrap_or_default()
}

fn subjects(binding: &Value) -> impl Iterator<Item = &Value> {
    binding["subjects"].as_array().into_iter().flatten()
}

fn is(user: &User, subject: &Value, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or(namespace);
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn role(api: &Api, binding: &Value, namespace: &str) -> Option<Value> {
    let reference = &binding["roleRef"];
    let name = reference["name"].as_str()?;
    let what = match reference["kind"].as_str()? {
        "ClusterRole" => api.reference(GROUP, "clusterroles", "", name),
        "Role" if !namespace.is_empty() => api.reference(GROUP, "roles", namespace, name),
        _ => return None,
    };
    api.get(&what.ok()?).ok()
}

fn covers(rule: &Value, action: &Action<'_>) -> bool {
    let any = |field: &str, wanted: &str| {
        rule[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|value| value == "*" || value == wanted)
    };
    if !any("verbs", action.verb) {
        return false;
    }
    if !action.path.is_empty() {
        return rule["nonResourceURLs"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|url| {
            url == action.path || url.strip_suffix('*').is_some_and(|prefix| action.path.starts_with(prefix))
        });
    }
    let resource = if action.subresource.is_empty() {
        action.resource.to_owned()
    } else {
        format!("{}/{}", action.resource, action.subresource)
    };
    let wildcard = format!("*/{}", action.subresource);
    let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    any("apiGroups", action.group)
        && (any("resources", &resource) || (!action.subresource.is_empty() && any("resources", &wildcard)))
        && names.is_none_or(|names| names.iter().any(|name| name == action.name))
}
