//! `cloudcore.yaml` (KubeEdge v1.23, `cloudcore.config.kubeedge.io/v1alpha1` or `v1alpha2`).

mod collect;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::document::{ConfigError, Document, Shape};

pub use collect::{Collect, Files, Loki};

/// Where the file lies unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/kubeedge/config/cloudcore.yaml";
const FEATURE_GATES: [&str; 3] = ["requireAuthorization", "moduleRestart", "disableNodeTaskV1alpha2"];

const SHAPE: Shape = Shape {
    default: include_str!("default.yaml"),
    free: &[
        "featureGates",
        // Sizes of upstream's queues and numbers of its workers: accepted, and without effect here.
        "modules.edgeController.buffer",
        "modules.edgeController.load",
        "modules.deviceController.buffer",
        "modules.deviceController.load",
        "modules.taskManager.buffer",
        "modules.taskManager.load",
    ],
    optional: &["leaderElection", "admission", collect::PATH],
    hint: "`cloudcore --defaultconfig` prints one to begin with",
    check: validate,
};

/// A checked `cloudcore.yaml`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The whole document.
    pub document: Document,
}

/// `modules.cloudHub`.
#[derive(Clone, Debug)]
pub struct CloudHub {
    /// Where the message channel listens.
    pub websocket: SocketAddr,
    /// Where the certificate endpoint listens.
    pub https: SocketAddr,
    /// Addresses and names that edges use; they stand in the server certificate.
    pub hosts: Vec<String>,
    /// Without a keepalive for so long a session ends.
    pub keepalive_interval: Duration,
    /// For each message to an edge.
    pub write_timeout: Duration,
    /// Connected nodes at most.
    pub node_limit: usize,
    /// How long a node's certificate is valid.
    pub certificate_validity: Duration,
    /// How often a new join token is made; each is valid twice as long.
    pub token_refresh: Duration,
    /// Whether the node's identity is checked. Off only if the file says so.
    pub authorization: bool,
    /// The socket for programs beside cloudcore; `None` when it is switched off.
    pub unix_socket: Option<PathBuf>,
    /// Local files that come before the Secrets: CA certificate, CA key, certificate, key.
    pub files: [PathBuf; 4],
}

/// `modules.cloudStream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudStream {
    /// Where API servers ask.
    pub stream: SocketAddr,
    /// Where nodes open their tunnels.
    pub tunnel: SocketAddr,
    /// Addresses under which cloudcore is reached.
    pub hosts: Vec<String>,
    /// Certificate and key for API servers; where they are missing, the hub's are shown.
    pub files: [PathBuf; 2],
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or names every mistake in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { document: Document::load(path, &SHAPE)? })
    }

    /// Reads and checks a text; `path` is for messages.
    ///
    /// # Errors
    /// Names every mistake in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { document: Document::parse(text, path, &SHAPE)? })
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
            "kubeAPIConfig": {"kubeConfig": "/root/.kube/config"},
            "modules": {"cloudHub": {
                "nodeLimit": 1000,
                "advertiseAddress": ["127.0.0.1"],
                "https": pick("modules.cloudHub.https"),
                "websocket": pick("modules.cloudHub.websocket"),
            }},
        })
    }

    /// The kubeconfig; `None` means in-cluster.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        let path = self.document.text("kubeAPIConfig.kubeConfig");
        (!path.is_empty()).then(|| path.into())
    }

    /// Where metrics and health listen.
    pub fn monitor(&self) -> Option<SocketAddr> {
        self.document.text("commonConfig.monitorServer.bindAddress").parse().ok()
    }

    /// `modules.cloudHub`.
    pub fn cloud_hub(&self) -> CloudHub {
        let at = |key: &str| format!("modules.cloudHub.{key}");
        let number = |key: &str| u64::try_from(self.document.number(&at(key))).unwrap_or_default();
        let address = |part: &str| {
            let ip = self.document.text(&at(&format!("{part}.address"))).parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
            SocketAddr::new(ip, u16::try_from(number(&format!("{part}.port"))).unwrap_or_default())
        };
        let mut hosts = self.document.texts(&at("advertiseAddress"));
        hosts.extend(self.document.texts(&at("dnsNames")));
        hosts.retain(|host| !host.is_empty());
        let files = ["tlsCAFile", "tlsCAKeyFile", "tlsCertFile", "tlsPrivateKeyFile"];
        CloudHub {
            websocket: address("websocket"),
            https: address("https"),
            hosts,
            keepalive_interval: Duration::from_secs(number("keepaliveInterval").max(1)),
            write_timeout: Duration::from_secs(number("writeTimeout").max(1)),
            node_limit: usize::try_from(number("nodeLimit")).unwrap_or(usize::MAX),
            certificate_validity: Duration::from_secs(number("edgeCertSigningDuration") * 24 * 3600),
            token_refresh: Duration::from_secs(number("tokenRefreshDuration") * 3600),
            authorization: self.document.flag(&at("authorization.enable"))
                && !self.document.flag(&at("authorization.debug")),
            unix_socket: self
                .document
                .flag(&at("unixsocket.enable"))
                .then(|| self.document.text(&at("unixsocket.address")).trim_start_matches("unix://").into()),
            files: files.map(|key| self.document.text(&at(key)).into()),
        }
    }

    /// Whether devices are delivered to nodes (`modules.deviceController.enable`).
    pub fn has_device_controller(&self) -> bool {
        self.document.flag("modules.deviceController.enable")
    }

    /// `modules.cloudStream`, unless it is switched off. It listens where the message channel does.
    pub fn cloud_stream(&self) -> Option<CloudStream> {
        let port =
            |key: &str| u16::try_from(self.document.number(&format!("modules.cloudStream.{key}"))).unwrap_or_default();
        let hub = self.cloud_hub();
        let address = hub.websocket.ip();
        self.document.flag("modules.cloudStream.enable").then(|| CloudStream {
            stream: SocketAddr::new(address, port("streamPort")),
            tunnel: SocketAddr::new(address, port("tunnelPort")),
            hosts: hub.hosts,
            files: ["tlsStreamCertFile", "tlsStreamPrivateKeyFile"]
                .map(|key| self.document.text(&format!("modules.cloudStream.{key}")).into()),
        })
    }

    /// `modules.cloudStream.collect`; `None` when it is absent, or CloudStream off.
    pub fn collect(&self) -> Option<Collect> {
        self.cloud_stream().and_then(|_| collect::read(&self.document))
    }

    /// Modules that the file switches on and this program does not have.
    pub fn missing_modules(&self) -> Vec<&'static str> {
        let names = ["taskManager", "dynamicController", "router"];
        names.into_iter().filter(|name| self.document.flag(&format!("modules.{name}.enable"))).collect()
    }
}

