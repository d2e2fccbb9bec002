//! What a node may ask for: itself, the pods bound to it, and what those refer to.

use serde_json::Value;
use wire::{EdgeResource, kind, operation};

use super::references::{self, Kind, Reference};
use super::view::{NamespacedName, View};
use crate::kubernetes::kinds;

/// Where nodes keep their leases.
const LEASES: &str = "kube-node-lease";
/// Signs for the servers of nodes.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// A request that is not refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node may.
    Allowed,
    /// The node may, for it has the pod with this uid.
    OwnPod(String),
    /// The node may if this pod is its own. The view does not say so, and may be behind: the API has to be asked.
    IfOwn(NamespacedName),
}

/// Whether what is known of the pods decides about this kind.
pub fn needs_view(resource: &EdgeResource) -> bool {
    !matches!(
        resource.kind.as_str(),
        kind::NODE
            | kind::NODE_PATCH
            | kind::NODE_STATUS
            | kind::LEASE
            | kind::CERTIFICATE_SIGNING_REQUEST
            | kind::SERVICE
            | kind::ENDPOINTS
            | kind::RUNTIME_CLASS
    )
}

/// Whether what is known of the devices decides about this content.
pub fn needs_devices(resource: &EdgeResource, verb: &str, content: &Value) -> bool {
    resource.kind == kind::EVENT && event_of(verb, content)["involvedObject"]["kind"] == "Device"
}

/// Whether the node may make this request, with this content; otherwise why not.
///
/// # Errors
/// The reason, for the node and its administrator.
pub fn check(
    view: &View,
    node: &str,
    resource: &EdgeResource,
    verb: &str,
    content: &Value,
) -> Result<Decision, String> {
    decide(view, node, resource, verb, content).map_err(|why| refusal(node, verb, resource, &why))
}

/// A refusal in words.
pub fn refusal(node: &str, verb: &str, resource: &EdgeResource, why: &str) -> String {
    format!("node {node} may not {verb} {resource}: {why}")
}

/// Why a pod is none of a node's business.
pub const FOREIGN_POD: &str = "the pod is not bound to it";

fn decide(view: &View, node: &str, resource: &EdgeResource, verb: &str, content: &Value) -> Result<Decision, String> {
    let (namespace, name) = (resource.namespace.as_str(), resource.name());
    // Both become part of a URL of the API: `pods/x?y` would be the pod x, and `pods/` all of them.
    if !is_segment(namespace) || !is_segment(name) {
        return Err(
            "namespace and name must be there and consist of lower-case letters, digits, '-' and '.'".to_owned()
        );
    }
    match resource.kind.as_str() {
        kind::NODE | kind::NODE_PATCH | kind::NODE_STATUS if name == node => Ok(Decision::Allowed),
        kind::NODE | kind::NODE_PATCH | kind::NODE_STATUS => Err("it is another node".to_owned()),
        kind::LEASE if namespace == LEASES && name == node && verb == operation::QUERY => Ok(Decision::Allowed),
        kind::LEASE if namespace == LEASES && name == node => own_lease(node, content),
        kind::LEASE => Err(format!("only {LEASES}/{node} is its own")),
        kind::POD if verb == operation::INSERT => mirror_pod(node, content),
        kind::POD | kind::POD_PATCH | kind::POD_STATUS => Ok(pod(view, node, namespace, name)),
        kind::CONFIG_MAP | kind::SECRET | kind::PERSISTENT_VOLUME_CLAIM => {
            let kind = match resource.kind.as_str() {
                kind::CONFIG_MAP => Kind::ConfigMap,
                kind::SECRET => Kind::Secret,
                _ => Kind::Claim,
            };
            let reference = Reference { kind, name: name.to_owned() };
            if view.read().refers(node, namespace, &reference) {
                Ok(Decision::Allowed)
            } else {
                Err("no pod on it refers to that".to_owned())
            }
        }
        kind::SERVICE_ACCOUNT_TOKEN => token(view, node, namespace, name, content),
        kind::EVENT => event(view, node, namespace, verb, content),
        kind::CERTIFICATE_SIGNING_REQUEST if verb == operation::QUERY => Ok(Decision::Allowed),
        kind::CERTIFICATE_SIGNING_REQUEST => serving_request(content),
        // Which handlers there are is no secret; only reading is served.
        kind::RUNTIME_CLASS => Ok(Decision::Allowed),
        kind::PERSISTENT_VOLUME | kind::VOLUME_ATTACHMENT => Ok(Decision::Allowed),
        // Where pods find the API server.
        kind::SERVICE | kind::ENDPOINTS if (namespace, name, verb) == ("default", "kubernetes", operation::QUERY) => {
            Ok(Decision::Allowed)
        }
        kind::SERVICE | kind::ENDPOINTS => Err("only default/kubernetes can be read".to_owned()),
        other => Err(format!("resource type {other:?} is not known")),
    }
}

