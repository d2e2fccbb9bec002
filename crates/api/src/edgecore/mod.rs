//! `edgecore.yaml` (KubeEdge v1.23, `edgecore.config.kubeedge.io/v1alpha2`).

mod edge_stream;
mod event_bus;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

pub use self::edge_stream::EdgeStream;
pub use self::event_bus::{EventBus, ExternalBroker, InternalBroker, TlsFiles};
use crate::document::{ConfigError, Document, Shape};

/// Where the file lies unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/kubeedge/config/edgecore.yaml";
/// A join token in this file comes before the one in the configuration.
pub const BOOTSTRAP_PATH: &str = "/etc/kubeedge/bootstrap-edgecore.conf";

const SHAPE: Shape = Shape {
    default: include_str!("default.yaml"),
    free: &[
        "featureGates",
        "modules.edged.nodeLabels",
        "modules.edged.tailoredKubeletConfig.cpuManagerPolicyOptions",
        "modules.edged.tailoredKubeletConfig.topologyManagerPolicyOptions",
        "modules.edged.tailoredKubeletConfig.qosReserved",
        "modules.edged.tailoredKubeletConfig.evictionHard",
        "modules.edged.tailoredKubeletConfig.evictionSoft",
        "modules.edged.tailoredKubeletConfig.evictionSoftGracePeriod",
        "modules.edged.tailoredKubeletConfig.evictionMinimumReclaim",
        "modules.edged.tailoredKubeletConfig.featureGates",
        "modules.edged.tailoredKubeletConfig.memorySwap",
        "modules.edged.tailoredKubeletConfig.systemReserved",
        "modules.edged.tailoredKubeletConfig.kubeReserved",
        "modules.edged.tailoredKubeletConfig.logging",
        "modules.edged.tailoredKubeletConfig.crashLoopBackOff",
    ],
    optional: &[],
    hint: "`keadm join` writes it, or `edgecore --defaultconfig` prints one to begin with",
    check: name_and_validate,
};

/// A checked `edgecore.yaml`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The whole document.
    pub document: Document,
    /// The file it was read from.
    pub path: PathBuf,
}

