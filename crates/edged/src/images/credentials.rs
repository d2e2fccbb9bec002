//! Credentials for registries: from pull secrets (`kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`) and from
//! Docker's configuration files on the node.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use super::reference::registry_and_path;
use crate::cri::proto::AuthConfig;

/// Largest configuration file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Credentials that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    /// The secret has neither key.
    #[error(
        "it has neither .dockerconfigjson nor .dockercfg; a pull secret has the type kubernetes.io/dockerconfigjson"
    )]
    NoKey,
    /// Its content is no configuration of Docker.
    #[error("{key} cannot be read: {source}")]
    Content {
        /// Key of the secret.
        key: &'static str,
        /// Cause.
        source: serde_json::Error,
    },
    /// `auth` is not the base64 of `user:password`.
    #[error("the auth of {registry:?} is not the base64 of user:password")]
    Auth {
        /// Key of the entry.
        registry: String,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Clone, Default, Deserialize)]
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

/// Logins by the registry that they are for.
#[derive(Default)]
pub(super) struct Logins(Vec<(String, Login)>);

impl Logins {
    /// Adds what a pull secret holds.
    pub fn add_secret(&mut self, secret: &Secret) -> Result<(), CredentialsError> {
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        if let Some(json) = data(".dockerconfigjson") {
            self.add_config(".dockerconfigjson", json)
        } else if let Some(json) = data(".dockercfg") {
            self.add_legacy(".dockercfg", json)
        } else {
            Err(CredentialsError::NoKey)
        }
    }

    fn add_config(&mut self, key: &'static str, json: &[u8]) -> Result<(), CredentialsError> {
        let config: DockerConfig =
            serde_json::from_slice(json).map_err(|source| CredentialsError::Content { key, source })?;
        self.add(config.auths)
    }

    fn add_legacy(&mut self, key: &'static str, json: &[u8]) -> Result<(), CredentialsError> {
        self.add(serde_json::from_slice(json).map_err(|source| CredentialsError::Content { key, source })?)
    }

