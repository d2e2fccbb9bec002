//! Credentials for registries from pull secrets (`kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use super::reference::registry_and_path;
use crate::cri::proto::AuthConfig;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
    auth: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

/// Logins of a secret that fit an image, the most specific first.
pub(super) fn matching(secret: &Secret, image: &str) -> Vec<AuthConfig> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let logins: BTreeMap<String, Login> = if let Some(json) = data(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(json).map(|config| config.auths).unwrap_or_default()
    } else {
        data(".dockercfg").and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default()
    };
    let (registry, path) = registry_and_path(image);
    let mut fitting: Vec<(String, Login)> =
        logins.into_iter().filter(|(pattern, _)| fits(pattern, &registry, &path)).collect();
    fitting.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
    fitting.into_iter().map(|(pattern, login)| login.into_auth(&pattern)).collect()
}

/// Whether a key such as `https://registry.example:5000/team` covers an image. Labels of the host may be patterns.
fn fits(pattern: &str, registry: &str, path: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, prefix) = pattern.split_once('/').unwrap_or((pattern, ""));
    // `https://index.docker.io/v1/` is how Docker writes its own registry.
    let docker = matches!(host, "index.docker.io" | "docker.io" | "registry-1.docker.io");
    if docker && registry == "docker.io" {
        return matches!(prefix, "" | "v1" | "v2") || covers(prefix, path);
    }
    let prefix = prefix.trim_start_matches("v1").trim_start_matches("v2").trim_start_matches('/');
    let (host_name, host_port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let (name, port) = registry.split_once(':').map_or((registry, None), |(name, port)| (name, Some(port)));
    host_port == port && same_host(host_name, name) && covers(prefix, path)
}

fn covers(prefix: &str, path: &str) -> bool {
    prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

fn same_host(pattern: &str, name: &str) -> bool {
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
    patterns.len() == labels.len() && patterns.iter().zip(labels).all(|(pattern, label)| glob(pattern, label))
}

/// `*` stands for any part of a label.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(after, &rest[at..]))),
    }
}

impl Login {
    fn into_auth(self, server: &str) -> AuthConfig {
        let mut auth = AuthConfig {
            username: self.username,
            password: self.password,
            server_address: server.to_owned(),
            identity_token: self.identity_token,
            registry_token: self.registry_token,
            ..Default::default()
        };
        let pair = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some((username, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) {
            auth.username = username.to_owned();
            auth.password = password.to_owned();
        }
        auth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_login_comes_first() {
        let config = serde_json::json!({"auths": {
            "r.example": {"username": "a", "password": "1"},
            "https://r.example/team": {"auth": STANDARD.encode("b:2:3")},
            "*.other": {"username": "c"},
            "r.example:5000": {"username": "d"},
        }});
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
        }))
        .unwrap();
        let users = |image: &str| matching(&secret, image).into_iter().map(|a| a.username).collect::<Vec<_>>();
        assert_eq!(users("r.example/team/app:1"), ["b", "a"]);
        assert_eq!(users("r.example/teams/app"), ["a"]);
        assert_eq!(users("x.other/app"), ["c"]);
        assert_eq!(users("r.example:5000/app"), ["d"]);
        assert!(users("busybox").is_empty());
        assert_eq!(matching(&secret, "r.example/team/app")[0].password, "2:3");
    }

    #[test]
    fn dockers_own_registry() {
        assert!(fits("https://index.docker.io/v1/", "docker.io", "library/busybox"));
        assert!(!fits("quay.io", "docker.io", "library/busybox"));
    }
}
