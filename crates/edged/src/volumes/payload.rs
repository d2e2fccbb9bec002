//! The files of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection};
use podlife::spec;

use super::atomic::{Files, VolumeFile};
use super::{VolumeError, token};
use crate::container::fields::FieldSource;
use crate::meta::MetaClient;

/// Mode of files that say nothing of it.
const DEFAULT_MODE: i32 = 0o644;
const NO_CONFIG_KEY: &str = "configmap references non-existent config key";
const NO_SECRET_KEY: &str = "references non-existent secret key";

/// Keys of a ConfigMap or Secret.
type Data = BTreeMap<String, Vec<u8>>;

/// What a volume shall hold.
#[derive(Debug, Default)]
pub(super) struct Payload {
    pub files: Files,
    /// Its only source says that it will never change.
    pub immutable: bool,
}

/// Where payloads are read from.
struct Reader<'a> {
    meta: &'a MetaClient,
    fields: &'a FieldSource<'a>,
    namespace: &'a str,
    /// The volume as it is now, for tokens that cannot be renewed.
    current: &'a Path,
}

impl Payload {
    /// Reads everything that a volume refers to.
    pub async fn read(
        meta: &MetaClient,
        volume: &Volume,
        fields: &FieldSource<'_>,
        current: &Path,
    ) -> Result<Self, VolumeError> {
        let namespace = fields.pod.metadata.namespace.as_deref().unwrap_or("default");
        let reader = Reader { meta, fields, namespace, current };
        let mut payload = Self::default();
        if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or(false);
            let (data, immutable) = reader.config_map(&source.name, optional).await?;
            payload.immutable = immutable;
            payload.add(data, source.items.as_deref(), source.default_mode, optional, NO_CONFIG_KEY)?;
        } else if let Some(source) = &volume.secret {
            let optional = source.optional.unwrap_or(false);
            let name = source.secret_name.as_deref().unwrap_or_default();
            let (data, immutable) = reader.secret(name, optional).await?;
            payload.immutable = immutable;
            payload.add(data, source.items.as_deref(), source.default_mode, optional, NO_SECRET_KEY)?;
        } else if let Some(source) = &volume.downward_api {
            payload.add_fields(source.items.as_deref(), source.default_mode, fields)?;
        } else if let Some(source) = &volume.projected {
            for projection in source.sources.iter().flatten() {
                reader.project(&mut payload, projection, source.default_mode).await?;
            }
        }
        Ok(payload)
    }

    /// Adds all keys, or the chosen ones.
    fn add(
        &mut self,
        data: Data,
        items: Option<&[KeyToPath]>,
        default_mode: Option<i32>,
        optional: bool,
        no_key: &str,
    ) -> Result<(), VolumeError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, bytes) in data {
                self.insert(key, bytes, default_mode);
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => self.insert(item.path.clone(), bytes.clone(), item.mode.or(default_mode)),
                None if optional => {}
                None => return Err(VolumeError::Missing(format!("{no_key}: {}", item.key))),
            }
        }
        Ok(())
    }

    fn add_fields(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        default_mode: Option<i32>,
        fields: &FieldSource<'_>,
    ) -> Result<(), VolumeError> {
        for item in items.unwrap_or_default() {
            let value = if let Some(field) = &item.field_ref {
                fields.field(&field.field_path)
            } else if let Some(selector) = &item.resource_field_ref {
                let name = selector.container_name.as_deref().unwrap_or_default();
                match spec::container(fields.pod, name) {
                    Some(container) => fields.resource(container, selector),
                    None => Err(format!("container {name:?} not found")),
                }
            } else {
                Err(format!("downwardAPI file {:?} has no source", item.path))
            };
            let value = value.map_err(VolumeError::Invalid)?;
            self.insert(item.path.clone(), value.into_bytes(), item.mode.or(default_mode));
        }
        Ok(())
    }

    fn insert(&mut self, path: String, bytes: Vec<u8>, mode: Option<i32>) {
        let mode = u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or_default() & 0o777;
        self.files.insert(path, VolumeFile { bytes, mode, owner: None });
    }
}