fn validate(document: &mut Document) {
    collect::validate(document);
    for part in ["websocket", "https"] {
        let at = |key: &str| format!("modules.cloudHub.{part}.{key}");
        let address = document.text(&at("address"));
        if address.parse::<IpAddr>().is_err() {
            document.mistake(&at("address"), &format!("{address:?} is no IP address"));
        }
        // Port 0 lets the system choose.
        if !(0..=65535).contains(&document.number(&at("port"))) {
            document.mistake(&at("port"), "must be between 0 and 65535");
        }
    }
    for key in ["streamPort", "tunnelPort"] {
        let path = format!("modules.cloudStream.{key}");
        if !(0..=65535).contains(&document.number(&path)) {
            document.mistake(&path, "must be between 0 and 65535");
        }
    }
    if !document.flag("modules.cloudHub.websocket.enable") {
        let why = if document.flag("modules.cloudHub.quic.enable") {
            "QUIC is not supported: enable websocket"
        } else {
            "must be enabled: there is no other way for edges to connect"
        };
        document.mistake("modules.cloudHub.websocket", why);
    }
    let place = |part: &str| {
        let at = |key: &str| document.get(&format!("modules.cloudHub.{part}.{key}")).clone();
        (at("address"), at("port"))
    };
    let (channel, https) = (place("websocket"), place("https"));
    let one_includes_the_other = channel.0 == https.0 || channel.0 == "0.0.0.0" || https.0 == "0.0.0.0";
    if channel.1 == https.1 && channel.1 != 0 && one_includes_the_other {
        let why = format!("{} is the port of modules.cloudHub.websocket too: each needs its own", https.1);
        document.mistake("modules.cloudHub.https.port", &why);
    }
    let socket = document.text("modules.cloudHub.unixsocket.address");
    if document.flag("modules.cloudHub.unixsocket.enable") && !socket.starts_with("unix://") {
        document.mistake("modules.cloudHub.unixsocket.address", "must begin with unix://");
    }
    for key in ["tokenRefreshDuration", "edgeCertSigningDuration", "keepaliveInterval", "nodeLimit"] {
        let path = format!("modules.cloudHub.{key}");
        if document.number(&path) <= 0 {
            document.mistake(&path, "must be greater than 0");
        }
    }
    if document.number("modules.edgeController.nodeUpdateFrequency") <= 0 {
        document.mistake("modules.edgeController.nodeUpdateFrequency", "must be greater than 0");
    }
    let kubeconfig = document.text("kubeAPIConfig.kubeConfig");
    if !kubeconfig.is_empty() && !Path::new(&kubeconfig).is_absolute() {
        document.mistake("kubeAPIConfig.kubeConfig", "must be an absolute path");
    }
    let monitor = document.text("commonConfig.monitorServer.bindAddress");
    if monitor.parse::<SocketAddr>().is_err() {
        document.mistake("commonConfig.monitorServer.bindAddress", &format!("{monitor:?} is not IP:port"));
    }
    let mode = document.text("modules.iptablesManager.mode");
    if !["internal", "external"].contains(&mode.as_str()) {
        document.mistake("modules.iptablesManager.mode", "must be internal or external");
    }
    let gates: Vec<String> =
        document.get("featureGates").as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
    for gate in gates.iter().filter(|gate| !FEATURE_GATES.contains(&gate.as_str())) {
        document.mistake(&format!("featureGates.{gate}"), &format!("is not known: {}", FEATURE_GATES.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("cloudcore.yaml"))
    }

    #[test]
    fn upstreams_default_file_loads_unchanged() {
        let config = parse(SHAPE.default).expect("default file");
        assert_eq!(config.document.warnings, Vec::<String>::new());
        let hub = config.cloud_hub();
        assert_eq!((hub.websocket.port(), hub.https.port(), hub.node_limit), (10000, 10002, 500));
        assert!(hub.authorization);
        assert!(parse("apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore").is_ok());
        parse(&crate::document::to_yaml(&Config::minimal_document())).expect("minimal file");
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "kubeAPIConfig: {kubeConfig: rel}\nmodules:\n  cloudHub:\n    websocket: {enable: false, port: 70000}\n    nodeLimit: 0\n  iptablesManager: {mode: x}\n";
        let Err(ConfigError::Invalid { mistakes, .. }) = parse(text) else { panic!("accepted") };
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
        let same =
            parse("modules: {cloudHub: {https: {port: 10000, address: 127.0.0.1}}}").map(|_| ()).expect_err("one port");
        assert!(same.to_string().contains("modules.cloudHub.https.port: 10000 is the port of"), "{same}");
        parse("modules: {cloudHub: {https: {port: 0}, websocket: {port: 0}}}").expect("the system chooses two");
    }
}