fn pod(view: &View, node: &str, namespace: &str, name: &str) -> Decision {
    match view.read().get(namespace, name) {
        Some(pod) if pod.node == node => Decision::OwnPod(pod.uid.clone()),
        _ => Decision::IfOwn((namespace.to_owned(), name.to_owned())),
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
fn own_lease(node: &str, lease: &Value) -> Result<Decision, String> {
    must_be_object(lease, "lease")?;
    let names = |field: &str, wanted: &str| lease["metadata"][field].as_str().is_none_or(|found| found == wanted);
    if lease["metadata"]["name"] == node && names("namespace", LEASES) {
        return Ok(Decision::Allowed);
    }
    Err("the content is the lease of another".to_owned())
}

/// A node asks for certificates of its own servers only.
fn serving_request(request: &Value) -> Result<Decision, String> {
    must_be_object(request, "CertificateSigningRequest")?;
    if request["spec"]["signerName"] == SERVING_SIGNER {
        return Ok(Decision::Allowed);
    }
    Err(format!("the signer must be {SERVING_SIGNER}"))
}

/// A node reports its static pods as mirrors, on itself. A pod on a node opens to it what the pod refers to, so that a mirror
/// refers to nothing (Kubernetes, NodeRestriction).
fn mirror_pod(node: &str, pod: &Value) -> Result<Decision, String> {
    must_be_object(pod, "pod")?;
    let spec = &pod["spec"];
    if spec["nodeName"] != node {
        return Err("a mirror pod must be on the node itself".to_owned());
    }
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Err("a node creates mirror pods only".to_owned());
    }
    for field in ["serviceAccountName", "serviceAccount", "resourceClaims"] {
        let value = &spec[field];
        if !value.is_null() && value != "" && value.as_array().is_none_or(|claims| !claims.is_empty()) {
            return Err(format!("a mirror pod may not have spec.{field}"));
        }
    }
    if references::has_token(spec) {
        return Err("a mirror pod may not have a ServiceAccount token".to_owned());
    }
    if let Some(reference) = references::of_pod(spec).first() {
        return Err(format!("a mirror pod may not refer to {} {}", reference.kind.name(), reference.name));
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    match owners {
        [owner] if owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node => {
            Ok(Decision::Allowed)
        }
        _ => Err("the only owner of a mirror pod must be the Node itself".to_owned()),
    }
}

/// A token is issued for a pod that is on the node and runs under that account.
fn token(view: &View, node: &str, namespace: &str, account: &str, request: &Value) -> Result<Decision, String> {
    must_be_object(request, "TokenRequest")?;
    let bound = &request["spec"]["boundObjectRef"];
    let pod_name = bound["name"].as_str().unwrap_or_default();
    if bound["kind"] != "Pod" {
        return Err("the token must be bound to a pod".to_owned());
    }
    let view = view.read();
    let pod = view.get(namespace, pod_name).filter(|pod| pod.node == node);
    match pod {
        Some(pod) if bound["uid"] == pod.uid.as_str() && pod.service_account == account => Ok(Decision::Allowed),
        Some(_) => Err("the pod has another uid or ServiceAccount".to_owned()),
        None => Err("the pod is not on it".to_owned()),
    }
}

/// The event in the content of a request: the content itself, for it is what is sent; of a patch the event beside it.
pub fn event_of<'a>(verb: &str, content: &'a Value) -> &'a Value {
    if verb == operation::PATCH && content["event"].is_object() { &content["event"] } else { content }
}

