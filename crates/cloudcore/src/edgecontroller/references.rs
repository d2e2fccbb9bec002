//! The ConfigMaps and Secrets that a pod refers to.

use serde_json::Value;

/// What a pod may refer to by name in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A PersistentVolumeClaim.
    Claim,
}

impl Kind {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Claim => "PersistentVolumeClaim",
        }
    }
}

/// One reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// What.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// Every reference in a pod spec: volumes, environment of all kinds of containers, pull secrets.
pub fn of_pod(spec: &Value) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push(Reference { kind, name: name.to_owned() });
        }
    };
    for volume in list(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
        for source in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            add(Kind::Secret, &volume[source]["secretRef"]["name"]);
        }
        add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
    }
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(&spec[kind]) {
            for source in list(&container["envFrom"]) {
                add(Kind::ConfigMap, &source["configMapRef"]["name"]);
                add(Kind::Secret, &source["secretRef"]["name"]);
            }
            for variable in list(&container["env"]) {
                add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
                add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
    }
    for secret in list(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether a token of a ServiceAccount is put into the pod.
pub fn has_token(spec: &Value) -> bool {
    let sources = list(&spec["volumes"]).flat_map(|volume| list(&volume["projected"]["sources"]));
    sources.into_iter().any(|source| !source["serviceAccountToken"].is_null())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_is_looked_at() {
        let spec = json!({
            "volumes": [{"configMap": {"name": "a"}}, {"secret": {"secretName": "b"}}, {"emptyDir": {}},
                {"projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "d"}}]}},
                {"persistentVolumeClaim": {"claimName": "p"}}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "e"}}]}],
            "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "f"}}}, {"valueFrom": {"configMapKeyRef": {"name": "a"}}}]}],
            "imagePullSecrets": [{"name": "g"}],
        });
        let found: Vec<String> = of_pod(&spec).into_iter().map(|r| format!("{:?}/{}", r.kind, r.name)).collect();
        assert_eq!(
            found,
            ["ConfigMap/a", "ConfigMap/c", "ConfigMap/e", "Secret/b", "Secret/d", "Secret/f", "Secret/g", "Claim/p"]
        );
    }
}
