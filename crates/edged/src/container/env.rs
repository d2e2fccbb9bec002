//! The environment of a container, in the order in which it is declared.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Secret};

use super::expand::expand;
use super::fields::FieldSource;
use crate::meta::{MetaClient, MetaError};

/// ConfigMaps and Secrets that an environment refers to; `None` for those that do not exist.
#[derive(Debug, Default)]
pub struct EnvObjects {
    /// By name.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// By name.
    pub secrets: BTreeMap<String, Option<Secret>>,
}

impl EnvObjects {
    /// Reads everything that a container's environment refers to.
    ///
    /// # Errors
    /// The store or the cloud did not answer.
    pub async fn load(meta: &MetaClient, namespace: &str, container: &Container) -> Result<Self, MetaError> {
        let mut config_maps = BTreeSet::new();
        let mut secrets = BTreeSet::new();
        for source in container.env_from.iter().flatten() {
            config_maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            config_maps.extend(from.config_map_key_ref.as_ref().map(|reference| reference.name.clone()));
            secrets.extend(from.secret_key_ref.as_ref().map(|reference| reference.name.clone()));
        }
        let mut objects = Self::default();
        for name in config_maps {
            let found = meta.get(namespace, wire::kind::CONFIG_MAP, &name).await?;
            objects.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = meta.get(namespace, wire::kind::SECRET, &name).await?;
            objects.secrets.insert(name, found);
        }
        Ok(objects)
    }

    fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name).and_then(Option::as_ref)
    }

    fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name).and_then(Option::as_ref)
    }
}

/// The variables, one per name; a later one of the same name replaces the earlier one's value in its place.
///
/// # Errors
/// The text for `CreateContainerConfigError`.
pub fn environment(
    container: &Container,
    fields: &FieldSource<'_>,
    objects: &EnvObjects,
    services: &[(String, String)],
) -> Result<Vec<(String, String)>, String> {
    let namespace = fields.pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut variables = Variables { list: Vec::new(), services };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_map(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        variables.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secret(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        variables.set(format!("{prefix}{key}"), lossy(value));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(var, container, fields, objects, namespace, &variables)? {
            variables.set(var.name.clone(), value);
        }
    }
    let mut list = variables.list;
    let own: BTreeSet<String> = list.iter().map(|(name, _)| name.clone()).collect();
    list.extend(services.iter().filter(|(name, _)| !own.contains(name)).cloned());
    Ok(list)
}

/// `None` when an optional source is missing.
fn value_of(
    var: &EnvVar,
    container: &Container,
    fields: &FieldSource<'_>,
    objects: &EnvObjects,
    namespace: &str,
    before: &Variables<'_>,
) -> Result<Option<String>, String> {
    if let Some(value) = var.value.as_deref().filter(|value| !value.is_empty()) {
        return Ok(Some(expand(value, |name| before.get(name))));
    }
    let Some(from) = &var.value_from else { return Ok(Some(String::new())) };
    if let Some(field) = &from.field_ref {
        return fields.field(&field.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let container = named.and_then(|name| podlife::spec::container(fields.pod, name)).unwrap_or(container);
        return fields.resource(container, selector).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = objects.config_map(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", key.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name)),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = objects.secret(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", key.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(lossy(value))),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)),
        };
    }
    Err(format!("environment variable {} has a source that is not supported on edge nodes", var.name))
}

fn lossy(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

struct Variables<'a> {
    list: Vec<(String, String)>,
    /// Of Services: known to all values, and behind everything that the pod sets itself.
    services: &'a [(String, String)],
}

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let all = self.list.iter().chain(self.services);
        all.into_iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: String, value: String) {
        match self.list.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.list.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::resources::NodeResources;

    fn build(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": [container]}}))
        .unwrap();
        let node = NodeResources::default();
        let ips = ["10.0.0.9".to_owned()];
        let fields = FieldSource { pod: &pod, pod_ips: &ips, host_ips: &[], node: &node };
        let mut objects = EnvObjects::default();
        let map = serde_json::from_value(json!({"data": {"K": "map", "L": "l"}})).unwrap();
        objects.config_maps.insert("cm".into(), Some(map));
        objects.config_maps.insert("none".into(), None);
        let secret = serde_json::from_value(json!({"data": {"S": "c2VjcmV0"}})).unwrap();
        objects.secrets.insert("sec".into(), Some(secret));
        let services = [("HOST", "169.254.30.10"), ("PORT", "10550")]
            .map(|(name, value)| (format!("KUBERNETES_SERVICE_{name}"), value.to_owned()));
        environment(&pod.spec.as_ref().unwrap().containers[0], &fields, &objects, &services)
    }

    fn get(variables: &[(String, String)], name: &str) -> Option<String> {
        variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn order_sources_and_overrides() {
        let made = build(json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "P_", "secretRef": {"name": "sec"}},
                {"configMapRef": {"name": "none", "optional": true}}],
            "env": [{"name": "A", "value": "$(K)-$(LATER)"}, {"name": "LATER", "value": "x"}, {"name": "K", "value": "own"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "L"}}},
                {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}},
                {"name": "API", "value": "$(KUBERNETES_SERVICE_PORT)"},
                {"name": "KUBERNETES_SERVICE_HOST", "value": "mine"}]}))
        .unwrap();
        let names: Vec<_> = made.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["K", "L", "P_S", "A", "LATER", "IP", "M", "API", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]
        );
        assert_eq!(get(&made, "A").as_deref(), Some("map-$(LATER)"));
        assert_eq!(get(&made, "K").as_deref(), Some("own"));
        assert_eq!(get(&made, "P_S").as_deref(), Some("secret"));
        assert_eq!(get(&made, "API").as_deref(), Some("10550"));
        assert_eq!(get(&made, "KUBERNETES_SERVICE_HOST").as_deref(), Some("mine"));
        assert_eq!(get(&made, "KUBERNETES_SERVICE_PORT").as_deref(), Some("10550"));
    }

    #[test]
    fn missing_sources_are_named() {
        for (env, text) in [
            (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "k"}}), "couldn't find key k in ConfigMap shop/cm"),
            (json!({"secretKeyRef": {"name": "sec", "key": "k"}}), "couldn't find key k in Secret shop/sec"),
            (json!({"secretKeyRef": {"name": "no", "key": "k"}}), "secret \"no\" not found"),
        ] {
            let made = build(json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]}));
            assert_eq!(made, Err(text.to_owned()));
        }
    }
}