/// Events about the node itself, its pods and its devices.
fn event(view: &View, node: &str, namespace: &str, verb: &str, content: &Value) -> Result<Decision, String> {
    must_be_object(content, "event")?;
    let about = &event_of(verb, content)["involvedObject"];
    let text = |field: &str| about[field].as_str().unwrap_or_default();
    match about["kind"].as_str() {
        Some("Node") if about["name"] == node => Ok(Decision::Allowed),
        // Both become part of a URL.
        Some("Pod") if is_segment(text("namespace")) && is_segment(text("name")) => {
            if namespace != text("namespace") {
                return Err("an event is in the namespace of its pod".to_owned());
            }
            Ok(pod(view, node, namespace, text("name")))
        }
        Some("Device") if about["apiVersion"] == kinds::DEVICES => {
            match view.devices.read().get(text("namespace"), text("name")) {
                Some(device) if device.node != node => Err("the device is not bound to it".to_owned()),
                Some(device) if device.uid == text("uid") && namespace == text("namespace") => Ok(Decision::Allowed),
                Some(_) if namespace != text("namespace") => {
                    Err("an event is in the namespace of its device".to_owned())
                }
                _ => Err("there is no such device with this uid".to_owned()),
            }
        }
        _ => Err("the event is neither about it nor about a pod or a device".to_owned()),
    }
}

fn must_be_object(content: &Value, what: &str) -> Result<(), String> {
    if content.is_object() { Ok(()) } else { Err(format!("the content is no {what}")) }
}

#[cfg(test)]
mod tests {
    use super::super::view::PodEntry;
    use super::*;
    use serde_json::json;

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

    fn ask(verb: &str, path: &str, content: &Value) -> Result<Decision, String> {
        check(&view(), "n1", &EdgeResource::parse(path).expect("path"), verb, content)
    }