/// `modules.edgeHub`.
#[derive(Clone, Debug)]
pub struct EdgeHub {
    /// Off: the node works alone.
    pub enable: bool,
    /// How often a keepalive is sent.
    pub heartbeat: Duration,
    /// Messages per second to the cloud.
    pub message_qps: u32,
    /// Messages to the cloud at once.
    pub message_burst: u32,
    /// The first part of the WebSocket's path.
    pub project_id: String,
    /// The hub's CA, PEM.
    pub ca_file: PathBuf,
    /// The node's certificate, PEM.
    pub cert_file: PathBuf,
    /// The node's key, PEM.
    pub key_file: PathBuf,
    /// `host:port` of the message channel: one cloudcore or several, which are tried in turn.
    pub servers: Vec<String>,
    /// For TCP, TLS and the upgrade together.
    pub handshake_timeout: Duration,
    /// When nothing arrives for so long after a heartbeat, the link counts as dead.
    pub read_deadline: Duration,
    /// For each message.
    pub write_deadline: Duration,
    /// The join token; empty once the node has its certificate.
    pub token: String,
    /// `https://host:port` of the certificate endpoint; several as with `servers`.
    pub http_servers: Vec<String>,
    /// Whether the certificate is renewed before it expires.
    pub rotate_certificates: bool,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or names every mistake in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { document: Document::load(path, &SHAPE)?, path: path.to_path_buf() })
    }

    /// Reads and checks a text; `path` is for messages.
    ///
    /// # Errors
    /// Names every mistake in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { document: Document::parse(text, path, &SHAPE)?, path: path.to_path_buf() })
    }

    /// The complete default document.
    pub fn default_document() -> Document {
        Document::default_of(&SHAPE)
    }

    /// What a user has to look at.
    pub fn minimal_document() -> Value {
        let all = Self::default_document();
        let pick = |path: &str| all.get(path).clone();
        json!({
            "apiVersion": pick("apiVersion"),
            "kind": pick("kind"),
            "database": {"dataSource": pick("database.dataSource")},
            "modules": {
                "edged": {
                    "hostnameOverride": "",
                    "tailoredKubeletConfig": {
                        "containerRuntimeEndpoint": pick("modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint"),
                        "imageServiceEndpoint": pick("modules.edged.tailoredKubeletConfig.imageServiceEndpoint"),
                        "cgroupDriver": pick("modules.edged.tailoredKubeletConfig.cgroupDriver"),
                    },
                },
                "edgeHub": {
                    "heartbeat": pick("modules.edgeHub.heartbeat"),
                    "httpServer": pick("modules.edgeHub.httpServer"),
                    "tlsCaFile": pick("modules.edgeHub.tlsCaFile"),
                    "tlsCertFile": pick("modules.edgeHub.tlsCertFile"),
                    "tlsPrivateKeyFile": pick("modules.edgeHub.tlsPrivateKeyFile"),
                    "token": "",
                    "websocket": pick("modules.edgeHub.websocket"),
                },
            },
        })
    }

    /// The name of this node.
    pub fn node_name(&self) -> String {
        self.document.text("modules.edged.hostnameOverride")
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.document.text("database.dataSource").into()
    }

    /// How long MetaManager waits for the cloud.
    pub fn remote_query_timeout(&self) -> Duration {
        self.seconds("modules.metaManager.remoteQueryTimeout")
    }

    /// `modules.edged.nodeLabels`.
    pub fn node_labels(&self) -> BTreeMap<String, String> {
        let labels = self.document.get("modules.edged.nodeLabels").as_object().into_iter().flatten();
        labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// A duration in Go's notation, for example `1m30s`.
    pub fn duration(&self, path: &str) -> Duration {
        go_duration(&self.document.text(path)).unwrap_or_default()
    }

    /// `modules.edgeHub`.
    pub fn edge_hub(&self) -> EdgeHub {
        let at = |key: &str| format!("modules.edgeHub.{key}");
        let text = |key: &str| self.document.text(&at(key));
        let count = |key: &str| u32::try_from(self.document.number(&at(key))).unwrap_or_default();
        let heartbeat = self.seconds(&at("heartbeat")).max(Duration::from_secs(1));
        EdgeHub {
            enable: self.document.flag(&at("enable")),
            heartbeat,
            message_qps: count("messageQPS"),
            message_burst: count("messageBurst"),
            project_id: text("projectID"),
            ca_file: text("tlsCaFile").into(),
            cert_file: text("tlsCertFile").into(),
            key_file: text("tlsPrivateKeyFile").into(),
            servers: addresses(&text("websocket.server")),
            handshake_timeout: self.seconds(&at("websocket.handshakeTimeout")),
            read_deadline: self.seconds(&at("websocket.readDeadline")).max(Duration::from_secs(1)),
            write_deadline: self.seconds(&at("websocket.writeDeadline")),
            token: text("token"),
            http_servers: addresses(&text("httpServer")),
            rotate_certificates: self.document.flag(&at("rotateCertificates")),
        }
    }

    /// Modules that the file switches on and this program does not have.
    pub fn missing_modules(&self) -> Vec<&'static str> {
        let names = ["serviceBus", "taskManager", "dbTest"];
        names.into_iter().filter(|name| self.document.flag(&format!("modules.{name}.enable"))).collect()
    }

    fn seconds(&self, path: &str) -> Duration {
        Duration::from_secs(u64::try_from(self.document.number(path)).unwrap_or_default())
    }
}

/// A node without a name has that of its machine.
fn name_and_validate(document: &mut Document) {
    if document.text("modules.edged.hostnameOverride").is_empty() {
        document.value["modules"]["edged"]["hostnameOverride"] = json!(host_name());
    }
    validate::validate(document);
}

/// The machine's name in lower case.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    if name.is_empty() { "default-edge-node".to_owned() } else { name }
}

/// Whether a name can be a Node's (RFC 1123 subdomain).
pub fn is_node_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|part| {
            part.bytes().all(|b| fits(b) || b == b'-')
                && part.bytes().next().is_some_and(fits)
                && part.bytes().last().is_some_and(fits)
        })
}

/// Addresses that stand in one text, separated by commas (our own extension: upstream takes one).
pub fn addresses(text: &str) -> Vec<String> {
    text.split(',').map(|address| address.trim().to_owned()).collect()
}

