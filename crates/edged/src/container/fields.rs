//! Values that a pod can learn of itself: `fieldRef` and `resourceFieldRef` of environment and volumes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use podlife::spec;

use super::resources::NodeResources;
use podlife::quantity;

/// What the fields are read from.
pub struct FieldSource<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses.
    pub pod_ips: &'a [String],
    /// The node's addresses.
    pub host_ips: &'a [String],
    /// For limits that are not set.
    pub node: &'a NodeResources,
}

impl FieldSource<'_> {
    /// The value of a field path.
    ///
    /// # Errors
    /// The path is not supported; the text says so.
    pub fn field(&self, path: &str) -> Result<String, String> {
        let metadata = &self.pod.metadata;
        let pod_spec = self.pod.spec.as_ref();
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        // A pod on the node's network has the node's addresses.
        let pod_ips = if spec::host_network(self.pod) { self.host_ips } else { self.pod_ips };
        if let Some((map, key)) = subscript(path) {
            let map = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(format!("fieldPath {path:?} does not support subscript")),
            };
            return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
        }
        Ok(match path {
            "metadata.name" => text(&metadata.name),
            "metadata.namespace" => text(&metadata.namespace),
            "metadata.uid" => text(&metadata.uid),
            "metadata.labels" => lines(metadata.labels.as_ref()),
            "metadata.annotations" => lines(metadata.annotations.as_ref()),
            "spec.nodeName" => pod_spec.map(|s| text(&s.node_name)).unwrap_or_default(),
            "spec.serviceAccountName" => pod_spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
            "status.hostIP" => self.host_ips.first().cloned().unwrap_or_default(),
            "status.hostIPs" => self.host_ips.join(","),
            "status.podIP" => pod_ips.first().cloned().unwrap_or_default(),
            "status.podIPs" => pod_ips.join(","),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        })
    }

    /// The value of a resource of a container, in units of the divisor, rounded up.
    ///
    /// # Errors
    /// The resource is not supported.
    pub fn resource(&self, container: &Container, selector: &ResourceFieldSelector) -> Result<String, String> {
        let unknown = || format!("unsupported container resource: {}", selector.resource);
        let (kind, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
        let read = if name == "cpu" { quantity::milli } else { quantity::value };
        let resources = container.resources.as_ref();
        let list = match kind {
            "limits" => resources.and_then(|r| r.limits.as_ref()),
            "requests" => resources.and_then(|r| r.requests.as_ref()),
            _ => return Err(unknown()),
        };
        let mut value = list.and_then(|list| list.get(name)).and_then(read).unwrap_or_default();
        if value == 0 && kind == "limits" {
            value = match name {
                "cpu" => self.node.allocatable_cpu,
                "memory" => self.node.allocatable_memory,
                "ephemeral-storage" => self.node.allocatable_storage,
                _ => 0,
            };
        }
        let one = if name == "cpu" { 1000 } else { 1 };
        let divisor = selector.divisor.as_ref().and_then(read).filter(|divisor| *divisor != 0).unwrap_or(one);
        Ok(quantity::divided(value, divisor).to_string())
    }
}

/// `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, key))
}

/// `key="value"` per line, sorted by key, values quoted as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (key, value) in map.into_iter().flatten() {
        let separator = if out.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}{key}={}", go_quoted(value));
    }
    out
}

/// A text in double quotes, with Go's escapes.
fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\x07' => write!(out, "\\a"),
            '\x08' => write!(out, "\\b"),
            '\x0b' => write!(out, "\\v"),
            '\x0c' => write!(out, "\\f"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            c if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(go_quoted("a\"b\\c\n\u{1}\u{7f}é\u{301}"), "\"a\\\"b\\\\c\\n\\x01\\x7fé\u{301}\"");
    }

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]},
        }))
        .unwrap();
        let node = NodeResources { allocatable_memory: 1 << 30, allocatable_cpu: 2000, ..Default::default() };
        let ips = ["10.0.0.9".to_owned(), "fd00::9".to_owned()];
        let host = ["192.0.2.1".to_owned()];
        let source = FieldSource { pod: &pod, pod_ips: &ips, host_ips: &host, node: &node };
        for (path, value) in [
            ("metadata.name", "web"),
            ("metadata.labels['a']", "x\"y"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("status.podIPs", "10.0.0.9,fd00::9"),
            ("status.hostIP", "192.0.2.1"),
            ("spec.nodeName", "n1"),
        ] {
            assert_eq!(source.field(path).as_deref(), Ok(value), "{path}");
        }
        assert!(source.field("status.phase").is_err());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        for (resource, divisor, value) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("limits.memory", Some("1Mi"), "1024"),
            ("requests.memory", None, "67108864"),
            ("requests.cpu", None, "0"),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": resource, "divisor": divisor.unwrap_or("0")})).unwrap();
            assert_eq!(source.resource(container, &selector).as_deref(), Ok(value), "{resource} {divisor:?}");
        }
    }
}
