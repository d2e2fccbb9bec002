//! The configuration file of a mapper, with the keys of KubeEdge v1.23's mapper framework.

use std::path::{Path, PathBuf};

use crate::document::{ConfigError, Document, Shape};

/// Where the file lies unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/kubeedge/mapper.yaml";
/// A longer path is none of a socket, with what is appended to it for a moment.
const MAX_SOCKET_PATH: usize = 98;

const SHAPE: Shape = Shape {
    default: "grpc_server:
  socket_path: ''
common:
  name: ''
  version: v1.0.0
  api_version: v1.0.0
  protocol: ''
  address: 127.0.0.1
  edgecore_sock: /etc/kubeedge/dmi.sock
",
    free: &[],
    optional: &["common.http_port"],
    hint: "write one: docs/mapper.md shows how it looks",
    check,
};

/// A checked configuration of a mapper.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the user should know, for example unknown keys.
    pub warnings: Vec<String>,
    /// `grpc_server.socket_path`: where the mapper listens for edgecore.
    pub socket: PathBuf,
    /// `common.edgecore_sock`: where edgecore listens.
    pub edgecore: PathBuf,
    /// `common.name`.
    pub name: String,
    /// `common.version`.
    pub version: String,
    /// `common.api_version`.
    pub api_version: String,
    /// `common.protocol`: devices with this `spec.protocol.protocolName` belong to the mapper.
    pub protocol: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or names every mistake in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::of(Document::load(path, &SHAPE)?))
    }

    /// Reads and checks a text; `path` is for messages.
    ///
    /// # Errors
    /// Names every mistake in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::of(Document::parse(text, path, &SHAPE)?))
    }

    fn of(document: Document) -> Self {
        Self {
            socket: document.text("grpc_server.socket_path").into(),
            edgecore: document.text("common.edgecore_sock").into(),
            name: document.text("common.name"),
            version: document.text("common.version"),
            api_version: document.text("common.api_version"),
            protocol: document.text("common.protocol"),
            warnings: document.warnings,
        }
    }
}

fn check(document: &mut Document) {
    for key in ["common.name", "common.protocol"] {
        if document.text(key).is_empty() {
            document.mistake(key, "is needed");
        }
    }
    for key in ["grpc_server.socket_path", "common.edgecore_sock"] {
        let socket = document.text(key);
        if !socket.starts_with('/') || socket.len() > MAX_SOCKET_PATH {
            let why = format!(
                "{socket:?} is no place of a socket: give a path from / on, of at most {MAX_SOCKET_PATH} bytes"
            );
            document.mistake(key, &why);
        }
    }
    if document.text("grpc_server.socket_path") == document.text("common.edgecore_sock") {
        document.mistake("grpc_server.socket_path", "is that of edgecore: a mapper has one of its own");
    }
    if !document.get("common.http_port").is_null() {
        document.warnings.push(
            "common.http_port has no effect: this mapper has no REST interface; ask `kubectl get devicestatus`"
                .to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "grpc_server:
  socket_path: /etc/kubeedge/modbus.sock
common:
  name: Modbus-mapper
  version: v1.13.0
  api_version: v1.0.0
  protocol: modbus
  address: 127.0.0.1
  edgecore_sock: /etc/kubeedge/dmi.sock
  http_port: 7777
";

    #[test]
    fn the_file_of_upstream_is_read() {
        let config = Config::parse(GOOD, Path::new("x")).expect("good");
        assert_eq!((config.name.as_str(), config.protocol.as_str()), ("Modbus-mapper", "modbus"));
        assert_eq!((config.version.as_str(), config.api_version.as_str()), ("v1.13.0", "v1.0.0"));
        assert_eq!(config.socket, Path::new("/etc/kubeedge/modbus.sock"));
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }

    #[test]
    fn every_mistake_is_told() {
        let text = "grpc_server: {socket_path: modbus.sock}\ncommon: {nam: x, edgecore_sock: ''}";
        let error = Config::parse(text, Path::new("x")).expect_err("wrong").to_string();
        for part in ["common.name", "common.protocol", "grpc_server.socket_path", "common.edgecore_sock"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