/// Whether a text is `host:port`.
pub fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// A duration in Go's notation; `None` for others and for negative ones.
pub fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| end + at);
        total += number
            * match &rest[end..unit_end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("edgecore.yaml"))
    }

    #[test]
    fn upstreams_default_file_loads_unchanged() {
        let config = parse(SHAPE.default).expect("default file");
        assert_eq!(config.document.warnings, Vec::<String>::new());
        let hub = config.edge_hub();
        assert_eq!(hub.servers, ["127.0.0.1:10000"]);
        assert_eq!(hub.heartbeat, Duration::from_secs(15));
        assert_eq!(hub.project_id, "e632aba927ea4ac2b575ec1603d56f10");
        assert_eq!(config.database(), Path::new("/var/lib/kubeedge/edgecore.db"));
        let again = parse(&config.document.to_yaml()).expect("as written by us");
        assert_eq!(again.document.value, config.document.value);
        parse("").expect("an empty file is all defaults");
        parse(&crate::document::to_yaml(&Config::minimal_document())).expect("minimal file");
    }

    #[test]
    fn keys_match_without_case_and_maps_merge() {
        let text = "modules:\n  edged:\n    HostnameOverride: box-7\n    nodeLabels: {site: berlin}\n    tailoredKubeletConfig:\n      evictionHard: {pid.available: 10%}\n  edgehub:\n    HEARTBEAT: 5\n";
        let config = parse(text).expect("config");
        assert_eq!(config.node_name(), "box-7");
        assert_eq!(config.edge_hub().heartbeat, Duration::from_secs(5));
        assert_eq!(config.node_labels()["site"], "berlin");
        let eviction = config.document.get("modules.edged.tailoredKubeletConfig.evictionHard");
        assert_eq!(eviction.as_object().map(serde_json::Map::len), Some(6));
        assert!(config.document.warnings.is_empty(), "{:?}", config.document.warnings);
    }

    #[test]
    fn unknown_keys_are_named_with_a_suggestion() {
        let config = parse("modules:\n  edgeHub:\n    hartbeat: 5\n    zzz: 1\n").expect("config");
        assert_eq!(
            config.document.warnings,
            [
                "modules.edgeHub.hartbeat is not known and has no effect: did you mean heartbeat?",
                "modules.edgeHub.zzz is not known and has no effect",
            ]
        );
        let config = parse("modules:\n  edged: {registerWithTaints: []}\n  edgeHub: {server: h, enabled: yes}\n")
            .expect("config");
        assert_eq!(
            config.document.warnings,
            [
                "modules.edgeHub.enabled is not known and has no effect: did you mean enable?",
                "modules.edgeHub.server is not known and has no effect: did you mean modules.edgeHub.websocket.server?",
                "modules.edged.registerWithTaints is not known and has no effect: did you mean modules.edged.tailoredKubeletConfig.registerWithTaints?",
            ]
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "featureGates: {foo: true}\nmodules:\n  edged:\n    hostnameOverride: Not_A_Name\n    tailoredKubeletConfig: {cgroupDriver: x}\n  edgeHub:\n    heartbeat: fast\n    quic: {enable: true}\n    httpServer: http://x\n";
        let Err(ConfigError::Invalid { mistakes, .. }) = parse(text) else { panic!("accepted") };
        let places: Vec<&str> = mistakes.iter().map(|m| m.split(": ").next().unwrap_or_default()).collect();
        assert_eq!(
            places,
            [
                "modules.edgeHub.heartbeat",
                "modules.edged.hostnameOverride",
                "modules.edged.tailoredKubeletConfig.cgroupDriver",
                "modules.edgeHub",
                "modules.edgeHub.httpServer",
                "featureGates.foo",
            ]
        );
        assert!(matches!(parse("a: [1"), Err(ConfigError::Yaml { .. })));
        assert!(matches!(parse("a: 1\na: 2"), Err(ConfigError::Yaml { .. })));
        assert!(parse("- a").is_err());
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in
            [("10s", 10.0), ("1m30s", 90.0), ("4h0m0s", 14400.0), ("100ms", 0.1), ("0s", 0.0), ("1.5h", 5400.0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for wrong in ["", "5", "x", "-1s", "5 s"] {
            assert_eq!(go_duration(wrong), None, "{wrong}");
        }
    }
}
