//! What a new cluster begins with: keys ([`pki`]), namespaces, roles ([`rbac`]), the `kubernetes` Service, KubeEdge's
//! definitions. Every start checks all of it, so that an older state is brought up to date.

pub mod pki;
pub mod rbac;

use std::net::{IpAddr, SocketAddr};

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{CONFIG_MAPS, CUSTOM_RESOURCES, Client, ENDPOINTS, NAMESPACES, Resource, SERVICES};
use crate::object::{Key, Object};

/// The namespaces that are always there.
const NAMES: [&str; 5] = ["default", "kube-system", "kube-public", "kube-node-lease", "kubeedge"];
const CLUSTER_ROLES: Resource = Resource::new("rbac.authorization.k8s.io", "clusterroles");
const CLUSTER_ROLE_BINDINGS: Resource = Resource::new("rbac.authorization.k8s.io", "clusterrolebindings");

/// Makes what is missing and brings what is there up to date; `ca_certificate` is PEM.
///
/// # Errors
/// The storage failed.
pub async fn ensure(client: &Client, address: SocketAddr, ca_certificate: &str) -> Result<(), ApiError> {
    for name in NAMES {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        });
        client.ensure(&NAMESPACES, namespace).await?;
    }
    for role in rbac::roles() {
        reconcile(client, &CLUSTER_ROLES, role, "rules").await?;
    }
    for binding in rbac::bindings() {
        client.ensure(&CLUSTER_ROLE_BINDINGS, binding).await?;
    }
    for definition in definitions() {
        reconcile(client, &CUSTOM_RESOURCES, definition, "spec").await?;
    }
    reconcile(client, &CONFIG_MAPS, client_authentication(ca_certificate), "data").await?;
    kubernetes_service(client, address).await
}

/// Tells other servers which client certificates the API server believes, and shows itself.
fn client_authentication(ca_certificate: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": ca_certificate},
    })
}

/// Creates an object, or replaces this field of it if it differs from ours.
async fn reconcile(client: &Client, resource: &Resource, object: Value, field: &str) -> Result<(), ApiError> {
    let wanted = Object::from(object);
    if client.ensure(resource, wanted.to_value()).await? {
        return Ok(());
    }
    let current = client.get(resource, &wanted.key()).await?;
    if !contains(&current.value()[field], &wanted.value()[field]) {
        client.patch(resource, &wanted.key(), None, json!({field: wanted.value()[field]})).await?;
    }
    Ok(())
}

/// Whether everything in `wanted` is in `current`, which may have defaults besides.
fn contains(current: &Value, wanted: &Value) -> bool {
    match (current, wanted) {
        (Value::Object(c), Value::Object(w)) => w.iter().all(|(k, v)| c.get(k).is_some_and(|c| contains(c, v))),
        (Value::Array(c), Value::Array(w)) => c.len() == w.len() && c.iter().zip(w).all(|(c, w)| contains(c, w)),
        (c, w) => c == w,
    }
}

/// The `kubernetes` Service. It is headless: there is no service proxy that would carry a virtual address.
async fn kubernetes_service(client: &Client, address: SocketAddr) -> Result<(), ApiError> {
    let port = json!({"name": "https", "port": address.port(), "protocol": "TCP"});
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": "None", "ports": [
            {"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}]},
    });
    client.ensure(&SERVICES, service).await?;
    let mut subsets = json!(null);
    if is_public(address.ip()) {
        subsets = json!([{"addresses": [{"ip": address.ip().to_string()}], "ports": [port]}]);
    }
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    if !client.ensure(&ENDPOINTS, endpoints).await? {
        client.patch(&ENDPOINTS, &Key::new("default", "kubernetes"), None, json!({"subsets": subsets})).await?;
    }
    Ok(())
}

/// Whether another machine could reach the address: Endpoints name no others.
fn is_public(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback()
}

/// What cloudcore needs to be defined: the documents that a real cluster is given.
fn definitions() -> Vec<Value> {
    let documents = include_str!("../../../../deploy/crds.yaml").split("\n---\n");
    documents.map(|text| serde_saphyr::from_str(text).expect("a test reads them")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_can_be_read() {
        let names: Vec<Value> =
            definitions().into_iter().map(|definition| definition["spec"]["names"]["kind"].clone()).collect();
        assert_eq!(names, ["ObjectSync", "ClusterObjectSync", "Device", "DeviceModel", "DeviceStatus"]);
    }
}
