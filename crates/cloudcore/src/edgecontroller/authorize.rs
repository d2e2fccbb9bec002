//! What a node may ask for: itself, the pods bound to it, and what those refer to.

use serde_json::Value;
use wire::{EdgeResource, Message, kind, operation};

use super::references::{Kind, Reference};
use super::view::View;

/// Where nodes keep their leases.
const LEASES: &str = "kube-node-lease";
/// Signs for the servers of nodes.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Whether the node may make this request; otherwise why not.
///
/// # Errors
/// The reason, for the node and its administrator.
pub fn check(view: &View, node: &str, resource: &EdgeResource, message: &Message) -> Result<(), String> {
    let name = resource.name();
    let namespace = resource.namespace.as_str();
    let no = |why: String| Err(format!("node {node} may not {} {resource}: {why}", message.route.operation));
    // Both become part of a URL of the API: `pods/x?y` would be the pod x, and `pods/` all of them.
    if !is_segment(namespace) || !is_segment(name) {
        return no("namespace and name must be there and consist of lower-case letters, digits, '-' and '.'".to_owned());
    }
    match resource.kind.as_str() {
        kind::NODE | kind::NODE_PATCH | kind::NODE_STATUS if name == node => Ok(()),
        kind::NODE | kind::NODE_PATCH | kind::NODE_STATUS => no("it is another node".to_owned()),
        kind::LEASE if namespace == LEASES && name == node => own_lease(node, message).or_else(no),
        kind::LEASE => no(format!("only {LEASES}/{node} is its own")),
        kind::POD if message.route.operation == operation::INSERT => mirror_pod(node, message).or_else(no),
        kind::POD | kind::POD_PATCH | kind::POD_STATUS => match view.read().get(namespace, name) {
            Some(pod) if pod.node != node => no("the pod is bound to another node".to_owned()),
            // A pod that is not known is gone; the API says so.
            _ => Ok(()),
        },
        kind::CONFIG_MAP | kind::SECRET | kind::PERSISTENT_VOLUME_CLAIM => {
            let kind = match resource.kind.as_str() {
                kind::CONFIG_MAP => Kind::ConfigMap,
                kind::SECRET => Kind::Secret,
                _ => Kind::Claim,
            };
            let reference = Reference { kind, name: name.to_owned() };
            if view.read().refers(node, namespace, &reference) {
                Ok(())
            } else {
                no("no pod on it refers to that".to_owned())
            }
        }
        kind::SERVICE_ACCOUNT_TOKEN => token(view, node, namespace, name, message).or_else(no),
        kind::EVENT => event(view, node, message).or_else(no),
        kind::CERTIFICATE_SIGNING_REQUEST => serving_request(message).or_else(no),
        // Which handlers there are is no secret; only reading is served.
        kind::RUNTIME_CLASS => Ok(()),
        kind::PERSISTENT_VOLUME | kind::VOLUME_ATTACHMENT => Ok(()),
        // Where pods find the API server.
        kind::SERVICE | kind::ENDPOINTS
            if (namespace, name, message.route.operation.as_str()) == ("default", "kubernetes", operation::QUERY) =>
        {
            Ok(())
        }
        kind::SERVICE | kind::ENDPOINTS => no("only default/kubernetes can be read".to_owned()),
        other => no(format!("resource type {other:?} is not known")),
    }
}

/// Whether an object that the API returned is the node's business; for kinds whose name alone does not tell.
///
/// # Errors
/// The reason.
pub fn check_answer(view: &View, node: &str, resource: &EdgeResource, object: &Value) -> Result<(), String> {
    let allowed = match resource.kind.as_str() {
        kind::PERSISTENT_VOLUME => {
            let claim = &object["spec"]["claimRef"];
            let text = |field: &str| claim[field].as_str().unwrap_or_default().to_owned();
            view.read().refers(node, &text("namespace"), &Reference { kind: Kind::Claim, name: text("name") })
        }
        kind::VOLUME_ATTACHMENT => object["spec"]["nodeName"] == node,
        kind::CERTIFICATE_SIGNING_REQUEST => object["spec"]["signerName"] == SERVING_SIGNER,
        _ => true,
    };
    if allowed { Ok(()) } else { Err(format!("node {node} may not read {resource}: no pod on it uses that")) }
}

/// A segment of a path that the API cannot take for anything else.
fn is_segment(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(is_good) && text.bytes().any(|byte| byte != b'.')
}

/// The lease that is written must be the one that was asked for.
fn own_lease(node: &str, message: &Message) -> Result<(), String> {
    if message.route.operation == operation::QUERY {
        return Ok(());
    }
    let lease: Value = message.content.parse().map_err(|_| "the content is no lease".to_owned())?;
    let names = |field: &str, wanted: &str| lease["metadata"][field].as_str().is_none_or(|found| found == wanted);
    if lease["metadata"]["name"] == node && names("namespace", LEASES) {
        return Ok(());
    }
    Err("the content is the lease of another".to_owned())
}

/// A node asks for certificates of its own servers only.
fn serving_request(message: &Message) -> Result<(), String> {
    if message.route.operation == operation::QUERY {
        return Ok(());
    }
    let request: Value =
        message.content.parse().map_err(|_| "the content is no CertificateSigningRequest".to_owned())?;
    if request["spec"]["signerName"] == SERVING_SIGNER {
        return Ok(());
    }
    Err(format!("the signer must be {SERVING_SIGNER}"))
}

/// A node reports its static pods as mirrors, on itself.
fn mirror_pod(node: &str, message: &Message) -> Result<(), String> {
    let pod: Value = message.content.parse().map_err(|_| "the content is no pod".to_owned())?;
    if pod["spec"]["nodeName"] != node {
        return Err("a mirror pod must be on the node itself".to_owned());
    }
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Err("a node creates mirror pods only".to_owned());
    }
    Ok(())
}