    fn add(&mut self, logins: BTreeMap<String, Login>) -> Result<(), CredentialsError> {
        for (registry, mut login) in logins {
            if !login.auth.is_empty() {
                let pair = STANDARD.decode(login.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let Some((username, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else {
                    return Err(CredentialsError::Auth { registry });
                };
                username.clone_into(&mut login.username);
                // Docker pads what it writes.
                password.trim_end_matches('\0').clone_into(&mut login.password);
            }
            self.0.push((registry, login));
        }
        Ok(())
    }

    /// Those that fit an image, the most specific first.
    pub fn matching(&self, image: &str) -> Vec<AuthConfig> {
        let (registry, path) = registry_and_path(image);
        let mut fitting: Vec<_> = self.0.iter().filter(|(pattern, _)| fits(pattern, &registry, &path)).collect();
        // As the kubelet: a longer path sorts behind what it begins with, a pattern before every name.
        fitting.sort_by_key(|(pattern, _)| std::cmp::Reverse(bare(pattern).to_owned()));
        fitting.into_iter().map(|(_, login)| login.to_auth()).collect()
    }
}

/// Where Docker's configuration may lie: below the agent's own directory, in the user's home, at the root. The first file
/// that can be read counts.
pub(super) fn node_logins(root_dir: &Path) -> Logins {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let config = [Some(root_dir.join("config.json")), home.as_ref().map(|home| home.join(".docker/config.json"))];
    let config = config.into_iter().flatten().chain([PathBuf::from("/.docker/config.json")]);
    let legacy = [Some(root_dir.join(".dockercfg")), home.map(|home| home.join(".dockercfg"))];
    let legacy = legacy.into_iter().flatten().chain([PathBuf::from("/.dockercfg")]);
    for (path, is_legacy) in config.map(|path| (path, false)).chain(legacy.map(|path| (path, true))) {
        let Ok(json) = read(&path) else { continue };
        let mut logins = Logins::default();
        let added = if is_legacy { logins.add_legacy("it", &json) } else { logins.add_config("it", &json) };
        match added {
            Ok(()) => return logins,
            Err(error) => {
                tracing::warn!(file = %path.display(), error = %error, "credentials of the node left out");
            }
        }
    }
    Logins::default()
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn bare(pattern: &str) -> &str {
    pattern.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/')
}

/// Whether a key such as `https://registry.example:5000/team` covers an image. Labels of the host may be patterns.
fn fits(pattern: &str, registry: &str, path: &str) -> bool {
    let pattern = bare(pattern);
    let (host, prefix) = pattern.split_once('/').unwrap_or((pattern, ""));
    // `https://index.docker.io/v1/` is how Docker writes its own registry.
    let docker = matches!(host, "index.docker.io" | "docker.io" | "registry-1.docker.io");
    if docker && registry == "docker.io" {
        return matches!(prefix, "" | "v1" | "v2") || covers(prefix, path);
    }
    let prefix = match prefix.split_once('/') {
        Some(("v1" | "v2", rest)) => rest,
        None if matches!(prefix, "v1" | "v2") => "",
        _ => prefix,
    };
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

/// `*` stands for any part of a label. Linear in the text for each star: what a secret says cannot make it slow.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    true
}

impl Login {
    /// Without the server's address: the runtime would take it for a URL, and knows where it asks.
    fn to_auth(&self) -> AuthConfig {
        AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(key: &str, content: &str) -> Secret {
        serde_json::from_value(json!({"data": {key: STANDARD.encode(content)}})).unwrap()
    }

    #[test]
    fn the_most_specific_login_comes_first() {
        let config = json!({"auths": {
            "r.example": {"username": "a", "password": "1"},
            "https://r.example/team": {"auth": STANDARD.encode("b:2:3")},
            "*.other": {"username": "c"},
            "r.example:5000": {"username": "d"},
            "r.example/v2/": {"username": "e"},
        }});
        let mut logins = Logins::default();
        logins.add_secret(&secret(".dockerconfigjson", &config.to_string())).unwrap();
        logins.add_secret(&secret(".dockercfg", &json!({"x.other": {"username": "f"}}).to_string())).unwrap();
        let users = |image: &str| logins.matching(image).into_iter().map(|a| a.username).collect::<Vec<_>>();
        assert_eq!(users("r.example/team/app:1"), ["e", "b", "a"]);
        assert_eq!(users("r.example/teams/app"), ["e", "a"]);
        assert_eq!(users("x.other/app"), ["f", "c"]);
        assert_eq!(users("r.example:5000/app"), ["d"]);
        assert!(users("busybox").is_empty());
        assert_eq!(logins.matching("r.example/team/app")[1].password, "2:3");
    }

    #[test]
    fn dockers_own_registry() {
        assert!(fits("https://index.docker.io/v1/", "docker.io", "library/busybox"));
        assert!(!fits("quay.io", "docker.io", "library/busybox"));
    }

    #[test]
    fn patterns() {
        for (pattern, text, fits) in
            [("*", "a", true), ("a*c", "abc", true), ("a*b*c", "abbc", true), ("a*c", "ab", false), ("*a", "ba", true)]
        {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn broken_secrets_say_what_is_wrong() {
        let error = |secret: &Secret| Logins::default().add_secret(secret).unwrap_err().to_string();
        assert!(error(&Secret::default()).contains("kubernetes.io/dockerconfigjson"));
        assert!(error(&secret(".dockerconfigjson", "{")).starts_with(".dockerconfigjson cannot be read: EOF"));
        let auth = json!({"auths": {"r.example": {"auth": "%"}}}).to_string();
        assert!(error(&secret(".dockerconfigjson", &auth)).contains("r.example"));
    }

    #[test]
    fn the_nodes_own_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), r#"{"auths": {"node.example": {"username": "n"}}}"#)
            .unwrap();
        assert_eq!(node_logins(directory.path()).matching("node.example/a")[0].username, "n");
    }
}