impl Reader<'_> {
    async fn project(
        &self,
        payload: &mut Payload,
        source: &VolumeProjection,
        mode: Option<i32>,
    ) -> Result<(), VolumeError> {
        if let Some(source) = &source.config_map {
            let optional = source.optional.unwrap_or(false);
            let (data, _) = self.config_map(&source.name, optional).await?;
            payload.add(data, source.items.as_deref(), mode, optional, NO_CONFIG_KEY)?;
        }
        if let Some(source) = &source.secret {
            let optional = source.optional.unwrap_or(false);
            let (data, _) = self.secret(&source.name, optional).await?;
            payload.add(data, source.items.as_deref(), mode, optional, NO_SECRET_KEY)?;
        }
        if let Some(source) = &source.downward_api {
            payload.add_fields(source.items.as_deref(), mode, self.fields)?;
        }
        if let Some(source) = &source.service_account_token {
            let token = token::token(self.meta, self.fields.pod, source, self.current).await?;
            if let Some(token) = token {
                payload.insert(source.path.clone(), token.into_bytes(), mode);
                if let (Some(file), Some(mode)) =
                    (payload.files.get_mut(&source.path), token::private_mode(self.fields.pod))
                {
                    *file = VolumeFile { bytes: std::mem::take(&mut file.bytes), mode: mode.mode, owner: mode.owner };
                }
            }
        }
        if source.cluster_trust_bundle.is_some() {
            return Err(VolumeError::Unsupported { kind: "projected clusterTrustBundle" });
        }
        Ok(())
    }

    /// Its data, and whether it will never change.
    async fn config_map(&self, name: &str, optional: bool) -> Result<(Data, bool), VolumeError> {
        let found: Option<ConfigMap> = self
            .meta
            .get(self.namespace, wire::kind::CONFIG_MAP, name)
            .await
            .map_err(|source| VolumeError::Meta { what: format!("configmap \"{}/{name}\"", self.namespace), source })?;
        let Some(found) = found else {
            return missing(format!("configmap {name:?} not found"), optional);
        };
        let mut data: Data =
            found.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
        data.extend(found.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)));
        Ok((data, found.immutable.unwrap_or(false)))
    }

    /// Its data, and whether it will never change.
    async fn secret(&self, name: &str, optional: bool) -> Result<(Data, bool), VolumeError> {
        let found: Option<Secret> = self
            .meta
            .get(self.namespace, wire::kind::SECRET, name)
            .await
            .map_err(|source| VolumeError::Meta { what: format!("secret \"{}/{name}\"", self.namespace), source })?;
        let Some(found) = found else {
            return missing(format!("secret {name:?} not found"), optional);
        };
        let data = found.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Ok((data, found.immutable.unwrap_or(false)))
    }
}

fn missing(text: String, optional: bool) -> Result<(Data, bool), VolumeError> {
    if optional { Ok((Data::new(), false)) } else { Err(VolumeError::Missing(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(items: serde_json::Value, optional: bool) -> Result<Files, VolumeError> {
        let items: Vec<KeyToPath> = serde_json::from_value(items).unwrap();
        let data = Data::from([("k".to_owned(), b"v".to_vec()), ("l".to_owned(), b"w".to_vec())]);
        let mut payload = Payload::default();
        payload.add(data, Some(&items), Some(0o600), optional, NO_CONFIG_KEY)?;
        Ok(payload.files)
    }

    #[test]
    fn items_choose_and_missing_keys_are_named() {
        let files = add(serde_json::json!([{"key": "k", "path": "d/f", "mode": 256}]), false).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["d/f"]);
        assert_eq!(files["d/f"].mode, 0o400);
        assert_eq!(add(serde_json::json!([]), false).unwrap().len(), 2);
        assert_eq!(add(serde_json::json!([]), false).unwrap()["k"].mode, 0o600);
        let error = add(serde_json::json!([{"key": "no", "path": "x"}]), false).unwrap_err();
        assert_eq!(error.to_string(), "configmap references non-existent config key: no");
        assert!(add(serde_json::json!([{"key": "no", "path": "x"}]), true).unwrap().is_empty());
    }
}