/// A token is issued for a pod that is on the node and runs under that account.
fn token(view: &View, node: &str, namespace: &str, account: &str, message: &Message) -> Result<(), String> {
    let request: Value = message.content.parse().map_err(|_| "the content is no TokenRequest".to_owned())?;
    let bound = &request["spec"]["boundObjectRef"];
    let pod_name = bound["name"].as_str().unwrap_or_default();
    if bound["kind"] != "Pod" {
        return Err("the token must be bound to a pod".to_owned());
    }
    let view = view.read();
    let pod = view.get(namespace, pod_name).filter(|pod| pod.node == node);
    match pod {
        Some(pod) if bound["uid"] == pod.uid.as_str() && pod.service_account == account => Ok(()),
        Some(_) => Err("the pod has another uid or ServiceAccount".to_owned()),
        None => Err("the pod is not on it".to_owned()),
    }
}

/// Events about the node itself and its pods.
fn event(view: &View, node: &str, message: &Message) -> Result<(), String> {
    let content: Value = message.content.parse().map_err(|_| "the content is no event".to_owned())?;
    let event = if content["event"].is_object() { &content["event"] } else { &content };
    let about = &event["involvedObject"];
    let text = |field: &str| about[field].as_str().unwrap_or_default().to_owned();
    match about["kind"].as_str() {
        Some("Node") if about["name"] == node => Ok(()),
        Some("Pod") => match view.read().get(&text("namespace"), &text("name")) {
            Some(pod) if pod.node != node => Err("the pod is bound to another node".to_owned()),
            _ => Ok(()),
        },
        _ => Err("the event is neither about it nor about a pod".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::PodEntry;
    use super::*;
    use beehive::compose;
    use serde_json::json;
    use wire::Content;

    fn view() -> View {
        let view = View::default();
        let entry = |node: &str| PodEntry {
            uid: format!("uid-{node}"),
            node: node.to_owned(),
            service_account: "default".to_owned(),
            references: vec![Reference { kind: Kind::Secret, name: format!("of-{node}") }],
            version: 1,
        };
        view.write().put(("web".into(), "a".into()), entry("n1"));
        view.write().put(("web".into(), "b".into()), entry("n2"));
        view
    }

    fn ask(verb: &str, path: &str, content: Value) -> Result<(), String> {
        let content = Content::json(&content).expect("content");
        let message = compose::message("edged", "meta", verb, path, content);
        check(&view(), "n1", &EdgeResource::parse(path).expect("path"), &message)
    }

    #[test]
    fn a_node_reaches_what_is_its_own_and_nothing_else() {
        let token = |uid: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "a", "uid": uid}}});
        let event =
            |kind: &str, name: &str| json!({"involvedObject": {"kind": kind, "namespace": "web", "name": name}});
        for (verb, path, content, allowed) in [
            ("insert", "null/node/n1", json!({}), true),
            ("insert", "null/node/n2", json!({}), false),
            ("patch", "null/nodepatch/n2", json!("{}"), false),
            ("update", "kube-node-lease/lease/n1", json!({"metadata": {"name": "n1"}}), true),
            ("insert", "kube-node-lease/lease/n1", json!({"metadata": {"name": "n2"}}), false),
            ("insert", "kube-node-lease/lease/n1", json!({}), false),
            ("query", "kube-node-lease/lease/n1", Value::Null, true),
            ("update", "kube-node-lease/lease/n2", json!({}), false),
            ("update", "default/lease/n1", json!({}), false),
            ("insert", "default/certificatesigningrequest/x", json!({"spec": {"signerName": SERVING_SIGNER}}), true),
            ("insert", "default/certificatesigningrequest/x", json!({"spec": {"signerName": "x/admin"}}), false),
            ("delete", "web/pod", json!({}), false),
            ("delete", "web/pod/?", json!({}), false),
            ("delete", "web/pod/b?a", json!({}), false),
            ("delete", "web/pod/b%3fa", json!({}), false),
            ("delete", "web/pod/..", json!({}), false),
            ("delete", "web?/pod/gone", json!({}), false),
            ("patch", "web/podpatch/a", json!("{}"), true),
            ("patch", "web/podpatch/b", json!("{}"), false),
            ("delete", "web/pod/b", json!({}), false),
            ("delete", "web/pod/gone", json!({}), true),
            ("insert", "web/pod/x", json!({"spec": {"nodeName": "n1"}}), false),
            ("query", "web/secret/of-n1", Value::Null, true),
            ("query", "web/secret/of-n2", Value::Null, false),
            ("query", "kube-system/secret/of-n1", Value::Null, false),
            ("query", "web/configmap/of-n1", Value::Null, false),
            ("query", "web/serviceaccounttoken/default", token("uid-n1"), true),
            ("query", "web/serviceaccounttoken/default", token("other"), false),
            ("query", "web/serviceaccounttoken/admin", token("uid-n1"), false),
            ("query", "web/serviceaccounttoken/default", json!({"spec": {}}), false),
            ("insert", "web/event/e", event("Pod", "a"), true),
            ("insert", "web/event/e", event("Pod", "b"), false),
            ("insert", "web/event/e", event("Node", "n2"), false),
            ("query", "web/clusterrole/admin", Value::Null, false),
            ("query", "default/service/kubernetes", Value::Null, true),
            ("query", "default/endpoints/kubernetes", Value::Null, true),
            ("update", "default/service/kubernetes", json!({}), false),
            ("query", "web/service/kubernetes", Value::Null, false),
            ("query", "default/service/db", Value::Null, false),
        ] {
            assert_eq!(ask(verb, path, content.clone()).is_ok(), allowed, "{verb} {path} {content}");
        }
    }
}