    /// A static pod's mirror as a Go edge reports it.
    fn mirror() -> Value {
        json!({
            "metadata": {
                "name": "x", "annotations": {"kubernetes.io/config.mirror": "hash"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "busybox"}]},
        })
    }

    #[test]
    fn a_node_reaches_what_is_its_own_and_nothing_else() {
        let token = |uid: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "a", "uid": uid}}});
        let about = |kind: &str, name: &str| json!({"kind": kind, "namespace": "web", "name": name});
        let event = |kind: &str, name: &str| json!({"involvedObject": about(kind, name)});
        let beside = |event: Value, about: Value| json!({"event": event, "involvedObject": about, "patchData": "{}"});
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
            ("insert", "web/pod/x", json!({"spec": {"nodeName": "n1"}}), false),
            ("insert", "web/pod/x", mirror(), true),
            ("query", "web/secret/of-n1", Value::Null, true),
            ("query", "web/secret/of-n2", Value::Null, false),
            ("query", "kube-system/secret/of-n1", Value::Null, false),
            ("query", "web/configmap/of-n1", Value::Null, false),
            ("query", "web/serviceaccounttoken/default", token("uid-n1"), true),
            ("query", "web/serviceaccounttoken/default", token("other"), false),
            ("query", "web/serviceaccounttoken/admin", token("uid-n1"), false),
            ("query", "web/serviceaccounttoken/default", json!({"spec": {}}), false),
            ("insert", "web/event/e", event("Pod", "a"), true),
            ("insert", "web/event/e", event("Node", "n2"), false),
            ("insert", "default/event/e", event("Node", "n1"), true),
            ("insert", "default/event/e", event("Pod", "a"), false),
            // What is beside an event is for patches; what is sent otherwise is the whole.
            ("insert", "web/event/e", beside(event("Pod", "a"), Value::Null), false),
            ("insert", "web/event/e", beside(event("Pod", "a"), about("Node", "n2")), false),
            ("update", "web/event/e", beside(event("Node", "n1"), about("Node", "n2")), false),
            ("update", "web/event/e", beside(event("Node", "n2"), about("Pod", "a")), true),
            ("patch", "web/event/e", beside(event("Pod", "a"), Value::Null), true),
            ("patch", "web/event/e", beside(event("Node", "n2"), about("Pod", "a")), false),
            ("patch", "default/event/e", beside(event("Pod", "a"), Value::Null), false),
            ("query", "web/clusterrole/admin", Value::Null, false),
            ("query", "default/service/kubernetes", Value::Null, true),
            ("query", "default/endpoints/kubernetes", Value::Null, true),
            ("update", "default/service/kubernetes", json!({}), false),
            ("query", "web/service/kubernetes", Value::Null, false),
            ("query", "default/service/db", Value::Null, false),
        ] {
            let decision = ask(verb, path, &content);
            let is_allowed = matches!(decision, Ok(Decision::Allowed | Decision::OwnPod(_)));
            assert_eq!(is_allowed, allowed, "{verb} {path} {content}: {decision:?}");
        }
    }

    #[test]
    fn a_pod_that_is_not_known_as_its_own_is_asked_for() {
        let event = json!({"involvedObject": {"kind": "Pod", "namespace": "web", "name": "b"}});
        for (verb, path, content, name) in [
            ("patch", "web/podpatch/b", json!({}), "b"),
            ("delete", "web/pod/b", json!({}), "b"),
            ("delete", "web/pod/gone", json!({}), "gone"),
            ("insert", "web/event/e", event.clone(), "b"),
            ("patch", "web/event/e", json!({"event": event, "patchData": "{}"}), "b"),
        ] {
            let wanted = Decision::IfOwn(("web".to_owned(), name.to_owned()));
            assert_eq!(ask(verb, path, &content), Ok(wanted), "{verb} {path}");
        }
        let escaping = json!({"involvedObject": {"kind": "Pod", "namespace": "web", "name": "../x"}});
        ask("insert", "web/event/e", &escaping).expect_err("another URL");
        assert_eq!(ask("delete", "web/pod/a", &json!({})), Ok(Decision::OwnPod("uid-n1".to_owned())));
    }

    #[test]
    fn a_mirror_pod_opens_nothing() {
        let volume = |volume: Value| json!([volume]);
        for (at, value) in [
            ("/spec/serviceAccountName", json!("admin")),
            ("/spec/serviceAccount", json!("admin")),
            ("/spec/resourceClaims", json!([{"name": "c"}])),
            ("/spec/volumes", volume(json!({"secret": {"secretName": "s"}}))),
            ("/spec/volumes", volume(json!({"configMap": {"name": "m"}}))),
            ("/spec/volumes", volume(json!({"persistentVolumeClaim": {"claimName": "c"}}))),
            ("/spec/volumes", volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}))),
            ("/spec/imagePullSecrets", json!([{"name": "s"}])),
            ("/spec/nodeName", json!("n2")),
            ("/metadata/annotations", json!({})),
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/ownerReferences/0/name", json!("n2")),
            ("/metadata/ownerReferences/0/kind", json!("Pod")),
        ] {
            let mut pod = mirror();
            let (parent, field) = at.rsplit_once('/').expect("a path");
            let parent = pod.pointer_mut(parent).expect("there");
            parent[field] = value;
            let why = ask("insert", "web/pod/x", &pod).expect_err(at);
            assert!(why.contains("mirror pod"), "{at}: {why}");
        }
        let mut two = mirror();
        let owners = two["metadata"]["ownerReferences"].as_array_mut().expect("owners");
        owners.push(owners[0].clone());
        ask("insert", "web/pod/x", &two).expect_err("two owners");
    }
}
